"""Why vLLM refuses: the error of the process that failed reaches the one that started it."""

import json
import subprocess
import sys

import pytest

from xgray.errors import InputError, StageError
from xgray.models.vllm_start import EngineError, EngineFields, refusal

FIELDS = EngineFields("model.id", "generate.execution.gpu_memory_utilization", "lower generate.max_prompt_tokens")
RELAYED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"

PROCESSES = """
import json, logging, logging.config, os, sys
from pathlib import Path

from xgray.models.vllm_start import naming_causes, record_errors, recorded_errors, root_cause

CHILD = '''
import json, logging, logging.config, os
logging.config.dictConfig(json.loads(open(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read()))
log = logging.getLogger("vllm.v1.engine.core")
log.error("an error without an exception")
try:
    raise ValueError("too small\\\\nby half")
except ValueError:
    log.exception("WorkerProc failed to start.")
try:
    raise Exception("WorkerProc initialization failed due to an exception in a background process.")
except Exception:
    log.exception("EngineCore failed to start.")
'''
import subprocess

record_errors()
folder = Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).parent
relayed = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
alone = root_cause(relayed, 0)
subprocess.run([sys.executable, "-c", CHILD], check=True)
print(json.dumps({
    "folder": str(folder),
    "alone": alone.kind,
    "cause": vars(root_cause(relayed, 0)),
    "later": root_cause(relayed, len(recorded_errors())).kind,
    "own": root_cause(TypeError("of this process"), 0).kind,
}))
try:
    with naming_causes():
        subprocess.run([sys.executable, "-c", CHILD], check=True)
        raise RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
except RuntimeError as error:
    print(error)
"""


def test_the_error_of_another_process_is_found_by_its_log(tmp_path):
    run = subprocess.run([sys.executable, "-c", PROCESSES], capture_output=True, text=True, check=True, timeout=60)
    facts, while_running = run.stdout.splitlines()
    found = json.loads(facts)
    assert while_running == "ValueError: too small by half"
    assert found["alone"] == "RuntimeError"  # nothing is recorded yet
    assert found["cause"] == {"kind": "ValueError", "message": "too small\nby half"}
    assert found["later"] == "RuntimeError"  # what was recorded before does not count
    assert found["own"] == "TypeError"
    assert "EngineCore failed to start." in run.stderr  # the log goes on as before
    assert subprocess.run(["ls", found["folder"]], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("kind", "message", "error", "facts"),
    [
        (
            "ValueError",
            "Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU memory utilization (0.92, "
            "21.7 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
            InputError,
            ["3.1/23.6 GiB", "set generate.execution.gpu_memory_utilization", "nvidia-smi"],
        ),
        (
            "ValueError",
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
            "engine.",
            InputError,
            ["Raise generate.execution.gpu_memory_utilization", "lower generate.max_prompt_tokens"],
        ),
        (
            "ValueError",
            "To serve at least one request with the model's max seq len (4096), (2.0 GiB KV cache is needed, which is "
            "larger than the available KV cache memory (0.5 GiB). Based on the available memory, the estimated maximum "
            "model length is 1024.",
            InputError,
            ["2.0 GiB", "0.5 GiB", "lower generate.max_prompt_tokens"],
        ),
        (
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 23.57 GiB of which 20.88 "
            "MiB is free.",
            InputError,
            ["23.57 GiB", "lower generate.max_prompt_tokens"],
        ),
        (
            "ValidationError",
            "1 validation error for VllmConfig\n  Value error, Unknown quantization method: other. Must be one of "
            "['awq']. [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]\n    For further "
            "information visit https://errors.pydantic.dev/2.14/v/value_error",
            InputError,
            ["model.id: vLLM does not take M: Unknown quantization method: other. Must be one of ['awq']."],
        ),
        (
            "RuntimeError",
            "The NVIDIA driver on your system is too old (found version 12040).",
            InputError,
            ["found version 12040", "Update the NVIDIA driver"],
        ),
        ("DistBackendError", "NCCL error: unhandled system error", StageError, ["DistBackendError: NCCL error"]),
        ("RuntimeError", RELAYED.format("{'EngineCore': -9}"), StageError, ["exit code -9", "memory"]),
    ],
)
def test_a_refusal_says_why_and_what_to_change(kind, message, error, facts):
    refused = refusal("M", EngineError(kind, message), FIELDS)
    assert type(refused) is error
    for fact in facts:
        assert fact in str(refused)
    assert "\n" not in str(refused)
    assert "errors.pydantic.dev" not in str(refused)
