"""Manifests as kubectl would get them, against the published schemas as far as they are used.

The schemas below are written down from, not copied out of: KubeRay's ray.io/v1 types and validation
(ray-operator/apis/ray/v1 and controllers/ray/utils/validation.go, master after 1.7), and
Kubernetes' api/openapi-spec/v3/apis__batch__v1_openapi.json. They name every field that we write
and refuse any other. No manifest here was ever applied to a live cluster.
"""

import shlex
from importlib import metadata
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError, validate

from imgcls.cli import main, parse_job

STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
STRINGS = {"type": "object", "additionalProperties": STRING}

Schema = dict[str, Any]


def known(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


OBJECT_META = known("name", name=STRING, namespace=STRING, labels=STRINGS)
SECRET_REF = known("secretKeyRef", secretKeyRef=known("name key", name=STRING, key=STRING))
CONTAINER = known(
    "name",
    name=STRING, image=STRING, command=array(STRING),
    env=array(known("name", name=STRING, value=STRING, valueFrom=SECRET_REF)),
    resources=known(requests=STRINGS, limits=STRINGS),
    securityContext=known(
        allowPrivilegeEscalation=BOOLEAN, capabilities=known(drop=array(STRING))),
    volumeMounts=array(known("name mountPath", name=STRING, mountPath=STRING)),
)  # fmt: skip
POD_TEMPLATE = known(
    metadata=known(labels=STRINGS),
    spec=known(
        "containers",
        containers=array(CONTAINER), serviceAccountName=STRING, restartPolicy=one_of("Never"),
        automountServiceAccountToken=BOOLEAN,
        securityContext=known(
            runAsNonRoot=BOOLEAN, seccompProfile=known("type", type=one_of("RuntimeDefault"))),
        tolerations=array(known(key=STRING, operator=one_of("Exists"), effect=STRING)),
        volumes=array(known(
            "name", name=STRING, emptyDir=known(medium=one_of("Memory"), sizeLimit=STRING))),
    ),
)  # fmt: skip
RAY_CLUSTER_SPEC = known(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=known(mode=one_of("disabled", "token")),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=known(version=one_of("v1", "v2"), idleTimeoutSeconds=COUNT),
    headGroupSpec=known("template", rayStartParams=STRINGS, template=POD_TEMPLATE),
    workerGroupSpecs=array(known(
        "groupName minReplicas maxReplicas template",
        groupName=STRING, replicas=COUNT, minReplicas=COUNT, maxReplicas=POSITIVE,
        rayStartParams=STRINGS, template=POD_TEMPLATE,
    )),
)  # fmt: skip
RAY_JOB_SPEC = known(
    entrypoint=STRING, activeDeadlineSeconds=POSITIVE, backoffLimit=COUNT,
    shutdownAfterJobFinishes=BOOLEAN, ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=POD_TEMPLATE, rayClusterSpec=RAY_CLUSTER_SPEC,
)  # fmt: skip
EXIT_CODES = known(
    "operator values", containerName=STRING, operator=one_of("In", "NotIn"), values=array(INTEGER)
)
JOB_SPEC = known(
    "template",
    activeDeadlineSeconds=POSITIVE, backoffLimit=COUNT, ttlSecondsAfterFinished=COUNT,
    podFailurePolicy=known(
        "rules", rules=array(known("action", action=one_of("FailJob"), onExitCodes=EXIT_CODES))),
    template=POD_TEMPLATE,
)  # fmt: skip
SPECS = {
    "rayjob": ("ray.io/v1", "RayJob", RAY_JOB_SPEC),
    "raycronjob": ("ray.io/v1", "RayCronJob", known(
        "schedule jobTemplate",
        schedule=STRING, timeZone=STRING, suspend=BOOLEAN, jobTemplate=RAY_JOB_SPEC)),
    "cronjob": ("batch/v1", "CronJob", known(
        "schedule jobTemplate",
        schedule=STRING, timeZone=STRING, concurrencyPolicy=one_of("Allow", "Forbid", "Replace"),
        startingDeadlineSeconds=COUNT, successfulJobsHistoryLimit=COUNT,
        failedJobsHistoryLimit=COUNT, jobTemplate=known(spec=JOB_SPEC))),
}  # fmt: skip

NIGHT = ["nightly", "--source", "s3://scans/in box", "--model", "s3://models/chest@production"]
NIGHT += ["--output", "s3://scans/predictions"]
FLAGS = ["--name", "chest-nightly", "--image", "registry.example.com/imgcls:0.1.0"]
FLAGS += ["--service-account", "imgcls"]
WHEN = ["--schedule", "0 2 * * *", "--time-zone", "Europe/Berlin"]


def written(capsys: pytest.CaptureFixture[str], kind: str, *flags: str) -> dict[str, Any]:
    when = [] if kind == "rayjob" else WHEN
    assert main(["kubernetes", kind, *FLAGS, *when, *flags, *NIGHT]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("flags", [[], ["--gpus", "1", "--namespace", "scans", "--retries", "0"]])
def test_manifest_fits_the_published_schema(
    kind: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    api_version, name, spec = SPECS[kind]
    schema = known(
        "apiVersion kind metadata spec",
        apiVersion=one_of(api_version), kind=one_of(name), metadata=OBJECT_META, spec=spec,
    )  # fmt: skip
    found = written(capsys, kind, *flags)
    validate(found, schema)
    found["spec"]["nonsense"] = 1
    with pytest.raises(ValidationError, match="nonsense"):
        validate(found, schema)


@pytest.mark.parametrize("kind", SPECS)
def test_manifest_runs_the_flags_that_were_given(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = written(capsys, kind)["spec"]
    if kind == "cronjob":
        command = containers(spec["jobTemplate"]["spec"]["template"])[0]["command"]
    else:
        command = shlex.split((spec if kind == "rayjob" else spec["jobTemplate"])["entrypoint"])
    assert command[:3] == ["python", "-m", "jobs.nightly"]
    assert parse_job("nightly", command[3:]) == parse_job("nightly", NIGHT[1:])


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = template["spec"]["containers"]
    return found


def pods(value: object) -> list[dict[str, Any]]:
    """Return every pod template in a manifest."""
    if not isinstance(value, dict):
        return [pod for item in value for pod in pods(item)] if isinstance(value, list) else []
    own = [value] if "containers" in value.get("spec", {}) else []
    return own + [pod for item in value.values() for pod in pods(item)]


@pytest.mark.parametrize("kind", SPECS)
def test_every_pod_has_the_account_limits_and_no_privileges(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pods(written(capsys, kind, "--gpus", "2"))
    assert len(found) == (1 if kind == "cronjob" else 3)
    for pod in found:
        [container] = containers(pod)
        assert pod["spec"]["serviceAccountName"] == "imgcls"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    with_gpu = [
        pod for pod in found if "nvidia.com/gpu" in containers(pod)[0]["resources"]["limits"]
    ]
    assert len(with_gpu) == 1


def test_cron_job_forbids_overlap_and_starts_again_only_what_can_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = written(capsys, "cronjob", "--deadline", "6h")["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"]) == ("Forbid", "Europe/Berlin")
    job = spec["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] == 6 * 3600
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 6], "5, stopped, is started again"
    assert containers(job["template"])[0]["name"] == rule["onExitCodes"]["containerName"]


def test_ray_job_head_runs_no_tasks_workers_come_with_work_and_token_auth_is_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = written(capsys, "rayjob", "--max-workers", "7")["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    [head] = containers(cluster["headGroupSpec"]["template"])
    assert head["env"] == [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}], "nothing is reported"
    [workers] = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (0, 7)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == metadata.version("ray")
    assert spec["shutdownAfterJobFinishes"] is True, "ttlSecondsAfterFinished needs it"


def test_cron_job_for_a_standing_cluster_submits_with_a_token_it_does_not_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = "http://ray-head-svc:8265"
    flags = ["--address", address, "--token-secret", "ray-token"]
    template = written(capsys, "cronjob", *flags)["spec"]["jobTemplate"]["spec"]["template"]
    [container] = containers(template)
    assert container["command"][:6] == [
        "python", "-m", "imgcls.cli", "submit", "--address", address,
    ]  # fmt: skip
    assert container["command"][6:] == NIGHT
    [token] = [entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "ray-token", "key": "auth_token"}}
    assert "value" not in token


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("rayjob", ["--name", "Chest"], "--name 'Chest'"),
        ("rayjob", ["--name", "a" * 48], "1 to 47"),
        ("cronjob", [*WHEN, "--name", "a" * 53], "1 to 52"),
        ("rayjob", ["--image", "imgcls"], "--image imgcls"),
        ("rayjob", ["--image", "localhost:5000/imgcls"], "version tag"),
        ("rayjob", ["--image", "imgcls:latest"], "version tag"),
        ("rayjob", WHEN, "runs once"),
        ("cronjob", [], "--schedule ''"),
        ("raycronjob", ["--schedule", "TZ=UTC 0 2 * * *"], "five cron fields"),
        ("cronjob", ["--schedule", "99 99 * * *"], "bad minute"),
        ("raycronjob", ["--schedule", "0 2 31 2 *"], "bad day-of-month"),
        ("cronjob", [*WHEN, "--time-zone", "Europe/Atlantis"], "Europe/Atlantis"),
        ("rayjob", ["--deadline", "soon"], "--deadline 'soon'"),
        ("rayjob", ["--memory", "much"], "--memory much"),
        ("rayjob", ["--max-workers", "0"], "--max-workers 0"),
        ("rayjob", ["--address", "http://x:8265"], "for cronjob"),
        ("cronjob", [*WHEN, "--token-secret", "x"], "--address"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(
    kind: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kubernetes", kind, *FLAGS, *flags, *NIGHT]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert "apiVersion" not in printed.out


def test_job_flags_are_checked_and_local_outputs_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["kubernetes", "rayjob", *FLAGS, "nightly", "--sorce", "x"])
    assert ended.value.code == 2
    assert "did you mean --source?" in capsys.readouterr().err
    assert main(["kubernetes", "rayjob", *FLAGS, *NIGHT[:-1], "/tmp/out"]) == 2  # noqa: S108 - refused
    assert "ends with the pod" in capsys.readouterr().err
