"""How SeaweedFS is told to be a small, private S3 server.

In: its binary, a private folder, free ports. Out: command line, environment, identity file.
Invariant: every port and socket it opens is named here; what it opens by default beyond those is
switched off.
"""

import json
import os
from pathlib import Path

SERVICES = ("master", "volume", "filer", "s3")


def stray_sockets(ports: list[int]) -> list[Path]:
    """Return the sockets that a killed server leaves: no flag moves them out of /tmp."""
    grpc_ports = dict(zip(SERVICES, ports[1::2], strict=True))
    return [
        Path(f"/tmp/seaweedfs-{service}-grpc-{port}.sock")  # noqa: S108  (its choice, not ours)
        for service, port in grpc_ports.items()
    ]


def write_identities(folder: Path, access_key_id: str, secret_access_key: str) -> None:
    """Write the identity file of one administrator.

    Without any identity the server would let everybody in; with one, anyone else gets 403.
    """
    credentials = [{"accessKey": access_key_id, "secretKey": secret_access_key}]
    identity = {
        "name": "imgcls",
        "credentials": credentials,
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    path = folder / "identities.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": [identity]}))


def server_command(
    binary: Path, folder: Path, ports: list[int]
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of the server.

    Args:
        binary: the `weed` executable.
        folder: private folder for its data, sockets and log.
        ports: free ports, an HTTP and a gRPC one for each of SERVICES.
    """
    data = folder / "data"
    data.mkdir()
    flags = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "filer.localSocket": folder / "filer.sock",
        "master.telemetry": "false",
        # Every bucket is a collection with volumes of its own: many small ones, none allocated
        # ahead.
        "master.volumeSizeLimitMB": 64,
        "master.volumePreallocate": "false",
        "volume.max": 1000,
        "s3": "true",
        "s3.config": folder / "identities.json",
        "s3.localSocket": folder / "s3.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        # A missing bucket is a mistake to report, as with every other store.
        "s3.autoCreateBucket": "false",
    }
    for position, service in enumerate(SERVICES):
        flags[f"{service}.port"] = ports[2 * position]
        flags[f"{service}.port.grpc"] = ports[2 * position + 1]
    environment = {
        # It reads settings from the home folder too: let it find none. Variables AWS_* would add
        # identities.
        "HOME": str(folder),
        "PATH": os.environ.get("PATH", ""),
        "TMPDIR": str(folder),
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
    }
    command = [str(binary), "-logtostderr", "server"]
    return command + [f"-{name}={value}" for name, value in flags.items()], environment
