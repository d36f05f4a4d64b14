"""Credentials and endpoint of Google Cloud Storage, read once, for both its clients alike.

In: the environment, the file of a service account, gcloud's login, the instance's account. Out:
replies to plain requests of the XML API, and an obstore store per bucket with the same tokens.
Invariant: the two cannot disagree, and no token leaves this object. A request is sent once.

Why no library for the requests: google-cloud-storage speaks the JSON API, whose ETags are not those
of the XML API; obstore, which reads the objects, speaks XML.
"""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import requests
from google.auth.exceptions import GoogleAuthError

from imgcls.errors import ConfigError
from imgcls.storage.requests.failures import from_google, from_requests
from imgcls.storage.stores.obstore_get import (
    CLIENT_OPTIONS,
    CONNECT_TIMEOUT_S,
    NO_RETRIES,
    STALL_TIMEOUT_S,
)

if TYPE_CHECKING:
    from obstore.store import GCSCredential

ENDPOINT = "https://storage.googleapis.com"
SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
T = TypeVar("T")
MAX_CALLS = 32
# Of an object that was stored compressed, the bytes as they are: those that its size counts.
AS_STORED = {"Accept-Encoding": "gzip"}
_SERVICE_ACCOUNT_FILES = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class GcsAccount:
    """The clients of this process, built at first use; lives on the background loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_CALLS, "imgcls-gs")
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=MAX_CALLS, max_retries=0)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)
        key = _service_account_key()
        self.endpoint = _endpoint(key)
        self._is_anonymous = bool(key.get("disable_oauth")) or (
            os.environ.get("GOOGLE_SKIP_SIGNATURE", "").lower() in ("true", "1")
        )
        self._fixed_token = os.environ.get("GOOGLE_BEARER_TOKEN", "")
        self._key = key
        self._credentials: Any = None
        self._lock = threading.Lock()

    async def call(
        self,
        method: str,
        bucket: str,
        key: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Reply:
        """Send one request of the XML API, and return its reply, whatever the status.

        Raises:
            AccessDeniedError: there are no credentials to be had.
            TransientError: no reply, or half of one.
        """
        url = f"{self.endpoint}/{quote(bucket, safe='')}"
        if key:
            url = f"{url}/{quote(key, safe='/~')}"
        if query:
            url = f"{url}?{urlencode(query, quote_via=quote)}"

        def blocking() -> Reply:
            return self._send(method, url, what, dict(headers or {}), data)

        return await self._in_thread(blocking)

    def obstore(self, bucket: str) -> Any:  # noqa: ANN401  (obstore is typed by stubs only)
        """Return a new obstore store of a bucket."""
        from obstore.store import GCSStore

        options = CLIENT_OPTIONS.copy()
        options["default_headers"] = AS_STORED
        ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE")
        if ca_bundle:
            options["root_certificate"] = Path(ca_bundle).read_bytes()
        access: dict[str, Any] = {"credential_provider": self._provide}
        if self._is_anonymous:
            access = {"skip_signature": True}
        return GCSStore(
            bucket,
            base_url=self.endpoint,
            client_options=options,
            retry_config=NO_RETRIES,
            **access,
        )

    def _send(
        self, method: str, url: str, what: str, headers: dict[str, str], data: bytes | None
    ) -> Reply:
        """Send a request from this thread."""
        headers |= AS_STORED

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            token = self._token(what)
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            return request

        try:
            request = self._session.prepare_request(
                requests.Request(method, self.endpoint, headers=headers, data=data, auth=authorize)
            )
            # Past requests' own quoting, which would unquote and normalise a key.
            request.url = url
            settings = self._session.merge_environment_settings(url, {}, True, None, None)
            with self._session.send(
                request,
                timeout=(CONNECT_TIMEOUT_S, STALL_TIMEOUT_S),
                allow_redirects=False,
                **settings,
            ) as reply:
                body = reply.raw.read(decode_content=False)
                return Reply(reply.status_code, reply.headers, body)
        except (requests.RequestException, OSError, ValueError) as error:
            raise from_requests(error, what) from error

    def _token(self, what: str) -> str:
        """Return a token that is still good, or "" where none is asked for."""
        if self._is_anonymous or self._fixed_token:
            return self._fixed_token
        from google.auth.transport.requests import Request

        try:
            with self._lock:
                if self._credentials is None:
                    self._credentials = _find_credentials(self._key)
                if not self._credentials.valid:
                    self._credentials.refresh(Request())
                return str(self._credentials.token)
        except (GoogleAuthError, OSError, ValueError) as error:
            raise from_google(error, what) from error

    async def _provide(self) -> "GCSCredential":
        """Give obstore the token of the other client."""
        token = await self._in_thread(lambda: self._token("read gs://"))
        expiry = getattr(self._credentials, "expiry", None)
        # Of google-auth's the zone is UTC and not written.
        return {"token": token, "expires_at": expiry.replace(tzinfo=UTC) if expiry else None}

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _service_account_key() -> dict[str, Any]:
    """Return the key that a variable names or holds; empty where none does."""
    text = os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY", "")
    name = "GOOGLE_SERVICE_ACCOUNT_KEY"
    for variable in _SERVICE_ACCOUNT_FILES:
        path = os.environ.get(variable)
        if path:
            name = f"{variable}={path}"
            try:
                text = Path(path).read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{name}: {error.strerror}") from error
    try:
        key = json.loads(text) if text else {}
    except ValueError as error:
        raise ConfigError(f"{name.partition('=')[0]} is not JSON: {error}") from error
    if not isinstance(key, dict):
        raise ConfigError(f"{name.partition('=')[0]} is not the key of a service account")
    return key


def _endpoint(key: Mapping[str, Any]) -> str:
    url = str(os.environ.get("GOOGLE_BASE_URL") or key.get("gcs_base_url") or ENDPOINT)
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"GOOGLE_BASE_URL={url}: write it with http:// or https://")
    return url.rstrip("/")


def _find_credentials(key: dict[str, Any]) -> Any:  # noqa: ANN401  (google-auth ships no types)
    """Return credentials of this key, or else by Google's own chain."""
    import google.auth
    from google.oauth2.service_account import Credentials

    if key:
        return Credentials.from_service_account_info(key, scopes=SCOPES)  # type: ignore[no-untyped-call]  # google-auth ships few types
    return google.auth.default(scopes=SCOPES)[0]
