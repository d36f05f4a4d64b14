"""cluster.yaml as it is, and as nobody should start it: the good file with one change each."""

import copy
import json
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from imgcls.cli import main
from imgcls.errors import ConfigError
from imgcls.operations.cluster_file import check_cluster_file

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "cluster.yaml"

Config = dict[str, Any]


def node(config: Config, name: str) -> Config:
    found: Config = config["available_node_types"][name]["node_config"]
    return found


def good_config() -> Config:
    """The file of the repository, for the Ray that is installed here."""
    text = re.sub(r"==[0-9.]+", f"=={metadata.version('ray')}", GOOD.read_text(), count=1)
    assert f'"ray[data,default,train]=={metadata.version("ray")}"' in text
    # Merge keys make one object of several: a change of one place must not change the others.
    return copy.deepcopy(json.loads(json.dumps(yaml.safe_load(text))))


def write(config: Config, folder: Path) -> str:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def open_rule(network: str, first: int, last: int) -> Callable[[Config], None]:
    key = "CidrIpv6" if ":" in network else "CidrIp"
    ranges = "Ipv6Ranges" if ":" in network else "IpRanges"

    def change(config: Config) -> None:
        rule = {"FromPort": first, "ToPort": last, "IpProtocol": "tcp", ranges: [{key: network}]}
        config["provider"]["security_group"] = {"GroupName": "x", "IpPermissions": [rule]}

    return change


def replace_in(key: str, old: str, new: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        before = json.dumps(config[key])
        assert old in before
        config[key] = json.loads(before.replace(old, new))

    return change


def without(*path: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for step in path[:-1]:
            config = config[step]
        del config[path[-1]]

    return change


def with_value(value: object, *path: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for step in path[:-1]:
            config = config[step]
        config[path[-1]] = value

    return change


HEAD = ("available_node_types", "head")
WORKER = ("available_node_types", "gpu_spot")
HEAD_PROFILE = {"Arn": "<arn:aws:iam::123456789012:instance-profile/imgcls-head>"}
START_HEAD, START_WORKER = "head_start_ray_commands", "worker_start_ray_commands"
BAD: dict[str, tuple[str, Callable[[Config], None]]] = {
    "ssh from everywhere": ("ssh_open_to_the_world", open_rule("0.0.0.0/0", 22, 22)),
    "ssh within a range": ("ssh_open_to_the_world", open_rule("0.0.0.0/0", 1, 1024)),
    "ssh from everywhere by IPv6": ("ssh_open_to_the_world", open_rule("::/0", 22, 22)),
    "another port from everywhere": ("port_open_to_the_world", open_rule("0.0.0.0/0", 6379, 6379)),
    "a group made by Ray": (
        "security_group_made_by_ray",
        without(*WORKER, "node_config", "SecurityGroupIds"),
    ),
    "public dashboard": ("public_dashboard", replace_in(START_HEAD, "127.0.0.1", "0.0.0.0")),
    "Ray's own start commands": ("public_dashboard", without(START_HEAD)),
    "no worker profile": (
        "no_worker_profile",
        without(*WORKER, "node_config", "IamInstanceProfile"),
    ),
    "Ray's own head role": (
        "default_head_role",
        without(*HEAD, "node_config", "IamInstanceProfile"),
    ),
    "one profile for all": (
        "shared_profile",
        with_value(HEAD_PROFILE, *WORKER, "node_config", "IamInstanceProfile"),
    ),
    "no idle timeout": ("no_idle_timeout", without("idle_timeout_minutes")),
    "a timeout of a month": ("no_idle_timeout", with_value(43_200, "idle_timeout_minutes")),
    "no limit of workers": ("no_worker_limit", without("max_workers")),
    "another Ray": ("ray_version", replace_in("setup_commands", "train]==2.", "train]==1.")),
    "any Ray": (
        "ray_version",
        replace_in("setup_commands", f"train]=={metadata.version('ray')}", "train]"),
    ),
    "an unpinned package": (
        "unpinned_environment",
        replace_in("setup_commands", "torch==2.14.1", "torch"),
    ),
    "a missing package": (
        "unpinned_environment",
        replace_in("setup_commands", "duckdb==2.0.0", "x==1"),
    ),
    "a package that is too old": (
        "unsupported_environment",
        replace_in("setup_commands", "pillow==13.0.0", "pillow==9.0.0"),
    ),
    "no image": ("unpinned_image", without(*WORKER, "node_config", "ImageId")),
    "the latest container": (
        "unpinned_image",
        with_value({"image": "ray:latest", "container_name": "ray"}, "docker"),
    ),
    "no token on the head": ("no_token_auth", replace_in(START_HEAD, "RAY_AUTH_MODE=token", "")),
    "no token on workers": ("no_token_auth", replace_in(START_WORKER, "RAY_AUTH_MODE=token", "")),
    "no token file": ("no_token_on_nodes", with_value({}, "file_mounts")),
    "IMDSv1": ("imds_v1", without(*WORKER, "node_config", "MetadataOptions")),
    "a head that works": ("head_runs_tasks", with_value({"CPU": 4}, *HEAD, "resources")),
    "a spot head": (
        "head_on_spot",
        with_value({"MarketType": "spot"}, *HEAD, "node_config", "InstanceMarketOptions"),
    ),
    "an access key": (
        "credentials_in_file",
        replace_in("setup_commands", "--quiet", "-q AKIAIOSFODNN7EXAMPLE"),
    ),
    "the token": (
        "credentials_in_file",
        replace_in(START_HEAD, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=abc"),
    ),
    "a key by its name": (
        "credentials_in_file",
        with_value({"aws_secret_access_key": "wJalrX"}, "provider", "aws_credentials"),
    ),
    "a field Ray does not know": ("ray_schema", with_value(1, *WORKER, "nonsense")),
    "no type for the head": ("ray_schema", with_value("nobody", "head_node_type")),
}


def test_the_file_of_the_repository_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", write(good_config(), tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"] is True
    assert result["refused"] == []
    assert {warning["name"] for warning in result["warnings"]} == {"to_fill_in"}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, change = BAD[case]
    config = good_config()
    change(config)
    findings = check_cluster_file(write(config, tmp_path))
    refused = {finding.name for finding in findings if not finding.is_warning}
    assert name in refused
    assert all(finding.way_out and finding.where for finding in findings)
    if case != "Ray's own start commands":  # these have no token either
        assert refused == {name}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("workers_without_work", with_value(1, *WORKER, "min_workers")),
        ("public_addresses", with_value(False, "provider", "use_internal_ips")),
        ("stopped_nodes_kept", without("provider", "cache_stopped_nodes")),
        ("spot_only", without("available_node_types", "gpu_on_demand")),
        ("disk_not_encrypted", without(*WORKER, "node_config", "BlockDeviceMappings")),
    ],
)
def test_what_may_be_meant_is_a_warning(
    name: str, change: Callable[[Config], None], tmp_path: Path
) -> None:
    config = good_config()
    change(config)
    findings = check_cluster_file(write(config, tmp_path))
    assert name in {finding.name for finding in findings}
    assert all(finding.is_warning for finding in findings)


def test_all_findings_come_in_one_go_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = good_config()
    for case in ("public dashboard", "IMDSv1", "no idle timeout", "no worker profile"):
        BAD[case][1](config)
    assert main(["doctor", write(config, tmp_path)]) == 2
    printed = capsys.readouterr()
    names = ["public_dashboard", "imds_v1", "no_idle_timeout", "no_worker_profile"]
    result = json.loads(printed.out.splitlines()[-1])
    assert sorted(found["name"] for found in result["refused"]) == sorted(names)
    for name in names:
        assert f"refused: {name}: " in printed.err
    assert "Way out: " in printed.err


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "\x00"])
def test_what_is_no_cluster_file_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cluster"):
        check_cluster_file(str(path))
    with pytest.raises(ConfigError, match="nowhere"):
        check_cluster_file(str(tmp_path / "nowhere.yaml"))


