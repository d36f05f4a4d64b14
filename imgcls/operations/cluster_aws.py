"""What an operator of a cluster on AWS would regret: open doors, rights, and instances.

In: a cluster.yaml as Ray completes it. Out: findings. Invariant: what Ray's launcher would make by
itself is judged too, as it is read in ray/autoscaler/_private/aws/config.py (2.60): a security
group with SSH open to 0.0.0.0/0, and a head with full access to EC2 and S3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_WORLD = frozenset({"0.0.0.0/0", "::/0"})
_SSH_PORT = 22


@dataclass(frozen=True)
class Finding:
    """One thing to change before `ray up`."""

    name: str
    where: str
    problem: str
    way_out: str
    is_warning: bool = False


def check_aws(config: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the parts of a cluster.yaml that only AWS has."""
    yield from _network(config)
    yield from _profiles(config)
    types: dict[str, dict[str, Any]] = config["available_node_types"]
    for name, node in types.items():
        yield from _instance(f"available_node_types/{name}/node_config", node["node_config"])
    spot = {
        name
        for name, node in types.items()
        if node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    }
    with_gpu = {name for name, node in types.items() if node.get("resources", {}).get("GPU")}
    if with_gpu and with_gpu <= spot:
        yield Finding(
            "spot_only", "available_node_types",
            f"{', '.join(sorted(with_gpu))}: a night without spot capacity does not begin",
            "add a type with the same resources and no InstanceMarketOptions", is_warning=True,
        )  # fmt: skip


def _network(config: dict[str, Any]) -> Iterator[Finding]:
    provider = config["provider"]
    rules = (provider.get("security_group") or {}).get("IpPermissions") or []
    for number, rule in enumerate(rules):
        networks = {entry.get("CidrIp") for entry in rule.get("IpRanges") or []}
        networks |= {entry.get("CidrIpv6") for entry in rule.get("Ipv6Ranges") or []}
        for network in sorted(networks & _WORLD):
            first, last = rule.get("FromPort", -1), rule.get("ToPort", -1)
            everything = str(rule.get("IpProtocol")) == "-1" or first == -1
            is_ssh = everything or first <= _SSH_PORT <= last
            yield Finding(
                "ssh_open_to_the_world" if is_ssh else "port_open_to_the_world",
                f"provider/security_group/IpPermissions/{number}",
                f"ports {'all' if everything else f'{first} to {last}'} from {network}",
                "name the network of your operators, such as 10.0.0.0/16",
            )  # fmt: skip
    without = [
        name
        for name, node in config["available_node_types"].items()
        if not node["node_config"].get("SecurityGroupIds")
        and not node["node_config"].get("NetworkInterfaces")
    ]
    if without:
        yield Finding(
            "security_group_made_by_ray", "available_node_types",
            f"{', '.join(without)}: without SecurityGroupIds Ray makes a group that opens SSH to "
            "0.0.0.0/0, also beside the rules of provider.security_group",
            "make a group of your own (imgcls/docs/cluster.md) and name it in SecurityGroupIds",
        )  # fmt: skip
    if not provider.get("use_internal_ips"):
        yield Finding(
            "public_addresses", "provider/use_internal_ips", "nodes get public addresses",
            "write true, and reach the VPC by VPN or a bastion", is_warning=True,
        )  # fmt: skip
    if provider.get("cache_stopped_nodes", True):
        yield Finding(
            "stopped_nodes_kept", "provider/cache_stopped_nodes",
            "idle nodes are stopped, not ended: their disks, and what is on them, stay and cost",
            "write false", is_warning=True,
        )  # fmt: skip


def _profiles(config: dict[str, Any]) -> Iterator[Finding]:
    profiles = {
        name: _profile(node["node_config"]) for name, node in config["available_node_types"].items()
    }
    head = profiles.pop(config["head_node_type"])
    if not head:
        yield Finding(
            "default_head_role", f"available_node_types/{config['head_node_type']}/node_config",
            "without IamInstanceProfile Ray makes a role with full access to EC2 and to every "
            "bucket of the account",
            "name a profile with the policy of imgcls/docs/cluster.md",
        )  # fmt: skip
    for name, profile in profiles.items():
        where = f"available_node_types/{name}/node_config/IamInstanceProfile"
        if not profile:
            yield Finding(
                "no_worker_profile", where, "is missing: workers cannot read a single image",
                "name a profile that reads the input and writes the output: imgcls/docs/cluster.md",
            )  # fmt: skip
        elif profile == head:
            yield Finding(
                "shared_profile", where,
                f"is the head's, {profile}: each worker may start and end instances",
                "name a profile of the workers' own",
            )  # fmt: skip


def _profile(node_config: dict[str, Any]) -> str:
    profile = node_config.get("IamInstanceProfile") or {}
    return str(profile.get("Arn") or profile.get("Name") or "")


def _instance(where: str, node_config: dict[str, Any]) -> Iterator[Finding]:
    if (node_config.get("MetadataOptions") or {}).get("HttpTokens") != "required":
        yield Finding(
            "imds_v1", f"{where}/MetadataOptions",
            "allows IMDSv1: a forged request of any process reads the node's credentials",
            "write {HttpTokens: required, HttpPutResponseHopLimit: 1}",
        )  # fmt: skip
    if str(node_config.get("ImageId") or "latest_dlami").lower() == "latest_dlami":
        yield Finding(
            "unpinned_image", f"{where}/ImageId", "is left to Ray, whose choice changes with Ray",
            "name an AMI",
        )  # fmt: skip
    disks = [device.get("Ebs") or {} for device in node_config.get("BlockDeviceMappings") or [{}]]
    if not all(disk.get("Encrypted") for disk in disks):
        yield Finding(
            "disk_not_encrypted", f"{where}/BlockDeviceMappings",
            "images and checkpoints are cached on this disk", "write Encrypted: true",
            is_warning=True,
        )  # fmt: skip
