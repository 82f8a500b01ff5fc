"""Processes in tests: start a program, wait for what it does, end it together with all that it started.

``xgray`` calls the command line inside this process, which saves the seconds that the interpreter and its imports take;
``start_xgray`` starts it as a process, for the tests whose subject is the process: its signals, its death, its output
while it runs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]


def xgray(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the command line in this process, in the directory ``cwd``, and return its exit code and output.

    A Ray that this process has started already is used, as ``connect`` does.
    """
    from huggingface_hub import constants
    from rich.console import Console

    from xgray.cli.main import app, main

    output, errors = io.StringIO(), io.StringIO()
    handlers, level = logging.root.handlers[:], logging.root.level
    terminate = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.delenv("PERSPECTIVE_API_KEY", raising=False)
        for name, value in {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(sys, "argv", ["xgray", *map(str, arguments)])
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        logging.root.handlers[:] = []  # `main` sets up the log of a process that has none
        app.console, app.error_console = Console(), Console(stderr=True)  # of the width that COLUMNS says now
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            signal.signal(signal.SIGTERM, terminate)
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), output.getvalue(), errors.getvalue())


def start_python(
    *arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None, **options: object
) -> subprocess.Popen[str]:
    """Start an interpreter in a session of its own; its two outputs are pipes unless ``options`` say otherwise."""
    variables = os.environ if environment is None else environment
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, **options}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), **variables},
        text=True,
        # A shell lets what it starts in the background ignore interrupts, and the children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def start_xgray(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command line as a process in the directory ``cwd``."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environment}
    return start_python("-m", "xgray.cli", *arguments, cwd=cwd, environment=variables)


def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 300) -> tuple[str, str]:
    """Wait for the process to end with this exit code, and return what it wrote to its two outputs."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == code, (
        f"exit code {process.returncode}\n{(output or '')[-3000:]}{(errors or '')[-3000:]}"
    )
    return output, errors


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, timeout: float = 120
) -> None:
    """Wait until the condition holds; fail when the process ends before, or after ``timeout`` seconds.

    The condition is looked at every 0.02 seconds, and less often where that would take more than a sixth of a core.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.thread_time()
        if condition():
            return
        if process is not None and process.poll() is not None:
            pytest.fail(f"the process ended with {process.returncode}: {process.communicate()}"[-3000:])
        if time.monotonic() > deadline:
            pytest.fail(f"nothing within {timeout:.0f} seconds")
        time.sleep(max(0.02, 5 * (time.thread_time() - began)))


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of the process's output, without its end."""
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


def kill_family(process: subprocess.Popen[str]) -> None:
    """Kill the process and all that it started at once, as when the machine goes down."""
    family = descendants(process.pid)
    for pid in psutil.pids():  # what lost its parent stays in the session
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(pid) == process.pid:
                family.append(psutil.Process(pid))
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=30)


def descendants(pid: int | None = None, name: str = "") -> list[psutil.Process]:
    """Return the running processes below this one, or below ``pid``, whose command line contains ``name``."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline()):
                found.append(process)
    return found


def free_ports(number: int) -> list[int]:
    """Return as many ports on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
