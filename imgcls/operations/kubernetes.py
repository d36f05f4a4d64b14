"""Kubernetes manifests for a job: CronJob, and KubeRay's RayJob and RayCronJob.

In: a KubernetesConfig whose job's flags are checked already. Out: YAML on stdout, for `kubectl
apply -f -`. Invariant: no secret is written into a manifest, only a service account and the names
of Secrets; what runs is what the same flags run on a laptop. The fields are those of KubeRay 1.7
(ray.io/v1) and of Kubernetes batch/v1: tests/operations/test_kubernetes.py holds what is used of
them.
"""

import re
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import yaml
from cronsim import CronSim, CronSimError

from imgcls import telemetry
from imgcls.config.choices import value_of
from imgcls.config.operations import JOB_CONFIGS, KubernetesConfig
from imgcls.config.paths import find_relative, path_flags
from imgcls.errors import BudgetExceededError, ConfigError, LeaseHeldError, NightHeldError
from imgcls.scoring.publishing.retention import parse_age

Manifest = dict[str, Any]

# KubeRay appends to the name of a RayJob, and a RayCronJob to its own before that (its
# validation.go); Kubernetes appends 11 characters to that of a CronJob, of 63.
MAX_NAME_CHARS = {"rayjob": 47, "raycronjob": 35, "cronjob": 52}
# Starting again changes nothing: bad flags, too many bad images, another run at work, a night that
# waits for a person.
FINAL_EXIT_CODES = [
    ConfigError.exit_code, BudgetExceededError.exit_code, LeaseHeldError.exit_code,
    NightHeldError.exit_code,
]  # fmt: skip
IDLE_TIMEOUT_S = 300
LATEST_START_S = 3600
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,-]+")
_MEMORY = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?")
_SMALL = {"cpu": "1", "memory": "2Gi"}
_HEAD = {"cpu": "2", "memory": "8Gi"}


def kubernetes(config: KubernetesConfig) -> None:
    """Print the manifest of a job.

    Raises:
        ConfigError: a value that Kubernetes or KubeRay would refuse, or that an operator would
            regret.
    """
    _check(config)
    build = {"rayjob": _ray_job, "raycronjob": _ray_cron_job, "cronjob": _cron_job}[config.kind]
    text = yaml.safe_dump(build(config), sort_keys=False, width=100)
    sys.stdout.write("".join(f"# {line}\n" for line in _remarks(config)) + text)


def _remarks(config: KubernetesConfig) -> list[str]:
    remarks = [f"Written by imgcls kubernetes {config.kind}, which writes it again from its flags."]
    if config.kind != "cronjob":
        remarks.append(
            f"The image must hold ray {metadata.version('ray')}; KubeRay 1.5.1 or later makes the "
            "token."
        )
    if config.kind == "raycronjob":
        remarks += [
            "RayCronJob is alpha in KubeRay 1.7: switch on the feature gate RayCronJob. It has no",
            "concurrencyPolicy: the lease of the output keeps a second night out (exit code 4).",
        ]
    if config.address:
        remarks.append("At its deadline the pod ends; the job on the Ray cluster continues.")
    return remarks


def _metadata(config: KubernetesConfig) -> Manifest:
    found = {"name": config.name, "labels": {"app.kubernetes.io/name": "imgcls"}}
    return found | ({"namespace": config.namespace} if config.namespace else {})


def _ray_job(config: KubernetesConfig) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(config),
        "spec": _ray_job_spec(config),
    }


def _ray_cron_job(config: KubernetesConfig) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(config),
        "spec": {
            "schedule": config.schedule,
            "timeZone": config.time_zone,
            "jobTemplate": _ray_job_spec(config),
        },
    }


def _ray_job_spec(config: KubernetesConfig) -> Manifest:
    # The autoscaler beside the head talks to Kubernetes by the account's token.
    head = _pod(config, "ray-head", _HEAD, talks_to_kubernetes=True)
    settings = [{"name": name, "value": value} for name, value in telemetry.RAY.items()]
    head["spec"]["containers"][0]["env"] = settings
    worker = {"cpu": str(config.cpus), "memory": config.memory}
    return {
        "entrypoint": shlex.join(_command(config)),
        "activeDeadlineSeconds": _seconds("--deadline", config.deadline),
        "backoffLimit": config.retries,  # each on a new cluster; the job continues where it stopped
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _seconds("--keep", config.keep),
        "submitterPodTemplate": _pod(config, "ray-job-submitter", _SMALL),
        "rayClusterSpec": {
            "rayVersion": metadata.version("ray"),
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE_TIMEOUT_S},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},  # the head schedules, workers work
                "template": head,
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": 0,
                    "minReplicas": 0,
                    "maxReplicas": config.max_workers,
                    "rayStartParams": {},
                    "template": _pod(config, "ray-worker", worker, gpus=config.gpus),
                }
            ],
        },
    }


