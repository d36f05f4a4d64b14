"""A job submitted to a Ray cluster: check -> upload -> submit -> follow -> the job's exit code.

In: a SubmitConfig whose job's flags are checked already. Out: how the job ended, as plain values;
its log on stderr. Invariant: the exit code is the job's own; a job that somebody stopped, a broken
stream and a cluster out of reach are not a success. A name is given once: a second night of a date
is refused while the first runs or when it is done, and continues with it when it was stopped.
"""

import ipaddress
import itertools
import logging
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imgcls.config.choices import check_name, value_of
from imgcls.config.operations import JOB_CONFIGS, SubmitConfig
from imgcls.config.paths import find_relative
from imgcls.errors import ConfigError, ImgclsError, LeaseHeldError, RunStoppedError
from imgcls.operations.follow import JobEnd, JobLog, follow
from imgcls.operations.upload import megabytes, staged

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# The client of Ray sets no timeout at all: connecting, and each wait for a part of the answer.
TIMEOUT_S = (10, 120)
# The dashboard of a new cluster answers before there is an agent to start jobs.
NEW_CLUSTER_S = 120.0


def submit(config: SubmitConfig) -> dict[str, Any]:
    """Run a job on a cluster and return how it ended, its exit code included.

    Raises:
        ConfigError: a folder, path, name or token that cannot be right.
        LeaseHeldError: a job of this name runs, or is done.
        RunStoppedError: following it ended before the job did.
        ImgclsError: the cluster did not take the job.
    """
    base_id = config.submission_id or _default_id(config)
    check_name(base_id, "--submission-id")
    _refuse_relative(config)
    address = _address(config.address)
    has_token = prepare_token()
    with staged(config.working_dir) as upload:
        client = _connect(address)
        _warn_of_open_doors(address, has_token=has_token)
        log.info(
            "uploading %d files, %s, to %s; %d files and folders stay here",
            upload.num_files, megabytes(upload.size_bytes), address, upload.num_left_out,
        )  # fmt: skip
        submission_id = _submit(client, config, base_id, upload.folder)
    hints = (
        f"to follow it: ray job logs --address {address} --follow {submission_id}; "
        f"to stop it: ray job stop --address {address} {submission_id}"
    )
    log.info("job %s submitted; %s", submission_id, hints)
    result = {"submission_id": submission_id, "job": config.job, "address": address}
    if not config.wait:
        return result | {"status": "PENDING"}
    job_log = JobLog(sys.stderr)
    try:
        end = _follow(client, submission_id, job_log)
    except RunStoppedError as error:
        raise RunStoppedError(f"{error}; {hints}") from error
    if end.exit_code:
        reason = (end.message.splitlines() or [""])[0]
        log.error("job %s: %s, exit code %d: %s", submission_id, end.status, end.exit_code, reason)
    return result | {
        "status": end.status, "exit_code": end.exit_code, "result": job_log.result(),
    }  # fmt: skip


def prepare_token() -> bool:
    """Let Ray's client find the token where Ray keeps it; return whether there is one.

    The file is made readable for its owner alone: Ray writes it for all (0644).

    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH names no file, or token mode is on without any token.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    if not os.environ.get("RAY_AUTH_TOKEN"):
        if named and not has_token:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH {named}: no such file")
        if has_token:
            _make_private(path)
    if has_token:
        # Ray's client sends the token only in this mode, and reads the mode when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise ConfigError(
            f"RAY_AUTH_MODE is token, but neither RAY_AUTH_TOKEN nor {path} holds one: copy the "
            "cluster's token there, or make one for a new cluster: ray get-auth-token --generate"
        )
    return has_token


def _make_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        try:
            path.chmod(0o600)
        except PermissionError:
            log.warning("%s may be read by others (mode %o) and is not ours to change", path, mode)
        else:
            log.warning("%s could be read by others (mode %o): made 0600", path, mode)


def _default_id(config: SubmitConfig) -> str:
    now = datetime.now(UTC)
    if config.job == "nightly":
        return f"nightly-{value_of('--date', config.arguments) or f'{now:%Y-%m-%d}'}"
    return f"{config.job}-{now:%Y-%m-%d-%H%M%S}"


def _refuse_relative(config: SubmitConfig) -> None:
    """Refuse places that would be others where the job runs, in a temporary folder on the head.

    What is uploaded with --working-dir may be read by the name that it has there.
    """
    for flag, value, is_written in find_relative(JOB_CONFIGS[config.job], config.arguments):
        if is_written:
            raise ConfigError(
                f"{flag} {value}: a relative path ends with the job on the cluster; write "
                "s3://bucket/prefix, or the absolute path of a folder that every node mounts"
            )
        if not (config.working_dir and Path(config.working_dir, value).exists()):
            raise ConfigError(
                f"{flag} {value}: a relative path is looked for on the cluster, where it is not; "
                "write s3://bucket/prefix, the absolute path of a folder that every node mounts, "
                "or a path within --working-dir, which is uploaded"
            )


def _address(flag: str) -> str:
    """Return the address to use, and make it hold: for Ray's client its variables come first."""
    from_environment = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    address = flag or from_environment or DEFAULT_ADDRESS
    if flag and "://" not in flag:
        address = f"http://{flag}"
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    return address


