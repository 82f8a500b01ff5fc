"""Switch off the progress bars of libraries, which would stand between the lines of our own progress."""

from __future__ import annotations

import os

NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def hide_library_bars() -> None:
    """Set the environment variables that switch the bars off, unless the user has set them.

    They hold for this process, where the libraries read them at their import, and for the processes that it starts.
    """
    for name in NO_BARS:
        os.environ.setdefault(name, "1")
