"""Start vLLM, and say why it refuses.

On CUDA the engine computes in a process of its own, and the caller learns no more than that this process has failed.
What failed is in the log of that process: vLLM logs it with the exception before the process ends. So a handler of
Python's logging, which vLLM sets up in all of its processes, writes these exceptions into a file that the caller reads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgray.errors import InputError, StageError, XgrayError
from xgray.models import vllm_worker

RELAYED = re.compile(
    "Engine core initialization failed|WorkerProc initialization failed|Worker failed with error|EngineCore encountered"
)
"""Errors of vLLM which only say that another process has failed."""
EXIT_CODE = re.compile(r"'\w+': (-?\d+)")
"""The end of a process, in the error about it."""
PREFIX = "xgray-vllm-"
"""How the folder is named into which a process's engines write their errors."""
MAX_CHARACTERS = 2000
"""Of an error's message; some of vLLM's hold a whole configuration."""
USERS_MISTAKES = frozenset({"ValueError", "ValidationError", "NotImplementedError", "OutOfMemoryError"})
"""Errors with which vLLM refuses a model or its options, and which come again at every start."""
OLD_DRIVER = re.compile("driver.*(too old|insufficient)|no kernel image|CUDA error: invalid device", re.IGNORECASE)


@dataclass(frozen=True)
class EngineFields:
    """The fields of the experiment file that decide on an engine, for its refusals."""

    model: str
    """The field that names the model."""
    memory: str
    """The field that says which part of a GPU's memory the engine takes."""
    smaller: str
    """What to change so that the engine needs less memory, as the end of a sentence."""


@dataclass(frozen=True)
class EngineError:
    """An exception of one of vLLM's processes."""

    kind: str
    """The name of its class."""
    message: str

    @classmethod
    def of(cls, error: BaseException) -> EngineError:
        return cls(type(error).__name__, str(error)[:MAX_CHARACTERS])

    @property
    def reason(self) -> str:
        """The message in one line, without what Pydantic puts around it."""
        message = self.message
        if self.kind == "ValidationError":
            message = message.partition("Value error, ")[2] or message
            message = message.rpartition(" [type=")[0] or message
        return " ".join(message.split()) or self.kind


class ErrorFile(logging.Handler):
    """Writes the exceptions that are logged into a file, a JSON text for each. vLLM's processes construct it."""

    def __init__(self, path: str) -> None:
        """Take the file, which is appended to."""
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write the exception of a record, if it has one."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(vars(EngineError.of(error))) + "\n")
        except OSError:  # the process that reads it has ended and taken the file along, or the disk is full
            self.handleError(record)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of this process for the errors of its engines, which is deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix=PREFIX)


def record_errors() -> None:
    """Have vLLM's processes write their exceptions into a file. Call this before ``import vllm``.

    A logging configuration that the user has named, or turned off, is left as it is. Refusals then say where to look.
    """
    named = os.environ.get("VLLM_LOGGING_CONFIG_PATH", "")
    is_users = named and not Path(named).parent.name.startswith(
        PREFIX
    )  # otherwise of the process that started this one
    if is_users or os.environ.get("VLLM_CONFIGURE_LOGGING", "1") == "0":
        return
    folder = Path(_folder().name)
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO")
    logs = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(asctime)s %(name)s: %(message)s"}},
        "handlers": {
            "stream": {"class": "logging.StreamHandler", "formatter": "plain", "level": level},
            "errors": {"class": f"{__name__}.{ErrorFile.__name__}", "path": str(folder / "errors.jsonl")},
        },
        "loggers": {"vllm": {"handlers": ["stream", "errors"], "level": level, "propagate": False}},
    }
    (folder / "logging.json").write_text(json.dumps(logs), encoding="utf-8")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(folder / "logging.json")


def recorded_errors() -> list[EngineError]:
    """Return the exceptions of this process's engines so far, in the order in which they were logged."""
    file = Path(_folder().name) / "errors.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [EngineError(**json.loads(line)) for line in lines]


