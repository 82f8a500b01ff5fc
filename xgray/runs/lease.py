"""Allow one driver at a time: the lease of a run's folder, on any storage that the folder lies on.

The driver of a run keeps a file ``driver.json`` with a random token, facts about itself, and a heartbeat that counts
up. A second driver that finds the file leaves, unless the first is dead. On the same machine the process shows that at
once. On another machine the first counts as dead after STALE_SECONDS without a beat by the clock of the second, so the
two clocks need not agree. A driver that takes the lease writes its token, waits, and reads it again; it reads it before
every beat too, and stops when it finds the token of another.

So two drivers do not both go on, whenever they were started: within a beat, all have left but the one whose token
stayed. Until then two may work at the same time, as an object store offers no lock. That costs work but no rows, since
files are named by their content.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ValidationError

from xgray.errors import BusyError
from xgray.runs import interrupts
from xgray.runs.progress import Progress
from xgray.runs.secrets import redact_argv
from xgray.storage.folder import Folder

log = logging.getLogger(__name__)

LEASE = "driver.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Seconds without a beat after which a driver on another machine counts as dead; a few beats may fail meanwhile."""
SETTLE_SECONDS = 0.5
"""Seconds from writing the token to reading it again; longer than a write that another driver began before."""


class Driver(BaseModel):
    """A driver, as it describes itself in the lease."""

    token: str
    host: str
    pid: int
    machine: str | None
    """The boot and the process namespace in which ``pid`` counts; None if the system does not tell."""
    process_start: str | None
    """When the process began, in ticks since the boot; a later process with the same pid has another start."""
    command: list[str]
    since: datetime
    seen: datetime
    """The last beat by the driver's clock, for people to read."""
    beat: int
    progress: dict[str, Progress]
    """The progress of the stages that it has worked on, by label."""

    @property
    def is_on_this_machine(self) -> bool:
        return self.machine is not None and self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """Whether the driver's process, which was on this machine, has ended."""
        return _process_start(self.pid) != self.process_start

    def __str__(self) -> str:
        since, seen = (f"{moment:%Y-%m-%d %H:%M:%S} UTC" for moment in (self.since, self.seen))
        return f"host {self.host}, process {self.pid}, since {since}, last sign of life {seen}"


def _machine() -> str | None:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """Return when the process began, in ticks since the boot; None if it has ended."""
    try:
        # The second field, the name in parentheses, may hold anything. The state follows; the start is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie, which its parent has not read, has ended too


def _read(run: Folder) -> tuple[bytes, Driver | None] | None:
    """Return the lease's bytes, and the driver that they describe, None if unreadable; None if there is no lease."""
    try:
        content = run.read_bytes(LEASE)
    except FileNotFoundError:
        return None
    try:
        return content, Driver.model_validate_json(content)
    except ValidationError:  # damaged, or of another version; a change of the bytes still shows a beat
        return content, None


def _is_renewed(run: Folder, content: bytes, seconds: float) -> bool:
    """Return whether the lease changes, and is not given up, within so many seconds of this machine's clock."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))
        lease = _read(run)
        if lease is None:
            return False
        if lease[0] != content:
            return True
    return False


def find_driver(run: Folder) -> tuple[Driver, bool] | None:
    """Return the driver that holds the run's lease and whether it is alive; None if there is no lease.

    A driver on another machine is alive if its last beat is recent. If it seems old, the two clocks may differ, so the
    next beat is waited for.
    """
    lease = _read(run)
    if lease is None or lease[1] is None:
        return None
    content, driver = lease[0], lease[1]
    if driver.is_on_this_machine:
        return driver, not driver.has_ended
    if abs((datetime.now(UTC) - driver.seen).total_seconds()) < STALE_SECONDS:
        return driver, True
    return driver, _is_renewed(run, content, 2 * BEAT_SECONDS)


class Lease:
    """Holds a run's lease while a ``with`` block runs.

    Args:
        progress: Returns the progress that the lease is to show.

    Raises:
        BusyError: another driver is alive when the block begins, or took over the lease and interrupted the block.
    """

    def __init__(
        self,
        run: Folder,
        progress: Callable[[], dict[str, Progress]] = dict,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self._run = run
        self._progress = progress
        self._beat_seconds = beat_seconds
        self._stale_seconds = stale_seconds
        self._token = uuid.uuid4().hex
        self._since = datetime.now(UTC)
        self._beat = 0
        self._taken_over_by: str | None = None
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Lease:
        self._wait_for_dead_driver()
        self._write()
        time.sleep(SETTLE_SECONDS)
        if other := self._other_driver():
            raise BusyError(_busy_message(self._run, other))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended.set()
        self._thread.join(self._beat_seconds)
        if self._taken_over_by and kind is KeyboardInterrupt:
            raise BusyError(
                f"another driver has taken over {self._run}, so this one has stopped: {self._taken_over_by}"
            ) from None
        with contextlib.suppress(OSError):  # A lease that is left behind is seen to be of a dead driver.
            if self._taken_over_by is None and self._other_driver() is None:
                self._run.remove(LEASE)

    def _wait_for_dead_driver(self) -> None:
        """Return if there is no lease, or once its driver is known to be dead."""
        lease = _read(self._run)
        if lease is None:
            return
        content, driver = lease
        description = str(driver) if driver else f"one that {LEASE} does not name"
        if driver and driver.is_on_this_machine:
            if not driver.has_ended:
                raise BusyError(_busy_message(self._run, description))
        else:
            log.info(
                "%s: has a driver (%s); waiting %.0f s for a beat", self._run.uri, description, self._stale_seconds
            )
            if _is_renewed(self._run, content, self._stale_seconds):
                raise BusyError(_busy_message(self._run, description))
        if _read(self._run) is not None:
            log.warning("%s: taken over from a driver that is dead: %s", self._run.uri, description)

    def _other_driver(self) -> str | None:
        """Return who holds the lease instead of this driver; None if this driver does."""
        lease = _read(self._run)
        if lease is None:
            return f"{LEASE} was deleted"
        driver = lease[1]
        if driver is None:
            return f"{LEASE} does not say who"
        return None if driver.token == self._token else str(driver)

    def _write(self) -> None:
        self._beat += 1
        driver = Driver(
            token=self._token,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            process_start=_process_start(os.getpid()),
            command=redact_argv(sys.argv),
            since=self._since,
            seen=datetime.now(UTC),
            beat=self._beat,
            progress=self._progress(),
        )
        self._run.write_json(LEASE, driver.model_dump(mode="json"))

    def _keep(self) -> None:
        """Renew the lease until the block ends, or another driver takes over."""
        while not self._has_ended.wait(self._beat_seconds):
            try:
                self._taken_over_by = self._other_driver()
                if self._taken_over_by is None:
                    self._write()
            except OSError as error:
                log.warning("%s/%s: no heartbeat: %s", self._run.uri, LEASE, error)
            if self._taken_over_by:
                interrupts.interrupt("stopped: another driver has taken over the run")
                return


def _busy_message(run: Folder, driver: str) -> str:
    return (
        f"{run} has a driver already: {driver}. It goes on, and nothing was changed here. See how far it is: "
        f"xgray status {run.uri}. Once it has ended, the same command resumes the run"
    )
