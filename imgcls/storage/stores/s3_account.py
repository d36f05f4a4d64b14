"""Credentials, region and endpoint, read once, for all S3 clients alike.

In: the environment, the AWS config files, the instance's role. Out: calls of a botocore client, an
obstore store per bucket, and s3fs, which take region, endpoint and credentials from it. Invariant:
they cannot disagree, and no credential leaves this object.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.errors import AccessDeniedError
from imgcls.storage.requests.advice import ADVICE
from imgcls.storage.stores.obstore_get import (
    CLIENT_OPTIONS,
    CONNECT_TIMEOUT_S,
    NO_RETRIES,
    STALL_TIMEOUT_S,
)

if TYPE_CHECKING:
    from obstore.store import S3Credential

CREDENTIALS_WITHIN_S = 10.0
# A metadata service that is throttled by a hundred starting actors answers the second time; one
# that is not there costs 1 s for each.
METADATA_ATTEMPTS = 3
DEFAULT_REGION = "us-east-1"
MAX_CALLS = 32
MIN_RENEW_INTERVAL_S = 1.0
_CLIENT_CONFIG: Mapping[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": STALL_TIMEOUT_S,
    "max_pool_connections": MAX_CALLS,
    "retries": {"total_max_attempts": 1},
    "s3": {"addressing_style": "path"},
    # Stores other than AWS know no trailing checksums; the signature covers the body.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


class S3Account:
    """The clients of this process, built at first use; lives on the background loop.

    botocore blocks, so its calls run in threads of this object. A client that was replaced is
    closed by nobody: requests in flight may still hold it, and the last of them frees it.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._threads = ThreadPoolExecutor(MAX_CALLS, "imgcls-s3")
        self._client: Any = None
        self._credentials: Any = None
        self._ca_bundle: str | None = None
        self._stores: dict[str, Any] = {}
        self._s3fs: tuple[Any, Any] = None, None  # the credentials that it has, and itself
        self._built_s = 0.0

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages; before the first request, what is known of it."""
        if self._client is not None:
            return str(self._client.meta.endpoint_url)
        return (
            os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or "the endpoint of AWS"
        )

    async def call(self, operation: str | Callable[..., Any], request: Mapping[str, Any]) -> Any:  # noqa: ANN401  (each operation replies in its own way)
        """Call a method of the botocore client, or a function with the client first, in a thread.

        Raises:
            AccessDeniedError: there are no credentials to be had.
            Exception: whatever botocore raises.
        """
        client = await self._ready_client()

        def blocking() -> Any:  # noqa: ANN401  (as above)
            if callable(operation):
                return operation(client, **request)
            return getattr(client, operation)(**request)

        return await asyncio.get_running_loop().run_in_executor(self._threads, blocking)

    def built_obstore(self, bucket: str) -> Any:  # noqa: ANN401  (obstore is typed by stubs only)
        """Return the obstore store of a bucket if there is one already, else None."""
        return self._stores.get(bucket)

    async def obstore(self, bucket: str) -> Any:  # noqa: ANN401  (obstore is typed by stubs only)
        """Return the obstore store of a bucket, new or not."""
        from obstore.store import S3Store

        meta = (await self._ready_client()).meta
        options = CLIENT_OPTIONS.copy()
        if self._ca_bundle:
            options["root_certificate"] = Path(self._ca_bundle).read_bytes()
        store = S3Store(
            bucket,
            endpoint=meta.endpoint_url,
            aws_endpoint_url_s3=meta.endpoint_url,
            region=meta.region_name,
            virtual_hosted_style_request=False,
            client_options=options,
            retry_config=NO_RETRIES,
            credential_provider=self._provide,
        )
        self._stores[bucket] = store
        return store

    async def s3fs(self) -> Any:  # noqa: ANN401  (s3fs ships no types)
        """Return s3fs, on this loop, with the endpoint and the credentials of now."""
        from s3fs import S3FileSystem  # type: ignore[import-untyped]  # as above

        meta = (await self._ready_client()).meta
        loop = asyncio.get_running_loop()
        frozen = await loop.run_in_executor(self._threads, self._credentials.get_frozen_credentials)
        known, files = self._s3fs
        if files is None or known != frozen:
            files = S3FileSystem(
                key=frozen.access_key,
                secret=frozen.secret_key,
                token=frozen.token,
                endpoint_url=meta.endpoint_url,
                client_kwargs={"region_name": meta.region_name, "verify": self._ca_bundle},
                config_kwargs=_CLIENT_CONFIG,
                asynchronous=True,
                loop=loop,
                skip_instance_cache=True,
            )
            files.retries = 1  # ours are above
            self._s3fs = frozen, files
        return files

    async def renew(self) -> None:
        """Forget the clients, so that the next request reads environment, files and role again."""
        async with self._lock:
            if time.monotonic() - self._built_s >= MIN_RENEW_INTERVAL_S:
                self._client = None
                self._stores.clear()
                files, self._s3fs = self._s3fs[1], (None, None)
                if files is not None:
                    await files._s3creator.__aexit__(None, None, None)

    async def _ready_client(self) -> Any:  # noqa: ANN401  (botocore builds its classes at run time)
        async with self._lock:
            if self._client is None:
                loop = asyncio.get_running_loop()
                try:
                    async with asyncio.timeout(CREDENTIALS_WITHIN_S):
                        built = await loop.run_in_executor(self._threads, _build)
                except TimeoutError as error:
                    raise AccessDeniedError(
                        f"no credentials within {CREDENTIALS_WITHIN_S:.0f} s;"
                        f" {ADVICE['s3'].credentials}"
                    ) from error
                self._client, self._credentials, self._ca_bundle = built
                self._built_s = time.monotonic()
            return self._client

    async def _provide(self) -> "S3Credential":
        """Give obstore the credentials of the other client; those that expire are renewed by it."""
        credentials = self._credentials
        loop = asyncio.get_running_loop()
        frozen = await loop.run_in_executor(self._threads, credentials.get_frozen_credentials)
        expiry = getattr(credentials, "_expiry_time", None)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token or None,
            # Exactly this zone: obstore refuses every other, dateutil's UTC included.
            "expires_at": expiry.astimezone(UTC) if expiry else None,
        }


def _build() -> tuple[Any, Any, str | None]:
    """Return a new client, its credentials and the file of its certificates, by botocore's chain.

    For credentials the chain is: environment, AWS_PROFILE, web identity, container, instance role.
    """
    from botocore.config import Config  # type: ignore[import-untyped]  # botocore ships no types
    from botocore.session import Session  # type: ignore[import-untyped]  # as above

    session = Session()
    session.register_component("data_loader", _service_descriptions())
    session.set_config_variable("metadata_service_num_attempts", METADATA_ATTEMPTS)
    credentials = session.get_credentials()
    if credentials is None:
        raise AccessDeniedError(f"no credentials; {ADVICE['s3'].credentials}")
    # botocore itself knows AWS_DEFAULT_REGION only; every other SDK reads AWS_REGION first.
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
    client = session.create_client(
        "s3",
        region_name=region or DEFAULT_REGION,
        config=Config(**_CLIENT_CONFIG),
    )
    return client, credentials, session.get_config_variable("ca_bundle")


@cache
def _service_descriptions() -> Any:  # noqa: ANN401  (botocore ships no types)
    """Return botocore's loader, which keeps what it read: S3's description takes 0.1 s to read."""
    from botocore.loaders import create_loader  # type: ignore[import-untyped]  # as above

    return create_loader()
