"""What went wrong in a worker, as the driver tells it."""

from __future__ import annotations

from xgray.errors import StageError, XgrayError


def original(error: BaseException) -> Exception:
    """The error that a Ray failure is about: ours where there is one, else a :class:`StageError` of one line."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        if isinstance(seen, XgrayError):
            return seen
        if isinstance(seen, OSError):
            return StageError(f"{seen.strerror or seen}; what is done stays: mend it and call the same command")
        last = seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    reason = (str(last).strip() or type(last).__name__).splitlines()[-1]
    return StageError(f"a worker failed: {reason}; what is done stays, and the same command goes on from there")
