"""xgray: measure, reduce and explain toxicity in multilingual language models.

Importing the package sets the usage reporting of the libraries below to off, unless the environment already
says otherwise; Ray's workers and the engines inherit it.
"""

import os

__version__ = "0.1.0"

for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)
