"""The version of xgray."""

__version__ = "0.1.0"
