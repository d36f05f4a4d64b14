"""A cluster.yaml, checked before anybody pays for it: by Ray's schema, and for what one regrets.

In: the path of a cluster.yaml for `ray up`. Out: every finding in one go, each with a name, where
it is and the way out. Invariant: the file is read as Ray completes it, so that what is missing is
judged by the default that takes its place; nothing is started and no cloud is asked.
"""

import re
from collections.abc import Iterator
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement

from imgcls.errors import ConfigError
from imgcls.operations.cluster_aws import Finding, check_aws

MAX_IDLE_MINUTES = 120
_PLACEHOLDER = re.compile(r"<[^<>\n]+>")
_REQUIREMENT = re.compile(
    r"""["']([A-Za-z0-9][^"']*)["']|(?<=\s)([A-Za-z0-9._-]+(?:\[[^]]*\])?[=<>~!][^\s"';&|]*)"""
)
_SECRET = re.compile(
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|(?i:aws_?secret_?access_?key|aws_?session_?token|RAY_AUTH_TOKEN|password)\s*[=:]\s*[^\s$<]"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def check_cluster_file(path: str) -> list[Finding]:
    """Return everything in a cluster.yaml that an operator would regret; empty for a good one.

    Raises:
        ConfigError: no such file, or no YAML.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: holds no settings; the repository has an example")
    try:
        config = _completed(given)
    except Exception as error:  # noqa: BLE001 - Ray's checks raise whatever comes of a wrong file
        reason = str(getattr(error, "message", "") or error).splitlines()
        where = "/".join(str(step) for step in getattr(error, "absolute_path", ()))
        return [
            Finding(
                "ray_schema", where or path, reason[0] if reason else type(error).__name__,
                "mend this first: `ray up` refuses the file, and the rest cannot be judged",
            )
        ]  # fmt: skip
    checks = [_limits(given), _head(config), _environment(config), _start(config), _secrets(given)]
    if config["provider"].get("type") == "aws":
        checks.append(check_aws(config))
    findings = [finding for check in checks for finding in check]
    return sorted(findings, key=lambda finding: finding.is_warning)


def _completed(given: dict[str, Any]) -> dict[str, Any]:
    """Return the file with Ray's defaults, as `ray up` uses it, after Ray's own checks."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(given)
    validate_config(config)
    return config


def _limits(given: dict[str, Any]) -> Iterator[Finding]:
    if not given.get("max_workers"):
        yield Finding(
            "no_worker_limit", "max_workers", f"is {given.get('max_workers')}",
            "write how many workers you are ready to pay for at a time",
        )  # fmt: skip
    minutes = given.get("idle_timeout_minutes")
    if minutes is None or not 0 < minutes <= MAX_IDLE_MINUTES:
        yield Finding(
            "no_idle_timeout", "idle_timeout_minutes", f"is {minutes}: idle workers are paid for",
            f"write 1 to {MAX_IDLE_MINUTES}, such as 10",
        )  # fmt: skip
    for name, node in (given.get("available_node_types") or {}).items():
        if name != given.get("head_node_type") and node.get("min_workers", 0) > 0:
            yield Finding(
                "workers_without_work", f"available_node_types/{name}/min_workers",
                f"is {node['min_workers']}: so many are paid for day and night",
                "write 0; jobs start the workers that they need", is_warning=True,
            )  # fmt: skip


def _head(config: dict[str, Any]) -> Iterator[Finding]:
    where = f"available_node_types/{config['head_node_type']}"
    head = config["available_node_types"][config["head_node_type"]]
    resources = head.get("resources", {})
    if resources.get("CPU") != 0 or resources.get("GPU", 0):
        yield Finding(
            "head_runs_tasks", f"{where}/resources",
            f"is {resources}: a shard that takes the head's memory takes the cluster with it",
            'write {"CPU": 0}',
        )  # fmt: skip
    if head["node_config"].get("InstanceMarketOptions"):
        yield Finding(
            "head_on_spot", f"{where}/node_config/InstanceMarketOptions",
            "a spot head ends the cluster, its jobs and their logs at two minutes' notice",
            "leave it out for the head",
        )  # fmt: skip


def _environment(config: dict[str, Any]) -> Iterator[Finding]:
    """Compare what the nodes install with what imgcls requires and with the Ray here."""
    docker = config.get("docker") or {}
    for key in ("image", "head_image", "worker_image"):
        image = docker.get(key, "")
        if image and "@" not in image and (":" not in image or image.endswith(":latest")):
            yield Finding(
                "unpinned_image", f"docker/{key}", f"{image} is another image tomorrow",
                "name a version tag or a digest",
            )  # fmt: skip
    commands = " ".join(config["setup_commands"])
    found = {requirement.name.lower(): requirement for requirement in _requirements(commands)}
    here = metadata.version("ray")
    ray = found.get("ray")
    if ray is None or [(part.operator, part.version) for part in ray.specifier] != [("==", here)]:
        yield Finding(
            "ray_version", "setup_commands",
            f"installs {ray or 'no ray that can be read'}, and here is ray {here}: head, workers "
            "and whoever submits want the same one",
            f'write "ray[data,default,train]=={here}", or install the other version here',
        )  # fmt: skip
    for line in metadata.requires("imgcls") or []:
        wanted = Requirement(line)
        if wanted.marker is not None or wanted.name == "ray":
            continue
        pin = found.get(wanted.name.lower())
        versions = [part.version for part in pin.specifier if part.operator == "=="] if pin else []
        if not versions:
            yield Finding(
                "unpinned_environment", "setup_commands",
                f"{wanted.name} is {pin.specifier or 'at no version' if pin else 'missing'}: nodes "
                "that start on different days compute with different packages",
                f'write "{wanted.name}==VERSION" with a version that fits {wanted.specifier}',
            )  # fmt: skip
        elif not wanted.specifier.contains(versions[0]):
            yield Finding(
                "unsupported_environment", "setup_commands",
                f"{wanted.name} is {versions[0]}, imgcls needs {wanted.specifier}",
                "write a version that fits",
            )  # fmt: skip


def _requirements(commands: str) -> Iterator[Requirement]:
    for quoted, bare in _REQUIREMENT.findall(commands):
        try:
            yield Requirement(quoted or bare)
        except InvalidRequirement:
            continue


def _start(config: dict[str, Any]) -> Iterator[Finding]:
    """Look at how Ray is started: who may talk to it, and from where."""
    for kind in ("head", "worker"):
        where = f"{kind}_start_ray_commands"
        starts = [line for line in config[where] if "ray start" in line]
        if not starts or not all("RAY_AUTH_MODE=token" in line for line in starts):
            yield Finding(
                "no_token_auth", where, "who reaches the cluster may run anything on it",
                "write RAY_AUTH_MODE=token before `ray start`",
            )  # fmt: skip
        for line in starts:
            for host in re.findall(r"--dashboard-host[= ]+(\S+)", line):
                if not _is_loopback(host):
                    yield Finding(
                        "public_dashboard", where,
                        f"--dashboard-host={host}: the job API listens to the network",
                        "write --dashboard-host=127.0.0.1, and use the tunnel of `ray dashboard`",
                    )  # fmt: skip
    if not any(target.endswith(".ray/auth_token") for target in config["file_mounts"]):
        yield Finding(
            "no_token_on_nodes", "file_mounts", "the nodes get no token, and Ray refuses to start",
            "make one by `ray get-auth-token --generate`, and write "
            "~/.ray/auth_token: ~/.ray/auth_token",
        )  # fmt: skip


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("\"'")).is_loopback
    except ValueError:
        return host == "localhost"


def _secrets(given: dict[str, Any]) -> Iterator[Finding]:
    placeholders: dict[str, str] = {}  # and where each is first
    for where, text in _texts(given, ""):
        if _SECRET.search(text):
            yield Finding(
                "credentials_in_file", where, "holds what looks like a credential",
                "take it out, and away from its account: nodes use their instance profile, the "
                "token lies in ~/.ray/auth_token",
            )  # fmt: skip
        for placeholder in _PLACEHOLDER.findall(text):
            placeholders.setdefault(placeholder, where)
    for placeholder, where in placeholders.items():
        yield Finding(
            "to_fill_in", where, f"is still {placeholder}", "write your own", is_warning=True
        )


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any YAML
    if isinstance(value, dict):
        for key, item in value.items():
            # With the key: a secret tells itself by its name.
            yield from _texts(item, f"{where}/{key}".lstrip("/"))
            if isinstance(item, str):
                yield f"{where}/{key}".lstrip("/"), f"{key}: {item}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{where}/{number}")
            if isinstance(item, str):
                yield f"{where}/{number}", item
