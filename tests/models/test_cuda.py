"""A GPU that cannot be used is refused, and not replaced by the CPU. The tests' PyTorch may be built for CPUs."""

import importlib.metadata

import pytest
import torch

from xgray.errors import InputError
from xgray.models import cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize(("value", "shown"), [("", "''"), ("7", "'7'")])
def test_a_gpu_that_pytorch_cannot_use_is_refused_with_its_reason(monkeypatch, value, shown):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(
        InputError, match=rf"cannot use it: .+\. CUDA_VISIBLE_DEVICES is {shown}; nvidia-smi"
    ) as refused:
        cuda.check_cuda("13.0")
    assert cuda.why_no_cuda() in str(refused.value)
    cuda.check_cuda(None)  # PyTorch for CPUs: the GPU is only pretended


@pytest.mark.parametrize(("installed", "is_refused"), [("0.33.0", True), ("0.33.0+cpu", False)])
def test_a_vllm_for_cuda_is_refused_where_there_is_no_gpu(monkeypatch, installed, is_refused):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cuda, "version", lambda package: installed)
    if not is_refused:
        cuda.check_vllm_build()
        return
    with pytest.raises(InputError, match=r"vLLM 0\.33\.0 is built for CUDA.*is not set.*engine transformers"):
        cuda.check_vllm_build()


def test_vllm_for_cpus_is_another_package(monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(cuda, "version", missing)
    cuda.check_vllm_build()
