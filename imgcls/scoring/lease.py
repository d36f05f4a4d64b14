"""The lease of an output: one nightly run at a time may plan and publish there.

In: an output prefix and who asks. Out: OUT/_lease.json held, renewed and let go, by
compare-and-swap alone.
Invariant: two runs never both hold it, as long as their clocks agree within CLOCK_SKEW_S. A holder
that is killed lets go by expiry, or at once for a successor on the same host, which can see that it
is dead.
"""

import json
import logging
import os
import secrets
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from imgcls.errors import (
    LeaseHeldError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    RunStoppedError,
    StorageError,
)
from imgcls.storage.objects import put_if_match, put_new, read_with_etag
from imgcls.storage.uri import join

log = logging.getLogger(__name__)

TTL_S = 120.0
HEARTBEAT_S = 30.0
CLOCK_SKEW_S = 10.0


@dataclass(frozen=True)
class LeaseRecord:
    """_lease.json: who holds the lease, since when, until when."""

    holder: str
    token: str
    host: str
    pid: int
    boot_id: str
    pid_namespace: str
    since: str
    expires_at: str

    def is_free(self, now: datetime) -> bool:
        """Return whether it has expired, or its holder is a dead process of this host."""
        if datetime.fromisoformat(self.expires_at) + timedelta(seconds=CLOCK_SKEW_S) < now:
            return True
        # Containers of one host may share its name; only in one pid namespace is a pid the same.
        here = (socket.gethostname(), _boot_id(), _pid_namespace())
        if (self.host, self.boot_id, self.pid_namespace) != here:
            return False
        return not Path(f"/proc/{self.pid}").exists()


class Lease:
    """Hold the lease of `output` inside a `with` block.

    Raises (on entry):
        LeaseHeldError: another run holds it; the message says who, since when and until when.
    """

    def __init__(self, output: str, holder: str) -> None:
        self._uri = join(output, "_lease.json")
        self._record = LeaseRecord(
            holder=holder,
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            expires_at="",
        )
        self._etag = ""
        self._lost = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._heart.start()
        return self

    def _acquire(self) -> None:
        """Take the lease with put_new, or an expired one with compare-and-swap."""
        record = self._until(TTL_S)
        with suppress(ObjectExistsError):
            self._etag = put_new(self._uri, record)
            return
        data, etag = read_with_etag(self._uri)
        current = LeaseRecord(**json.loads(data))
        if not current.is_free(datetime.now(UTC)):
            raise LeaseHeldError(
                f"{self._uri}: held by {current.holder} on {current.host} since {current.since}, "
                f"until {current.expires_at} unless renewed. One run at a time may write here; "
                "try again when it has ended."
            )
        try:
            self._etag = put_if_match(self._uri, record, etag)
        except (ObjectChangedError, ObjectMissingError):
            raise LeaseHeldError(f"{self._uri}: another run took it this very moment") from None

    def renew(self) -> None:
        """Prove that the lease is still ours, and hold it for another TTL_S.

        Raises:
            LeaseHeldError: another run has taken it.
            StorageError: the store did not answer; the lease may still be ours.
        """
        with self._lock:
            if self._lost:
                raise LeaseHeldError(self._lost)
            try:
                self._renew_or_adopt()
            except (ObjectChangedError, ObjectMissingError):
                self._lost = f"{self._uri}: lost to another run; this one must not publish"
                raise LeaseHeldError(self._lost) from None

    def _renew_or_adopt(self) -> None:
        """Swap our record for a later one; after a lost reply our own is there by another etag."""
        try:
            self._etag = put_if_match(self._uri, self._until(TTL_S), self._etag)
        except ObjectChangedError:
            data, etag = read_with_etag(self._uri)
            if json.loads(data)["token"] != self._record.token:
                raise
            self._etag = put_if_match(self._uri, self._until(TTL_S), etag)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            try:
                self.renew()
            except LeaseHeldError as error:
                log.error("%s", error)  # noqa: TRY400 - the message is all there is to tell
                return
            except StorageError as error:
                log.warning("lease not renewed, trying again: %s", error)

    def _until(self, seconds: float) -> bytes:
        expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        record = replace(self._record, expires_at=expires_at.isoformat(timespec="milliseconds"))
        return json.dumps(asdict(record)).encode()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go: an expired record is written, so that no delete can hit a successor's lease.

        A run that is stopped does not wait for the store: its death, or expiry, frees the lease.
        """
        self._done.set()
        if self._lost or isinstance(error, (RunStoppedError, KeyboardInterrupt)):
            return
        with self._lock:
            try:
                put_if_match(self._uri, self._until(-2 * CLOCK_SKEW_S), self._etag)
            except StorageError as problem:
                # Never in place of the run's own outcome.
                log.warning("the lease was not let go, it expires by itself: %s", problem)


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