def _cron_job(config: KubernetesConfig) -> Manifest:
    size = {"cpu": str(config.cpus), "memory": config.memory}
    if config.address:
        pod = _pod(config, "imgcls", _SMALL)
    else:
        pod = _pod(config, "imgcls", size, gpus=config.gpus)
    container = pod["spec"]["containers"][0]
    container["command"] = _command(config)
    # No home is promised to a user who may be any number.
    container["env"] = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108 - of the pod alone
    if config.token_secret:
        secret = {"name": config.token_secret, "key": "auth_token"}
        container["env"] += [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
        ]
    # Decoded images go through shared memory, of which a pod has 64 MiB; it counts as memory.
    container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - as above
    shared = {"medium": "Memory", "sizeLimit": config.memory}
    pod["spec"]["volumes"] = [{"name": "shm", "emptyDir": shared}]
    final = {"containerName": "imgcls", "operator": "In", "values": FINAL_EXIT_CODES}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(config),
        "spec": {
            "schedule": config.schedule,
            "timeZone": config.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": LATEST_START_S,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "activeDeadlineSeconds": _seconds("--deadline", config.deadline),
                    "backoffLimit": config.retries,
                    "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
                    "ttlSecondsAfterFinished": _seconds("--keep", config.keep),
                    "template": pod,
                }
            },
        },
    }


def _command(config: KubernetesConfig) -> list[str]:
    if config.address:
        submit = ["python", "-m", "imgcls.cli", "submit", "--address", config.address]
        return [*submit, config.job, *config.arguments]
    return ["python", "-m", f"jobs.{config.job}", *config.arguments]


def _pod(
    config: KubernetesConfig,
    name: str,
    size: dict[str, str],
    *,
    gpus: int = 0,
    talks_to_kubernetes: bool = False,
) -> Manifest:
    """Return the template of a pod of one container, by the security standard "restricted"."""
    resources = size | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    spec: Manifest = {
        "serviceAccountName": config.service_account,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": name,
                "image": config.image,
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }
    if not talks_to_kubernetes:
        spec["automountServiceAccountToken"] = False
    if gpus:
        tolerated = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        spec["tolerations"] = [tolerated]
    return {"metadata": {"labels": {"app.kubernetes.io/name": "imgcls"}}, "spec": spec}


def _check(config: KubernetesConfig) -> None:
    limit = MAX_NAME_CHARS[config.kind]
    if not _NAME.fullmatch(config.name) or len(config.name) > limit:
        raise ConfigError(
            f"--name {config.name!r}: for a {config.kind} use 1 to {limit} lower-case letters, "
            "digits and dashes, beginning with a letter"
        )
    last = config.image.rsplit("/", 1)[-1]
    if ":" not in last or last.endswith(":latest"):
        raise ConfigError(
            f"--image {config.image}: is another image tomorrow; name a version tag or a digest"
        )
    _check_schedule(config)
    if config.kind != "cronjob" and (config.address or config.token_secret):
        raise ConfigError(f"--address and --token-secret are for cronjob, not for {config.kind}")
    if config.token_secret and not config.address:
        raise ConfigError("--token-secret opens a Ray cluster: name it by --address")
    if not _MEMORY.fullmatch(config.memory):
        raise ConfigError(f"--memory {config.memory}: write it as Kubernetes does, such as 16Gi")
    for flag, number, least in (
        ("--cpus", config.cpus, 1), ("--gpus", config.gpus, 0), ("--retries", config.retries, 0),
        ("--max-workers", config.max_workers, 1),
    ):  # fmt: skip
        if number < least:
            raise ConfigError(f"{flag} {number}: must be at least {least}")
    _check_places(config)


def _check_places(config: KubernetesConfig) -> None:
    """Refuse what is written to a pod's disk, or read from wherever a pod begins."""
    for name, mark in path_flags(JOB_CONFIGS[config.job]).items():
        flag = f"--{name.replace('_', '-')}"
        value = value_of(flag, config.arguments)
        if mark.is_written and value and "://" not in value:
            raise ConfigError(f"{flag} {value}: ends with the pod; write s3://bucket/prefix")
    for flag, value, _ in find_relative(JOB_CONFIGS[config.job], config.arguments):
        raise ConfigError(
            f"{flag} {value}: a relative path is another one in the pod; write s3://bucket/prefix, "
            "or an absolute path of the image"
        )


def _check_schedule(config: KubernetesConfig) -> None:
    if config.kind == "rayjob":
        if config.schedule:
            raise ConfigError("--schedule: a rayjob runs once; take raycronjob or cronjob")
        return
    fields = config.schedule.split()
    if len(fields) != 5 or not all(_CRON_FIELD.fullmatch(field) for field in fields):
        raise ConfigError(
            f'--schedule {config.schedule!r}: write five cron fields, such as "0 2 * * *"; a time '
            "zone goes into --time-zone"
        )
    try:
        CronSim(config.schedule, datetime.now(UTC))
    except CronSimError as error:
        raise ConfigError(
            f"--schedule {config.schedule!r}: {str(error).lower()}; the fields are minute, hour, "
            "day of the month, month and day of the week"
        ) from error
    # A machine without a database of time zones cannot tell; Kubernetes will.
    if available_timezones():
        try:
            ZoneInfo(config.time_zone)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"--time-zone {config.time_zone!r}: no such time zone; write one such as "
                "Europe/Berlin"
            ) from error


def _seconds(flag: str, text: str) -> int:
    try:
        seconds = int(parse_age(text).total_seconds())
    except ConfigError:
        seconds = 0
    if seconds <= 0:
        raise ConfigError(f"{flag} {text!r}: write a number and s, m, h or d, such as 12h")
    return seconds
