"""Errors of workers, as the driver reports them.

Ray passes a worker's error on as text inside errors of Ray's own. So an actor catches its errors and passes a
:class:`Failure` on in the place of a result; Ray handles only the death of a process.
"""

from __future__ import annotations

from dataclasses import dataclass

from xgray.errors import InputError, StageError, XgrayError

RESUME = "Results so far are kept. Run the same command again to go on."

LESS_MEMORY = (
    "Other processes may hold the GPU's memory (nvidia-smi lists them). Otherwise make batches smaller "
    "(execution.batch_size, or execution.batch_tokens of score and evaluate), or take a larger GPU. Results so far are "
    "kept."
)
NUM_SENTENCES = 3
"""Of PyTorch's message about memory: what was asked for, and what there is."""


@dataclass(frozen=True)
class Failure:
    """An error as plain values."""

    message: str
    users_mistake: bool
    """Whether the same command would fail again without a change by the user."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        if isinstance(error, XgrayError):
            return cls(str(error), isinstance(error, InputError))
        if isinstance(error, OSError):
            file = f": {error.filename}" if error.filename else ""
            fix = "Results so far are kept. Fix this and run the same command again."
            return cls(f"{error.strerror or error}{file}. {fix}", False)
        if (type(error).__module__, type(error).__name__) == ("torch", "OutOfMemoryError"):
            reason = ". ".join(str(error).split(". ")[:NUM_SENTENCES])
            return cls(f"{reason}. {LESS_MEMORY}", True)
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return cls(f"a worker failed: {reason}. {RESUME}", False)

    def error(self) -> XgrayError:
        return InputError(self.message) if self.users_mistake else StageError(self.message)


def worker_died(error: BaseException) -> StageError:
    """Return the error that reports a dead worker, from an error of Ray's own."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return StageError(f"a worker died: {reason}. {RESUME}")
