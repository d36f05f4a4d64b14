"""A connection to an SFTP server, as `ssh` itself would make it.

In: "[USER@]HOST[:PORT]". Out: fsspec's file system on it. Invariant: a server that is not in
known_hosts is refused. fsspec alone trusts any, and pictures of patients would travel to whoever
answers.
"""

from pathlib import Path
from typing import Any


def open_sftp(host: str, timeout_s: float) -> Any:  # noqa: ANN401  (fsspec has no types)
    """Connect.

    Args:
        host: [USER@]HOST[:PORT]; HOST may be an alias of ~/.ssh/config.
        timeout_s: for the connection and for each answer.

    Raises:
        ImportError: paramiko is not installed.
        OSError, paramiko.SSHException: no connection.
    """
    import paramiko  # type: ignore[import-untyped]  # ships no types
    from fsspec.implementations.sftp import SFTPFileSystem  # type: ignore[import-untyped]

    class Sftp(SFTPFileSystem):  # type: ignore[misc]  # no types
        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self.client.connect(
                self.host,
                timeout=timeout_s,
                banner_timeout=timeout_s,
                auth_timeout=timeout_s,
                **self.ssh_kwargs,
            )
            self.ftp = self.client.open_sftp()
            self.ftp.get_channel().settimeout(timeout_s)

    user, _, address = host.rpartition("@")
    name, _, port = address.partition(":")
    known = _ssh_config(name)
    settings: dict[str, Any] = {}
    if user or "user" in known:
        settings["username"] = user or known["user"]
    if port or "port" in known:
        settings["port"] = int(port or known["port"])
    if "identityfile" in known:
        settings["key_filename"] = [f for f in known["identityfile"] if Path(f).exists()]
    return Sftp(known.get("hostname", name), skip_instance_cache=True, **settings)


def _ssh_config(name: str) -> dict[str, Any]:
    import paramiko

    file = Path.home() / ".ssh" / "config"
    if not file.is_file():
        return {}
    found: dict[str, Any] = paramiko.SSHConfig.from_path(str(file)).lookup(name)
    return found
