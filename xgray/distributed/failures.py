"""What went wrong in a worker, as the driver tells it.

Ray hands on a worker's error as text inside errors of its own. So an actor of the pipeline catches what goes wrong and
sends a :class:`Failure` on in place of its rows; what is left to Ray is the death of a process.
"""

from __future__ import annotations

from dataclasses import dataclass

from xgray.errors import InputError, StageError, XgrayError


@dataclass(frozen=True)
class Failure:
    """An error as plain values."""

    message: str
    users_mistake: bool
    """Whether running again without a change would fail again."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        if isinstance(error, XgrayError):
            return cls(str(error), isinstance(error, InputError))
        if isinstance(error, OSError):
            where = f": {error.filename}" if error.filename else ""
            return cls(
                f"{error.strerror or error}{where}; what is done stays: mend it and call the same command", False
            )
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        return cls(f"a worker failed: {reason}; what is done stays, and the same command goes on from there", False)

    def error(self) -> XgrayError:
        return InputError(self.message) if self.users_mistake else StageError(self.message)


def death(error: BaseException) -> StageError:
    """What to say of an error of Ray's own."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return StageError(f"a worker died: {reason}; what is done stays, and the same command goes on from there")