def root_cause(error: BaseException, num_before: int) -> EngineError:
    """Return the error of the process in which an engine failed.

    Args:
        error: what reached this process.
        num_before: the number of recorded errors before what failed was begun.
    """
    if not RELAYED.search(str(error)):
        return EngineError.of(error)
    found = [each for each in recorded_errors()[num_before:] if not RELAYED.search(each.message)]
    return found[-1] if found else EngineError.of(error)


@contextlib.contextmanager
def naming_causes() -> Iterator[None]:
    """Let the end of an engine's process within the block be an error that names what ended it.

    Raises:
        RuntimeError: with the error of that process.
    """
    num_before = len(recorded_errors())
    try:
        yield
    except Exception as error:
        if not RELAYED.search(str(error)):
            raise
        cause = root_cause(error, num_before)
        raise RuntimeError(f"{cause.kind}: {cause.reason}") from error


def start_vllm(path: str, fields: EngineFields, **options: Any) -> Any:
    """Return ``vllm.LLM`` with the model at ``path``. :func:`xgray.models.vllm.prepare_environment` comes before.

    Args:
        path: a local folder with the model, or its hub id.
        fields: where the user finds what vLLM refuses.
        options: further arguments of ``vllm.LLM``; a ``worker_extension_cls`` is a subclass of
            :class:`xgray.models.vllm_worker.EndsWithDriver`.

    Raises:
        InputError: vLLM refuses the model or the options, or there is too little memory; with vLLM's own reason.
        StageError: the start failed otherwise, as when the engine's process was killed.
    """
    from vllm import LLM

    num_before = len(recorded_errors())
    options = {"worker_extension_cls": vllm_worker.NAME, **options}
    try:
        llm = LLM(model=path, disable_log_stats=True, load_format="safetensors", generation_config="vllm", **options)
        llm.collective_rpc("end_with_driver", args=(os.getpid(),))
    except Exception as error:
        raise refusal(path, root_cause(error, num_before), fields) from error
    return llm


def refusal(path: str, cause: EngineError, fields: EngineFields) -> XgrayError:
    """Return the error for the user, from that with which an engine did not start."""
    reason = cause.reason
    if RELAYED.search(reason):
        code = EXIT_CODE.search(reason)
        ended = f"its process ended with exit code {code[1]}" if code else "its process ended"
        return StageError(
            f"vLLM did not start with {path}: {ended} and left no error. A negative code is the signal that killed it: "
            "-9 is what the system does where the machine's memory (not the GPU's) is short. What it wrote last is in "
            "the worker's log. Results so far are kept. Run the same command again to go on."
        )
    if OLD_DRIVER.search(reason):
        return InputError(
            f"vLLM cannot use the GPU: {reason}. Update the NVIDIA driver: nvidia-smi shows its version, xgray doctor "
            "which one is needed"
        )
    if advice := _memory_advice(cause, fields):
        return InputError(f"{fields.model}: too little memory for {path} in vLLM: {reason.rstrip('.')}. {advice}")
    if cause.kind in USERS_MISTAKES:
        return InputError(f"{fields.model}: vLLM does not take {path}: {reason}")
    return StageError(f"vLLM did not start with {path}: {cause.kind}: {reason}")


def _memory_advice(cause: EngineError, fields: EngineFields) -> str | None:
    """Return what to do about too little memory, None where memory is not the cause."""
    reason = cause.reason
    if "Free memory on device" in reason:
        return (
            f"Other processes hold the rest (nvidia-smi lists them): end them, or set {fields.memory} to the part that "
            "is free"
        )
    if "Available memory on node" in reason:  # vLLM on a CPU
        return "End what holds the machine's memory, or ask for fewer GiB: VLLM_CPU_KVCACHE_SPACE=1"
    is_too_small = "No available memory for the cache" in reason or "larger than the available KV cache" in reason
    if is_too_small or cause.kind == "OutOfMemoryError" or "out of memory" in reason:
        return f"Raise {fields.memory} where the GPU has memory to spare; otherwise {fields.smaller}"
    return None
