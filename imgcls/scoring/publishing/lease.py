"""The lease of an output: one nightly run at a time may plan and publish there.

In: an output prefix and who asks. Out: OUT/_lease.json held, renewed and let go, by
compare-and-swap alone.
Invariant: two runs never both hold it, whatever their clocks say. A holder that is killed lets go
at once for a successor that can see that it is dead, on the same machine. Any other successor
watches the record: a living holder changes it within HEARTBEAT_S, and one that stays the same for
TTL_S, by the successor's own monotonic clock, is free.
"""

import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self

from imgcls.errors import (
    ConfigError,
    LeaseHeldError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    RunStoppedError,
    StorageError,
)
from imgcls.storage.objects import put_if_match, put_new, read_with_etag
from imgcls.storage.records import parse_record, record_text
from imgcls.storage.uri import join

log = logging.getLogger(__name__)

LEASE = "_lease.json"
TTL_S = 120.0
HEARTBEAT_S = 10.0
WATCH_EVERY_S = 1.0


class Holder(Enum):
    """What can be known of a lease from its record alone."""

    GONE = auto()
    ALIVE = auto()
    UNKNOWN = auto()  # on another machine, or in another container of this one


@dataclass(frozen=True)
class LeaseRecord:
    """_lease.json: who holds the lease and since when.

    `expires_at` is for people and for versions of imgcls that compare clocks. `renewed_at_s` is the
    holder's monotonic clock, which all processes of one boot share.
    """

    holder: str
    token: str
    host: str
    pid: int
    boot_id: str
    pid_namespace: str
    since: str
    expires_at: str
    time_namespace: str = ""
    renewed_at_s: float = 0.0
    is_released: bool = False

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a record; fields of a later version are passed over."""
        return parse_record(data, LEASE, ConfigError, cls)

    def judge(self) -> Holder:
        """Return what this process can know of the holder, without any clock of the wall."""
        if self.is_released:
            return Holder.GONE
        if self.boot_id != _boot_id():
            return Holder.UNKNOWN
        has_our_clock = self.time_namespace == _namespace("time")
        if has_our_clock and time.monotonic() - self.renewed_at_s >= TTL_S:
            return Holder.GONE
        # Containers of one host may share its name; only in one pid namespace is a pid the same.
        if (self.host, self.pid_namespace) != (socket.gethostname(), _namespace("pid")):
            return Holder.UNKNOWN
        if not Path(f"/proc/{self.pid}").exists():
            return Holder.GONE
        # A record without our clock may be of a process that is long dead, its pid another's.
        return Holder.ALIVE if has_our_clock else Holder.UNKNOWN


class Lease:
    """Hold the lease of `output` inside a `with` block.

    Raises (on entry):
        LeaseHeldError: another run holds it; the message says who, since when and until when.
    """

    def __init__(self, output: str, holder: str) -> None:
        self._uri = join(output, LEASE)
        self._record = LeaseRecord(
            holder=holder,
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_boot_id(),
            pid_namespace=_namespace("pid"),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            expires_at="",
            time_namespace=_namespace("time"),
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
        """Take the lease with put_new, or one whose holder is gone with compare-and-swap."""
        with suppress(ObjectExistsError):
            self._etag = put_new(self._uri, self._renewed())
            return
        etag = self._watch()
        try:
            self._etag = put_if_match(self._uri, self._renewed(), etag)
        except (ObjectChangedError, ObjectMissingError):
            raise LeaseHeldError(f"{self._uri}: another run took it this very moment") from None

    def _watch(self) -> str:
        """Return the etag of a lease whose holder is gone, once that is sure.

        Raises:
            LeaseHeldError: its holder is alive.
        """
        data, etag = read_with_etag(self._uri)
        current, seen_since_s = LeaseRecord.from_json(data), time.monotonic()
        holder = current.judge()
        if holder is Holder.UNKNOWN:
            log.info(
                "%s: held by %s on %s since %s; watching for %.0f s at most whether it is alive",
                self._uri,
                current.holder,
                current.host,
                current.since,
                TTL_S,
            )
        while holder is Holder.UNKNOWN and time.monotonic() - seen_since_s < TTL_S:
            time.sleep(min(WATCH_EVERY_S, TTL_S))
            seen_etag, (data, etag) = etag, read_with_etag(self._uri)
            current = LeaseRecord.from_json(data)
            holder = current.judge()
            if etag != seen_etag and holder is Holder.UNKNOWN:
                holder = Holder.ALIVE
        if holder is Holder.ALIVE:
            raise LeaseHeldError(
                f"{self._uri}: held by {current.holder} on {current.host} since {current.since}, "
                "and that run is alive. One run at a time may write here; try again when it has "
                "ended."
            )
        return etag

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
            self._etag = put_if_match(self._uri, self._renewed(), self._etag)
        except ObjectChangedError:
            data, etag = read_with_etag(self._uri)
            if LeaseRecord.from_json(data).token != self._record.token:
                raise
            self._etag = put_if_match(self._uri, self._renewed(), etag)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            try:
                self.renew()
            except LeaseHeldError as error:
                log.error("%s", error)  # noqa: TRY400 - the message is all there is to tell
                return
            except StorageError as error:
                log.warning("lease not renewed, trying again: %s", error)

    def _renewed(self, *, is_released: bool = False) -> bytes:
        """Return our record as of now; no two are the same bytes."""
        valid_s = -TTL_S if is_released else TTL_S
        expires_at = datetime.now(UTC) + timedelta(seconds=valid_s)
        record = replace(
            self._record,
            expires_at=expires_at.isoformat(timespec="milliseconds"),
            renewed_at_s=time.monotonic(),
            is_released=is_released,
        )
        return record_text(record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go: a released record is written, so that no delete can hit a successor's lease.

        A run that is stopped does not wait for the store: its death frees the lease.
        """
        self._done.set()
        if self._lost or isinstance(error, (RunStoppedError, KeyboardInterrupt)):
            return
        with self._lock:
            try:
                put_if_match(self._uri, self._renewed(is_released=True), self._etag)
            except StorageError as problem:
                # Never in place of the run's own outcome.
                log.warning("the lease was not let go, a successor waits for it: %s", problem)


def _namespace(kind: str) -> str:
    """Return the name of this process's namespace; an old kernel has no time namespaces."""
    try:
        return str(Path(f"/proc/self/ns/{kind}").readlink())
    except FileNotFoundError:
        return f"{kind}:none"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
