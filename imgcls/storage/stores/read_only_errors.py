"""What the exceptions of fsspec's file systems mean.

In: an exception of fsspec, aiohttp or paramiko. Out: one of ours, or TransientError. Invariant:
only a server's own answer makes an object missing. fsspec says FileNotFoundError for whatever
failed over HTTP, also for a server that is down.
"""

import socket

from imgcls.errors import (
    AccessDeniedError,
    ConfigError,
    ImgclsError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.requests.failures import from_status
from imgcls.storage.requests.retry import TransientError

_MAX_REASON = 300
_SSH = (
    "keys come from the agent and from ~/.ssh, names and ports also from ~/.ssh/config, and the "
    "server must be in ~/.ssh/known_hosts (ssh-keyscan HOST, checked with its owner)"
)


def from_fsspec(error: Exception, what: str) -> ImgclsError | TransientError:
    """Say what an exception means.

    Args:
        error: as it was raised.
        what: operation and URI, for the message.
    """
    if isinstance(error, ImgclsError | TransientError):
        return error
    cause: BaseException = error.__cause__ or error
    reason = " ".join(str(cause).split())[:_MAX_REASON] or type(cause).__name__
    status = getattr(cause, "status", None)  # of aiohttp's ClientResponseError
    if isinstance(status, int) and status >= 400:
        return from_status(404 if status == 410 else status, "", f"HTTP status {status}", what)
    return _of_connection(cause, reason, what) or _of_object(cause, reason, what)


def _of_connection(cause: BaseException, reason: str, what: str) -> ImgclsError | None:
    """Say what only the user can mend; None for all else. By name: neither library is a must."""
    name = type(cause).__name__
    if name in ("ClientConnectorCertificateError", "ClientConnectorSSLError"):
        return ConfigError(f"{what}: {reason}; SSL_CERT_FILE names a CA of your own")
    if name in ("AuthenticationException", "PasswordRequiredException"):
        return AccessDeniedError(f"{what}: {reason}; {_SSH}")
    if name == "BadHostKeyException" or "not found in known_hosts" in reason:
        return ConfigError(f"{what}: {reason}; {_SSH}")
    if isinstance(cause, ImportError):
        return ConfigError(f'{what}: {reason}; install "imgcls[sftp]"')
    return None


def _of_object(cause: BaseException, reason: str, what: str) -> ImgclsError | TransientError:
    name = type(cause).__name__
    if isinstance(cause, FileNotFoundError | IsADirectoryError):
        return ObjectMissingError(f"{what}: no such object")
    if isinstance(cause, PermissionError):
        return ObjectUnreadableError(f"{what}: {reason}")
    if isinstance(cause, OSError | EOFError) or name in ("SSHException", "SFTPError"):
        never_sent = isinstance(cause, socket.gaierror | ConnectionRefusedError)
        return TransientError(f"{name}: {reason}", sent=not never_sent)
    if any("aiohttp" in kind.__module__ for kind in type(cause).__mro__):
        return TransientError(f"{name}: {reason}")
    return StorageError(f"{what}: {name}: {reason}")
