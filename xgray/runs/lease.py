"""One driver at a time: the lease of a run directory, on any storage that the run lies on.

The driver of a run keeps ``driver.json``: a token of its own, who it is, and a heartbeat that counts up. Another one
that finds it there leaves, unless the first is dead: on the same machine that is seen at once, by its process; on
another it takes STALE_SECONDS without a beat, by the clock of the one who waits, so that no two clocks need agree.
Who takes a lease writes its token, waits and reads it again; who has it reads it before every beat, and stops when it
finds another's.

So two drivers started at any two moments do not both go on: within a beat, all but the one whose token stayed have
left. For that moment both may work, as an object store has no lock to offer. It costs work and no rows: files are
named by what is in them.
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
"""Without a beat after which another machine's driver counts as dead: a storage may fail a few times in between."""
SETTLE_SECONDS = 0.5
"""From writing a token to reading it again: longer than a write that another one began before."""


class Driver(BaseModel):
    """A driver, as it tells of itself in the lease."""

    token: str
    host: str
    pid: int
    machine: str | None
    """The boot and the process namespace in which ``pid`` counts; None where the system does not tell."""
    process_start: str | None
    """When the process began, in ticks of that boot: a number that is given again is another process."""
    command: list[str]
    since: datetime
    seen: datetime
    """The last beat, by the driver's own clock: for people, no decision rests on it."""
    beat: int
    progress: dict[str, Progress]
    """What it knows of the stages that it has worked on."""

    @property
    def on_this_machine(self) -> bool:
        return self.machine is not None and self.machine == _machine()

    @property
    def gone(self) -> bool:
        """Whether its process, on this machine, is no more."""
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
    """In ticks since the boot; None where there is no such process, or only what its parent has not read."""
    try:
        # The name, in parentheses, may hold anything. The state follows; the start is the 22nd field of all.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _read(run: Folder) -> tuple[bytes, Driver | None] | None:
    """The lease's bytes, and who holds it as far as that can be read; None where nobody does."""
    try:
        content = run.read_bytes(LEASE)
    except FileNotFoundError:
        return None
    try:
        return content, Driver.model_validate_json(content)
    except ValidationError:  # damaged, or another version's: its beat still shows in the bytes
        return content, None


def _beats(run: Folder, content: bytes, seconds: float) -> bool:
    """Whether the lease changes, other than by being given up, within so many seconds of this machine's clock."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))
        now = _read(run)
        if now is None:
            return False
        if now[0] != content:
            return True
    return False


def find_driver(run: Folder) -> tuple[Driver, bool] | None:
    """Who holds the run's lease, and whether it is alive; None where nobody does. Takes nothing.

    A driver elsewhere whose clock agrees with ours is believed; of another we wait for the next beat.
    """
    found = _read(run)
    if found is None or found[1] is None:
        return None
    holder = found[1]
    if holder.on_this_machine:
        return holder, not holder.gone
    if abs((datetime.now(UTC) - holder.seen).total_seconds()) < STALE_SECONDS:
        return holder, True
    return holder, _beats(run, found[0], 2 * BEAT_SECONDS)


class Lease:
    """Held for the length of a ``with`` block.

    Raises:
        BusyError: at its beginning, another driver is alive; at its end, one took over and this one was interrupted.
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
        self._taken_by: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Lease:
        self._wait_for_the_dead()
        self._write()
        time.sleep(SETTLE_SECONDS)
        if other := self._other():
            raise BusyError(_busy(self._run, other))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self._beat_seconds)
        if self._taken_by and kind is KeyboardInterrupt:
            raise BusyError(
                f"another driver has taken over {self._run}, and this one has stopped: {self._taken_by}"
            ) from None
        with contextlib.suppress(OSError):  # Left behind, it is seen to be dead.
            if self._taken_by is None and self._other() is None:
                self._run.remove(LEASE)

    def _wait_for_the_dead(self) -> None:
        found = _read(self._run)
        if found is None:
            return
        content, holder = found
        who = str(holder) if holder else f"one that {LEASE} does not name"
        if holder and holder.on_this_machine:
            if not holder.gone:
                raise BusyError(_busy(self._run, who))
        else:
            log.info("%s: has a driver (%s); waiting %.0f s for a beat", self._run.uri, who, self._stale_seconds)
            if _beats(self._run, content, self._stale_seconds):
                raise BusyError(_busy(self._run, who))
        if _read(self._run) is not None:
            log.warning("%s: taken over from a driver that is dead: %s", self._run.uri, who)

    def _other(self) -> str | None:
        """Who holds the lease in our place."""
        found = _read(self._run)
        if found is None:
            return f"{LEASE} was deleted"
        holder = found[1]
        if holder is None:
            return f"{LEASE} does not say who"
        return None if holder.token == self._token else str(holder)

    def _write(self) -> None:
        self._beat += 1
        holder = Driver(
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
        self._run.write_json(LEASE, holder.model_dump(mode="json"))

    def _keep(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                self._taken_by = self._other()
                if self._taken_by is None:
                    self._write()
            except OSError as error:
                log.warning("%s/%s: no heartbeat: %s", self._run.uri, LEASE, error)
            if self._taken_by:
                interrupts.interrupt("stopped: another driver has taken over the run")
                return


def _busy(run: Folder, who: str) -> str:
    return (
        f"{run} has a driver already: {who}. It goes on there, nothing was touched here. "
        f"See how far it is: xgray status {run.uri}; once it has ended, the same command goes on from there"
    )
