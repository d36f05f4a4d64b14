import asyncio
import io
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from imgcls.errors import RunStoppedError
from imgcls.operations.follow import JobLog, follow

LOG = "one\ntwo\nthree\n"


class Cluster:
    """A job API whose streams and answers are given; an exception among them is raised."""

    def __init__(self, streams: list[list[Any]], answers: list[Any]) -> None:
        self.streams, self.answers = streams, answers

    def get_job_info(self, job_id: str) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, code = answer
        return SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="why")

    def get_job_logs(self, job_id: str) -> str:
        return LOG

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for part in self.streams.pop(0) if self.streams else []:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                yield part


def followed(cluster: Cluster, **limits: float) -> tuple[str, Any]:
    stream = io.StringIO()
    end = follow(cluster, "night", JobLog(stream), **limits)
    return stream.getvalue(), end


RUNNING = ("RUNNING", None)


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "exit_code"),
    [
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 5),
        ("FAILED", 3, 3),
        ("FAILED", -9, 137),  # killed by a signal, as a shell tells it
        ("FAILED", None, 1),  # the job never began
    ],
)
def test_exit_code_is_the_jobs_own(
    status: str, driver_exit_code: int | None, exit_code: int
) -> None:
    _, end = followed(Cluster([], [(status, driver_exit_code)]))
    assert (end.status, end.exit_code) == (status, exit_code)


@pytest.mark.parametrize(
    "streams",
    [
        [["one\n", "tw"], ["one\ntwo\n", "three\n"]],  # ended before the job did
        [["one\n", RuntimeError("closed 1006")], ["one\n", "two\n", "three\n"]],
        [["one\n", 60.0], ["one\n"]],  # silent; then short of the end
        [[ConnectionResetError("reset")], []],
    ],
)
def test_log_is_whole_whatever_becomes_of_its_streams(streams: list[list[Any]]) -> None:
    text, end = followed(Cluster(streams, [RUNNING, ("SUCCEEDED", 0)]), silent_s=0.2)
    assert text == LOG
    assert end.exit_code == 0


def test_cluster_out_of_reach_for_too_long_is_no_success() -> None:
    cluster = Cluster([], [ConnectionError("refused"), ConnectionError("refused")])
    with pytest.raises(RunStoppedError, match="out of reach"):
        followed(cluster, unreachable_s=0.1)


def test_short_outage_after_a_long_stream_is_waited_for() -> None:
    streams = [[0.5, "one\n"]]
    answers = [ConnectionError("refused"), RuntimeError("status code 503"), ("FAILED", 4)]
    _, end = followed(Cluster(streams, answers), unreachable_s=3.0, silent_s=5.0)
    assert end.exit_code == 4


def test_sigterm_while_a_stream_is_read_ends_the_following() -> None:
    with pytest.raises(RunStoppedError, match="SIGTERM"):
        followed(Cluster([[RunStoppedError("stopped by SIGTERM")]], [RUNNING]))


def test_result_is_the_jobs_last_json_line() -> None:
    log = JobLog(io.StringIO())
    log.write_at(0, '{"a": 1}\n{"rows": 7}\n{broken\n(and what Ray adds)\n')
    assert log.result() == {"rows": 7}
    assert JobLog(io.StringIO()).result() is None
