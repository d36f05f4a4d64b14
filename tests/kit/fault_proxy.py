"""An HTTP proxy that fails on purpose, between any S3 client and a real server.

It forwards requests byte by byte, Host header included: the signature covers it. A request meets a
fault by a seeded chance, or because a test asked for the next ones to fail. Used by the fixture
`fault_proxy`; whole jobs can run through it, in this process or in others.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit


class Fault(StrEnum):
    SLOW_DOWN = "503 SlowDown instead of forwarding"
    INTERNAL = "500 InternalError instead of forwarding"
    DENY = "403 ExpiredToken instead of forwarding"
    REFUSE = "403 AccessDenied instead of forwarding"
    RESET = "connection reset instead of forwarding"
    LOST_REPLY = "forwarded and done, then reset instead of the reply"
    TRUNCATE = "forwarded, half of the reply's body, then closed"
    SLOW_BODY = "forwarded, the reply's body in pieces with pauses"


ALL_FAULTS = tuple(fault for fault in Fault if fault not in (Fault.DENY, Fault.REFUSE))
SLOW_BODY_S = 0.3
REPLIES = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.INTERNAL: (500, "InternalError"),
    Fault.DENY: (403, "ExpiredToken"),
    Fault.REFUSE: (403, "AccessDenied"),
}


@dataclass
class FaultProxy:
    """What the tests hold: the address, the knobs and the record.

    `stripped` headers (in lower case) of requests never reach the server: it has to check no
    signature. `fraction` of all requests whose method is in `methods` meet one of `faults`;
    `fail_next` puts certain faults before that. `requests` holds (method, target, fault or None) of
    each request.
    """

    endpoint_url: str
    fraction: float = 0.0
    faults: tuple[Fault, ...] = ALL_FAULTS
    refused_keys: tuple[str, ...] = ()  # parts of targets that are refused for good, GET and HEAD
    refusal: Fault = Fault.REFUSE
    methods: frozenset[str] = frozenset({"GET", "PUT", "HEAD", "DELETE", "POST"})
    stripped: tuple[bytes, ...] = ()
    requests: list[tuple[str, str, Fault | None]] = field(default_factory=list)
    _queued: deque[tuple[Fault, str]] = field(default_factory=deque)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def fail_next(self, *faults: Fault, method: str = "GET") -> None:
        """Let the next requests of this method meet these faults, in this order."""
        self._queued.extend((fault, method) for fault in faults)

    @property
    def num_faults(self) -> Counter[Fault]:
        return Counter(fault for _, _, fault in list(self.requests) if fault is not None)

    def choose(self, method: str, target: str) -> Fault | None:
        fault = None
        if method in ("GET", "HEAD") and any(key in target for key in self.refused_keys):
            fault = self.refusal
        elif self._queued and self._queued[0][1] == method:
            fault = self._queued.popleft()[0]
        elif method in self.methods and self._random.random() < self.fraction:
            fault = self._random.choice(self.faults)
        self.requests.append((method, target, fault))
        return fault


@contextmanager
def running_fault_proxy(upstream_url: str) -> Iterator[FaultProxy]:
    """Run a proxy before `upstream_url`, in a thread of its own, on a free port of 127.0.0.1."""
    upstream = urlsplit(upstream_url)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    proxy = FaultProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled at shutdown; asyncio would log a task that says so.
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            up = await asyncio.open_connection(upstream.hostname, upstream.port)
            try:
                while await _exchange(proxy, reader, writer, *up):
                    pass
            finally:
                up[1].close()
        writer.close()

    server = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(serve, sock=listener), loop
    ).result()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_shut_down(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _shut_down(server: asyncio.Server) -> None:
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _exchange(
    proxy: FaultProxy,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
) -> bool:
    """Handle one request; return whether the connection continues."""
    head, length, is_chunked = await _read_head(reader)
    assert not is_chunked, "no client here sends chunked bodies"
    method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
    if b"expect: 100-continue" in head.lower():
        # Answered here, else a fault would leave the client waiting for it. It is never signed.
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"\r\n".join(
            line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")
        )
    if proxy.stripped:
        head = b"\r\n".join(
            line for line in head.split(b"\r\n") if not line.lower().startswith(proxy.stripped)
        )
    body = await reader.readexactly(length)
    fault = proxy.choose(method, target)
    if fault is Fault.RESET:
        return _reset(writer)
    if fault in REPLIES:
        status, code = REPLIES[fault]
        xml = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        shown = b"" if method == "HEAD" else xml
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(xml)}\r\n\r\n".encode() + shown)
        await writer.drain()
        return True
    up_writer.write(head + body)
    await up_writer.drain()
    reply_head, reply_length, is_chunked = await _read_head(up_reader)
    has_body = method != "HEAD" and reply_head.split(b" ", 2)[1] not in (b"204", b"304")
    if not has_body:
        reply_body = b""
    elif is_chunked:
        reply_body = await _read_chunked(up_reader)
    else:
        reply_body = await up_reader.readexactly(reply_length)
    return await _reply(writer, reply_head, reply_body, fault)


async def _reply(
    writer: asyncio.StreamWriter, head: bytes, body: bytes, fault: Fault | None
) -> bool:
    if fault is Fault.LOST_REPLY or (fault is Fault.TRUNCATE and len(body) < 2):
        return _reset(writer)
    writer.write(head)
    if fault is Fault.TRUNCATE:
        writer.write(body[: len(body) // 2])
        await writer.drain()
        return False
    if fault is Fault.SLOW_BODY:
        step = max(1, len(body) // 3)
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            await writer.drain()
            await asyncio.sleep(SLOW_BODY_S / 3)
        return True
    writer.write(body)
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Close with a TCP reset rather than an orderly end."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, int, bool]:
    """Return the head of a request or reply, its Content-Length, and whether it is chunked."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    is_chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
    return head, int(headers.get(b"content-length", b"0")), is_chunked


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    """Return a chunked body as it came, framing included."""
    raw = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        raw += line + await reader.readexactly(size + 2)
        if size == 0:
            return raw
