"""Keep a local Ray to this machine, to its user and to this process.

It listens on loopback, its files are the user's alone, its processes end with this one, and this one says so when one
of them dies.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from ray._private import ray_constants, worker

from xgray.errors import InputError
from xgray.runs import interrupts
from xgray.runs.periodic import run_every

CHECK_SECONDS = 1.0
"""How often the processes of a local Ray are looked at."""
ABANDON_SECONDS = 5.0
"""How long a Ray that has lost a part may take to end."""
REAPER = """
import os, signal, sys, time
driver_ended = not sys.stdin.read()
def start(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
if driver_ended:
    time.sleep(2)
for pid, began in (argument.split(":") for argument in sys.argv[1:]):
    try:
        if driver_ended and start(pid) == began:
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""A program that kills processes, given as PID:START, when the process at the other end of its input is gone. If it
reads something, that process has ended as it should, and nothing is killed. The start is in ticks since the boot: a
later process may have the pid."""
_abandoned: threading.Thread | None = None
"""What ends a Ray that has lost a part."""
SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment variables of a local Ray. By default its own processes come before its workers: each time one of them
runs, a thread of a training stops and those beside it wait for it. It starts a worker for each core in advance, which
actors with an environment of their own cannot use. And an actor asks all the time whether the node will be taken away.
"""
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """While the block runs, have :data:`SETTINGS` in the environment, unless the user has set them."""
    names = [name for name in SETTINGS if name not in os.environ]
    os.environ.update((name, SETTINGS[name]) for name in names)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """While the block runs, let Ray take the loopback address for this machine's, as it does on macOS and Windows.

    All that Ray starts then listens there. An argument of ``ray.init`` would not do: Ray replaces a loopback address
    that it is given.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def is_local() -> bool:
    """Return whether this process started the Ray that it is connected to."""
    node = worker._global_node
    return node is not None and bool(node.head)


def private_folder() -> str:
    """Return the folder for the sessions of local Rays: logs, sockets and the store. Only the user can enter it.

    Ray opens the folder that it gets to everybody, so this is one within a closed one.

    Raises:
        InputError: somebody else has taken the folder's name.
    """
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folder = Path(base) / f"xgray-ray-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(
            f"{folder}: not a folder of this user, and Ray's sessions are to lie there. Name another place: "
            "RAY_TMPDIR=FOLDER"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return str(folder / "r")  # short: the path of a socket may have 107 bytes


def keep_token_private() -> None:
    """Let nobody else read the token of the user's local Rays; Ray itself would write one that all can read."""
    if any(name in os.environ for name in TOKEN_VARIABLES):
        return
    file = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # a home folder that cannot be written, which Ray reports
        file.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(secrets.token_hex(32))
        except FileExistsError:
            file.chmod(0o600)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While the block runs, report the death of a process of the local Ray, and let none of them outlive this one.

    Ray ends most of its processes with the driver, but two of its agents first wait a minute for each other's.
    """
    node = worker._global_node
    has_died = False

    def check() -> None:
        nonlocal has_died
        dead = [kind for kind, _ in node.dead_processes() if kind in ("gcs_server", "raylet")]
        if dead and not has_died:
            has_died = True
            interrupts.interrupt(f"Ray's {dead[0]} has died: it was killed, or the machine is out of memory")

    reaper = _start_reaper()
    try:
        with run_every(CHECK_SECONDS, check):
            yield
    finally:
        reaper.communicate(b"" if has_died else b"ended in order")
        if has_died:
            _abandon(node)


def _abandon(node: Any) -> None:
    """End a Ray that has lost a part: it would try for a minute to tell the part that it ends."""
    global _abandoned
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    atexit.unregister(worker.shutdown)
    _abandoned = shutdown = threading.Thread(target=_shutdown_quietly, daemon=True)
    shutdown.start()
    shutdown.join(ABANDON_SECONDS)


def _shutdown_quietly() -> None:
    # The user knows by then that a part has died; that Ray's end misses it is no news.
    with contextlib.suppress(Exception):
        worker.shutdown()


def was_abandoned() -> bool:
    """Return whether a Ray of this process has lost a part and is still trying to end."""
    return _abandoned is not None and _abandoned.is_alive()


def end_failed_start() -> None:
    """Kill the processes that a Ray which did not start has left below this one, and wait for their end."""
    left = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if private_folder() in command or command.startswith("ray::"):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=ABANDON_SECONDS)


def _start_reaper() -> subprocess.Popen[bytes]:
    processes = [process for process in psutil.Process().children(recursive=True) if "Agent" in process.name()]
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            start = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
            found.append(f"{process.pid}:{start}")
    return subprocess.Popen(
        [sys.executable, "-I", "-c", REAPER, *found],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
