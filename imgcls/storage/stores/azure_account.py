"""Credentials and endpoint of Azure Blob Storage, read once, for both its clients alike.

In: the environment, a managed or workload identity, `az login`. Out: calls of Microsoft's client of
a container, and an obstore store with the same credentials. Invariant: the two cannot disagree, and
no credential leaves this object. A request is sent once.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from azure.storage.blob import ContainerClient

from imgcls.errors import AccessDeniedError, ConfigError
from imgcls.storage.requests.advice import ADVICE
from imgcls.storage.stores.obstore_get import (
    CLIENT_OPTIONS,
    CONNECT_TIMEOUT_S,
    NO_RETRIES,
    STALL_TIMEOUT_S,
)

if TYPE_CHECKING:
    from obstore.store import AzureCredential

T = TypeVar("T")
# The version that obstore speaks: old enough for every emulator.
API_VERSION = "2023-11-03"
SCOPE = "https://storage.azure.com/.default"
MAX_CALLS = 32
# Of one Put Blob, https://learn.microsoft.com/rest/api/storageservices/put-blob#remarks
MAX_PUT_BYTES = 5000 * 2**20
EMULATOR_ACCOUNT = "devstoreaccount1"
# Public: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
EMULATOR_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY")
_SAS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")


class AzureAccount:
    """The clients of this process, built at first use; lives on the background loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_CALLS, "imgcls-az")
        is_emulator = _first("AZURE_STORAGE_USE_EMULATOR").lower() in ("true", "1")
        self._name = _first("AZURE_STORAGE_ACCOUNT_NAME") or EMULATOR_ACCOUNT * is_emulator
        if not self._name:
            raise AccessDeniedError(f"az://: no account is named; {ADVICE['az'].credentials}")
        self.url = _url(self._name, is_emulator=is_emulator)
        self._key = _first(*_KEYS) or EMULATOR_KEY * is_emulator
        self._sas = _first(*_SAS).removeprefix("?")
        self._identity: Any = None if self._key or self._sas else _identity()
        self._clients: dict[str, ContainerClient] = {}

    async def call(self, container: str, operation: Callable[[ContainerClient], T]) -> T:
        """Call a function with the client of a container, in a thread.

        Raises:
            Exception: whatever the client raises.
        """
        client = self._clients.get(container)
        if client is None:
            client = self._clients[container] = self._client(container)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, operation, client)

    def obstore(self, container: str) -> Any:  # noqa: ANN401  (obstore is typed by stubs only)
        """Return a new obstore store of a container."""
        from obstore.store import AzureStore

        options = CLIENT_OPTIONS.copy()
        ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE")
        if ca_bundle:
            options["root_certificate"] = Path(ca_bundle).read_bytes()
        return AzureStore(
            container,
            account_name=self._name,
            endpoint=self.url,
            # The address is in `url`: with the emulator's own switch obstore would take another.
            use_emulator=False,
            client_options=options,
            retry_config=NO_RETRIES,
            credential_provider=self._provide,
        )

    async def sign(self, container: str, key: str, what: str, expires: timedelta) -> str:
        """Return a link to a blob, with a signature of our key or of our identity's.

        Raises:
            ConfigError: all that we have is a signature of somebody else.
        """
        if self._sas:
            raise ConfigError(
                f"{what}: a shared access signature cannot sign; give the account's key"
            )
        now = datetime.now(UTC)
        until = now + expires

        def signed(client: ContainerClient) -> str:
            from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas

            signer: dict[str, Any] = {"account_key": self._key}
            if not self._key:
                service = BlobServiceClient(self.url, self._identity, api_version=API_VERSION)
                signer = {"user_delegation_key": service.get_user_delegation_key(now, until)}
            may_read = BlobSasPermissions(read=True)
            query = generate_blob_sas(
                self._name, container, key, permission=may_read, expiry=until, **signer
            )
            return f"{client.get_blob_client(key).url}?{query}"

        return await self.call(container, signed)

    def _client(self, container: str) -> ContainerClient:
        credential: Any = self._identity or self._sas
        if self._key:
            credential = {"account_name": self._name, "account_key": self._key}
        return ContainerClient(
            self.url,
            container,
            credential=credential,
            api_version=API_VERSION,
            max_single_put_size=MAX_PUT_BYTES,
            max_single_get_size=MAX_PUT_BYTES,
            connection_timeout=CONNECT_TIMEOUT_S,
            read_timeout=STALL_TIMEOUT_S,
            retry_total=0,
        )

    async def _provide(self) -> "AzureCredential":
        """Give obstore the credentials of the other client."""
        if self._key:
            return {"access_key": self._key, "expires_at": None}
        if self._sas:
            return {"sas_token": self._sas, "expires_at": None}
        loop = asyncio.get_running_loop()
        token = await loop.run_in_executor(self._threads, self._identity.get_token, SCOPE)
        expiry = datetime.fromtimestamp(token.expires_on, tz=UTC)
        return {"token": token.token, "expires_at": expiry}


def _first(*names: str) -> str:
    """Return the first of these variables that is set."""
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _url(account: str, *, is_emulator: bool) -> str:
    """Return where the account's containers are."""
    if is_emulator:
        return f"{_first('AZURITE_BLOB_STORAGE_URL') or 'http://127.0.0.1:10000'}/{account}"
    url = _first("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"AZURE_STORAGE_ENDPOINT={url}: write it with http:// or https://")
    return url.rstrip("/") or f"https://{account}.blob.core.windows.net"


def _identity() -> Any:  # noqa: ANN401  (any of its credentials)
    """Return what Microsoft's chain finds: a secret, a workload or managed identity, a login."""
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    tenant = _first("AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID")
    client = _first("AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID")
    secret = _first("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET")
    if tenant and client and secret:
        return ClientSecretCredential(tenant, client, secret)
    return DefaultAzureCredential()
