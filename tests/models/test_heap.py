"""Freed memory stays with a process that asks for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
from xgray.models.heap import keep_freed_memory

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

if sys.argv[1] == "keep":
    keep_freed_memory()
before = held()
freed = bytearray(200 * 2**20)
del freed
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_stays():
    grown = {}
    for kind in ("keep", "return"):
        process = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
        grown[kind] = int(process.stdout)
    assert grown["keep"] >= 190
    assert grown["return"] <= 20
