"""Trainings that cannot run are refused before they start."""

import pytest

from xgray.config import Train
from xgray.errors import InputError
from xgray.train.deepspeed import deepspeed_config
from xgray.train.feasible import check_feasible


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 4, "execution": {"num_workers": 3}}, r"train\.batch_size: 4 .* 3 workers"),
        ({"method": "qlora"}, r"train\.method: qlora needs a CUDA device"),
        ({"method": "lora", "lora_targets": "released", "execution": {"strategy": "zero3"}}, r"train\.lora_targets"),
    ],
)
def test_infeasible_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        check_feasible(Train(**fields), cuda=False)


def test_qlora_is_allowed_on_cuda_but_not_with_zero3():
    check_feasible(Train(method="qlora", execution={"strategy": "zero2"}), cuda=True)
    with pytest.raises(InputError, match=r"train\.execution\.strategy"):
        check_feasible(Train(method="qlora", execution={"strategy": "zero3"}), cuda=True)


def test_zero3_gathers_weights_on_save_and_zero2_is_stage_2():
    zero = deepspeed_config("zero3", cuda=False)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_gather_16bit_weights_on_model_save"]
    assert deepspeed_config("zero2", cuda=True)["zero_optimization"]["stage"] == 2
