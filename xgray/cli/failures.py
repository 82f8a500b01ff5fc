"""The one place where what was raised becomes a line for the user and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from cyclopts.exceptions import CycloptsError

from xgray.errors import XgrayError
from xgray.runs import interrupts
from xgray.runs.secrets import redact
from xgray.runs.terminal import printable

SHOW_TRACEBACK = "XGRAY_TRACEBACK"
"""The environment variable that has tracebacks printed."""
MAX_CHARACTERS = 3000
"""A message that is longer, because a file holds strange things, is cut."""
KEPT = "Results so far are kept"


def describe(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code: 2 for wrong input, 1 for a failure after which the same command resumes."""
    if isinstance(error, KeyboardInterrupt):
        return f"{interrupts.reason()}. {KEPT}; the same command resumes the run.", 1
    if isinstance(error, CycloptsError):
        return " ".join(str(error).split()), 2
    if isinstance(error, XgrayError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
        return f"{reason}{where}. {KEPT}. Fix this and run the same command again.", 1
    if isinstance(error, MemoryError):
        return f"the memory of this machine is not enough. {KEPT}; the same command resumes the run.", 1
    reason = (str(error).strip().splitlines() or [""])[0]
    return (
        f"{type(error).__name__}: {reason} (at {_place(error)}). xgray does not know this error. {KEPT}; "
        f"{SHOW_TRACEBACK}=1 shows where it comes from.",
        1,
    )


def fail(error: BaseException) -> None:
    """Print the error's line, and end the process with its exit code."""
    message, code = describe(error)
    if len(message) > MAX_CHARACTERS:
        message = f"{message[:MAX_CHARACTERS]}…"
    if os.environ.get(SHOW_TRACEBACK):
        message = f"{''.join(traceback.format_exception(error))}\n{message}"
    print(f"xgray: {printable(redact(message))}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _place(error: BaseException) -> str:
    """Return the last line of xgray that the error passed."""
    root = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(root)]
    return f"{Path(frames[-1].filename).relative_to(root.parent)}:{frames[-1].lineno}" if frames else "an unknown place"
