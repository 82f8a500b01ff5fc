"""xgray: measure, reduce and explain toxicity in multilingual language models.

Importing the package turns off the usage reporting of other libraries, unless the environment already sets it. Ray's
workers and the engines inherit the environment.
"""

import os
from typing import TYPE_CHECKING, Any

from xgray.version import __version__

if TYPE_CHECKING:
    from xgray.api import LoadedScorer, Run, load_scorer, open_run, run

__all__ = ["LoadedScorer", "Run", "__version__", "load_scorer", "open_run", "run"]


for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """Import the Python API when it is first used, so that the command line starts without it."""
    if name in __all__:
        from xgray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