def test_cluster_installs_all_that_pyproject_requires_at_versions_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    setup = " ".join(yaml.safe_load(GOOD.read_text())["setup_commands"])
    pins = {
        pin.name: next(iter(pin.specifier)).version
        for pin in map(Requirement, re.findall(r'"([^"]+==[^"]+)"', setup))
    }
    for wanted in map(Requirement, project["dependencies"]):
        assert wanted.specifier.contains(pins[wanted.name]), wanted


def page_policies() -> tuple[list[Config], list[Config]]:
    """The statements of the two JSON policies of the operator's page: the workers', the head's."""
    text = (ROOT / "imgcls" / "docs" / "cluster.md").read_text()
    found = re.findall(r"^    (\{\"Version\".*?\}\]\})$", text, re.DOTALL | re.MULTILINE)
    workers, head = (json.loads(policy)["Statement"] for policy in found)
    return workers, head


def actions(statement: Config) -> list[str]:
    named = statement["Action"]
    return [named] if isinstance(named, str) else named


def test_workers_may_delete_nothing_but_old_checkpoints_and_start_no_instance() -> None:
    workers, _ = page_policies()
    for statement in workers:
        assert all(action.startswith("s3:") for action in actions(statement))
        assert statement["Resource"] != "*"
        if any("Delete" in action for action in actions(statement)):
            assert statement["Resource"] == "arn:aws:s3:::models/_training/*"
        if "s3:PutObject" in actions(statement):
            assert not any("incoming" in resource for resource in statement["Resource"])


def test_head_may_end_only_this_clusters_instances_and_pass_only_the_workers_role() -> None:
    _, head = page_policies()
    named = yaml.safe_load(GOOD.read_text())["cluster_name"]
    for statement in head:
        if "ec2:TerminateInstances" in actions(statement):
            tags = statement["Condition"]["StringEquals"]
            assert tags == {"ec2:ResourceTag/ray-cluster-name": named}
        if "iam:PassRole" in actions(statement):
            assert statement["Resource"].endswith(":role/imgcls-worker")
    assert not any(action.endswith(":*") for item in head for action in actions(item))
