"""Keys that SeaweedFS cannot hold (`//`, `..`, a leading `/`) but AWS can: sent as they are.

The server here is a dictionary that speaks just enough S3 and takes a key for a plain string.
"""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

import pytest

from imgcls.errors import ObjectExistsError
from imgcls.storage import resolver
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import delete, head, list_entries, list_objects, put, put_new, read
from imgcls.storage.stores import s3
from imgcls.storage.uri import join

OPAQUE = [
    "a//b",
    "/leading",
    "//two",
    "trailing/",
    "..",
    "../up",
    "a/../b",
    "a/./b",
    "./a",
    "a/.",
    "back\\slash",
    "x" * 1024,
    "é" * 512,
    "a\x01b",
    "a+b c%2B",
]
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


class DictionaryS3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", etag: str = "") -> None:
        self.send_response(status)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Last-Modified", DATE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def key(self) -> str:
        return unquote(self.path.partition("?")[0]).removeprefix("/bucket").removeprefix("/")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["If-None-Match"] and self.key() in self.objects:
            return self.reply(412)
        self.objects[self.key()] = body
        return self.reply(200, etag=f"e{len(body)}")

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            return self.list()
        if self.key() not in self.objects:
            return self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        body = self.objects[self.key()]
        return self.reply(200, body, etag=f"e{len(body)}")

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.objects.pop(self.key(), None)
        self.reply(204)

    def list(self) -> None:
        query = parse_qs(self.path.partition("?")[2])
        after = query.get("continuation-token", [""])[0]
        keys = sorted(key for key in self.objects if key > after)
        page = keys[: int(query["max-keys"][0])]
        items = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>{len(self.objects[key])}</Size>"
            f'<ETag>"e{len(self.objects[key])}"</ETag>'
            "<LastModified>2015-10-21T07:28:00Z</LastModified></Contents>"
            for key in page
        )
        more = page != keys
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self.reply(
            200,
            "<ListBucketResult><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}"
            "</ListBucketResult>".encode(),
        )


@pytest.fixture
def bucket(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handler = type("Handler", (DictionaryS3,), {"objects": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        resolver.reset()
        yield "s3://bucket"
        server.shutdown()


def test_any_key_goes_out_and_comes_back_as_it_is(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A token is a key here, and control characters break XML outside of encoded keys.
    monkeypatch.setattr(s3, "PAGE_SIZE", 100)
    bodies = {join(bucket, key): f"{i}".encode() for i, key in enumerate(OPAQUE)}
    for uri, body in bodies.items():
        put_new(uri, body)
        with pytest.raises(ObjectExistsError):
            put_new(uri, b"other")
    assert {info.uri for info in list_objects(bucket)} == set(bodies)
    for uri, body in bodies.items():
        assert (head(uri).size_bytes, read(uri)) == (len(body), body)
    requests = [GetRequest(i, uri, etag=head(uri).etag) for i, uri in enumerate(bodies)]
    assert dict(get_many(requests)) == dict(enumerate(bodies.values()))
    for uri in bodies:
        delete(uri)
    assert list(list_entries(bucket)) == []


def test_pages_follow_each_other(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 2)
    uris = [join(bucket, f"{i}") for i in range(7)]
    for uri in uris:
        put(uri, b"x")
    assert [info.uri for info in list_objects(bucket)] == uris


def test_folder_markers_are_skipped_with_a_reason(bucket: str) -> None:
    put(join(bucket, "folder/"), b"")
    put(join(bucket, "folder/image"), b"")
    entries = list(list_entries(bucket))
    assert [entry.uri for entry in entries] == [
        join(bucket, "folder/"),
        join(bucket, "folder/image"),
    ]
    assert entries[0].reason == "a folder marker"  # type: ignore[union-attr]  # that is the test
    assert [info.uri for info in list_objects(bucket)] == [join(bucket, "folder/image")]
