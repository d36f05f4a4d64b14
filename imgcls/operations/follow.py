"""The log of a submitted job, followed to a terminal state through broken streams.

In: a client of Ray's job API and a submission id. Out: the job's log, once and whole, and how the
job ended. Invariant: the end of a stream is not the end of the job; only a terminal state is, and
only SUCCEEDED is success (ray-project/ray#51601).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from imgcls.errors import ImgclsError, RunStoppedError
from imgcls.inert import in_log_lines
from imgcls.storage.json_text import parse_object

log = logging.getLogger(__name__)

# A connection that died without a word (a laptop that slept, a VPN) is silent, as a job may be:
# after this long a new stream is opened, which costs one reading of the log.
SILENT_S = 60.0
# As long as a head may take to be reachable again; after that the job is said to be lost.
UNREACHABLE_S = 600.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
MAX_RESULT_CHARS = 1_000_000
STOPPED_EXIT_CODE = RunStoppedError.exit_code


class JobClient(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def get_job_info(self, job_id: str) -> Any: ...  # noqa: ANN401, D102 - Ray has no types
    def get_job_logs(self, job_id: str) -> str: ...  # noqa: D102
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...  # noqa: D102


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    status: str
    """SUCCEEDED, FAILED or STOPPED."""
    exit_code: int
    """That of the job itself; 5 for STOPPED; 1 where Ray knows none."""
    message: str


class JobLog:
    """A job's log on its way to stderr: each character once, whatever the streams repeat."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._written = 0
        self._tail = ""

    def write_at(self, position: int, text: str) -> None:
        """Write what of `text`, which begins at character `position`, is new."""
        new = text[max(0, self._written - position) :]
        self._written += len(new)
        self._tail = (self._tail + new)[-MAX_RESULT_CHARS:]
        self._stream.write(in_log_lines(new))
        self._stream.flush()

    def result(self) -> dict[str, Any] | None:
        """Return the job's one JSON object, its last line but for what Ray adds; None without."""
        for line in reversed(self._tail.splitlines()):
            if line.startswith("{"):
                try:
                    return parse_object(line, "the last line", ImgclsError)
                except ImgclsError:
                    continue
        return None


def follow(
    client: JobClient,
    submission_id: str,
    job_log: JobLog,
    *,
    silent_s: float = SILENT_S,
    unreachable_s: float = UNREACHABLE_S,
) -> JobEnd:
    """Write a job's log as it grows, until the job is over; no part of it twice.

    Raises:
        RunStoppedError: the cluster was out of reach for `unreachable_s`.
    """
    lost_s = None  # since when the cluster is out of reach
    pause_s = SHORTEST_PAUSE_S
    while True:
        asyncio.run(_stream(client, submission_id, job_log, silent_s))
        try:
            info = client.get_job_info(submission_id)
        except (OSError, RuntimeError) as error:  # what requests and Ray's client raise
            lost_s = lost_s or time.monotonic()
            if time.monotonic() - lost_s > unreachable_s:
                raise RunStoppedError(
                    f"the cluster is out of reach for {unreachable_s:.0f} s, and whether job "
                    f"{submission_id} continues is not known ({_first_line(error)})"
                ) from error
            log.info("cluster out of reach (%s); trying again", _first_line(error))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            if info.status.is_terminal():
                _write_rest(client, submission_id, job_log)
                return _end(info)
            lost_s, pause_s = None, SHORTEST_PAUSE_S
        time.sleep(pause_s)


async def _stream(client: JobClient, submission_id: str, job_log: JobLog, silent_s: float) -> None:
    """Write what one stream brings; each begins with the log's first character."""
    position = 0
    try:
        stream = aiter(client.tail_job_logs(submission_id))
        while True:
            text = await asyncio.wait_for(anext(stream), silent_s)
            job_log.write_at(position, text)
            position += len(text)
    except (StopAsyncIteration, TimeoutError):
        pass
    except RunStoppedError:  # SIGTERM, wherever it came
        raise
    except Exception as error:  # noqa: BLE001 - whatever breaks a stream, the job's state decides
        log.info("the log stream broke (%s); opening it again", _first_line(error))


def _write_rest(client: JobClient, submission_id: str, job_log: JobLog) -> None:
    """Write what the log of a job that is over holds beyond the last stream."""
    try:
        job_log.write_at(0, client.get_job_logs(submission_id))
    except (OSError, RuntimeError) as error:  # how the job ended is known all the same
        log.warning("the end of the log is missing here: %s", _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _end(info: Any) -> JobEnd:  # noqa: ANN401 - Ray has no types
    status = str(info.status)
    message = str(info.message or "")
    if status == "STOPPED":
        return JobEnd(status, STOPPED_EXIT_CODE, message)
    code = info.driver_exit_code
    if status == "SUCCEEDED":
        return JobEnd(status, 0, message)
    if not code:  # the job never started, or its node died
        return JobEnd(status, 1, message)
    return JobEnd(status, code if code > 0 else 128 - code, message)