def _warn_of_open_doors(address: str, *, has_token: bool) -> None:
    if not has_token:
        log.warning("%s takes jobs without a token: so it does from anyone who reaches it", address)
    elif urlsplit(address).scheme == "http" and not _is_loopback(urlsplit(address).hostname or ""):
        log.warning(
            "the token goes to %s unencrypted; take the tunnel of `ray dashboard` or https", address
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connect(address: str) -> Any:  # noqa: ANN401 - Ray has no types
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's client, with timeouts."""

        def _do_request(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as above
            return super()._do_request(*arguments, **({"timeout": TIMEOUT_S} | options))

    try:
        client = _when_ready(lambda: Client(address))
        # The version is told to everyone; this is not.
        _when_ready(client.list_jobs)
    except AuthenticationError as error:
        raise ConfigError(
            f"{address} refuses the token: put the cluster's own into RAY_AUTH_TOKEN, the file at "
            f"RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ImgclsError(
            f"no Ray dashboard answers at {address}; `ray dashboard cluster.yaml` opens the tunnel "
            f"to {DEFAULT_ADDRESS}, and --address names another ({error})"
        ) from error
    return client


def _when_ready(ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - Ray has no types
    """Ask again while a dashboard that has only just begun answers 5xx."""
    deadline_s = time.monotonic() + NEW_CLUSTER_S
    while True:
        try:
            return ask()
        except RuntimeError as error:
            if "status code 5" not in str(error) or time.monotonic() > deadline_s:
                raise
            log.info("the cluster is not ready yet; trying again")
            time.sleep(1)


def _submit(client: Any, config: SubmitConfig, base_id: str, folder: str) -> str:  # noqa: ANN401 - as above
    """Submit under the first free name of base_id, base_id-2, ... and return it."""
    for number in itertools.count(1):
        submission_id = base_id if number == 1 else f"{base_id}-{number}"
        status = _status(client, submission_id)
        if status in {"FAILED", "STOPPED"}:
            log.info("job %s: %s; continuing with it", submission_id, status)
            continue
        if status:
            _refuse_second(submission_id, status)
        entrypoint = shlex.join(["python", "-m", f"jobs.{config.job}", *config.arguments])
        _submit_as(client, submission_id, entrypoint, folder)
        return submission_id
    raise AssertionError("count() does not end")


def _submit_as(client: Any, submission_id: str, entrypoint: str, folder: str) -> None:  # noqa: ANN401 - as above
    deadline_s = time.monotonic() + NEW_CLUSTER_S
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env={"working_dir": folder},
            )
        except RuntimeError as error:
            if "No available agent" in str(error) and time.monotonic() < deadline_s:
                log.info("the cluster is not ready to take jobs yet; trying again")
                continue
            if "already exists" in str(error):  # another was faster by some milliseconds
                _refuse_second(submission_id, "PENDING")
            raise ImgclsError(f"the cluster did not take job {submission_id}: {error}") from error
        except OSError as error:
            raise ImgclsError(
                f"the connection broke while job {submission_id} was submitted; the same command "
                f"tells whether it runs ({error})"
            ) from error
        else:
            return


def _refuse_second(submission_id: str, status: str) -> None:
    raise LeaseHeldError(
        f"job {submission_id} is {status} on this cluster, and a second one of that name is "
        "refused; give --submission-id for another output, or for another time"
    )


def _status(client: Any, submission_id: str) -> str:  # noqa: ANN401 - Ray has no types
    """Return the status of a job, "" where there is none of this name."""
    try:
        return str(_when_ready(lambda: client.get_job_info(submission_id)).status)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return ""
        raise


def _follow(client: Any, submission_id: str, job_log: JobLog) -> JobEnd:  # noqa: ANN401 - as above
    """Follow a job; on Ctrl-C ask whether it is to end too."""
    while True:
        try:
            return follow(client, submission_id, job_log)
        except KeyboardInterrupt:
            if not _wants_it_stopped(submission_id):
                raise RunStoppedError(f"job {submission_id} continues") from None
            client.stop_job(submission_id)


def _wants_it_stopped(submission_id: str) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"\nStop job {submission_id} on the cluster too? [y/N] ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        return False
