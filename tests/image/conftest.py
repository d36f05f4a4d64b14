"""A seeded generator of bad, odd and hostile files, with what must become of each.

The statuses are decided by how a file was made, never by decoding it. Where damage may or may not
be noticed (a flipped bit in JPEG data is a valid JPEG) more than one status is right; PNG carries
checksums, there it is one.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

OK, CORRUPT, UNSUPPORTED, TOO_LARGE = "ok", "corrupt", "unsupported", "too_large"
NOT_AN_IMAGE = "not_an_image"
ANY = frozenset({OK, CORRUPT, UNSUPPORTED, TOO_LARGE})
SIZE = (48, 36)


@dataclass(frozen=True)
class HostileFile:
    name: str
    data: bytes
    statuses: frozenset[str]
    size: tuple[int, int] | None = None  # as displayed, where it must be ok


def _case(
    name: str, data: bytes, *statuses: str, size: tuple[int, int] | None = None
) -> HostileFile:
    return HostileFile(name, data, frozenset(statuses), size)


# ---- making files --------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    depth: int,
    color_type: int,
    rows: bytes,
    *,
    interlace: int = 0,
    before: bytes = b"",
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png_rows(
    rng: np.random.Generator, width: int, height: int, bits_per_pixel: int, interlace: int
) -> bytes:
    """Random filtered scanlines, of the seven passes of Adam7 where interlaced."""
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [
            (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]  # fmt: skip
    rows = b""
    for x0, y0, dx, dy in passes:
        pass_width, pass_height = -(-(width - x0) // dx), -(-(height - y0) // dy)
        for _ in range(pass_height if pass_width > 0 else 0):
            rows += bytes([rng.integers(0, 5)]) + rng.bytes(-(-pass_width * bits_per_pixel // 8))
    return rows


def pixels(rng: np.random.Generator, mode: str) -> Image.Image:
    """A smooth picture with a little noise, so that every codec has something to do."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 3)
    stack = np.stack([(x * 3 + y * 2 + 40 * c) % 256 for c in range(channels)], axis=-1)
    noisy = np.clip(stack + rng.integers(-8, 8, stack.shape), 0, 255).astype(np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(noisy).convert(mode)
    return Image.fromarray(noisy[:, :, 0] if channels == 1 else noisy, mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


BASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "jpeg": ("JPEG", "RGB", {"quality": 90}),
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg-gray": ("JPEG", "L", {}),
    "jpeg-cmyk": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGB", {}),
    "png-palette": ("PNG", "P", {}),
    "webp": ("WEBP", "RGB", {}),
    "webp-lossless": ("WEBP", "RGBA", {"lossless": True}),
    "avif": ("AVIF", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff-lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
    "tiff-jpeg": ("TIFF", "RGB", {"compression": "jpeg"}),
    "bmp": ("BMP", "RGB", {}),
    "gif": ("GIF", "P", {}),
    "pnm": ("PPM", "RGB", {}),
    "jp2": ("JPEG2000", "RGB", {}),
}


def _bases(rng: np.random.Generator) -> dict[str, bytes]:
    return {
        name: encode(pixels(rng, mode), kind, **options)
        for name, (kind, mode, options) in BASES.items()
    }


# ---- families of files ---------------------------------------------------------------------------


def valid(rng: np.random.Generator) -> Iterator[HostileFile]:
    for name, data in _bases(rng).items():
        yield _case(f"valid {name}", data, OK, size=SIZE)
        yield _case(f"trailing bytes {name}", data + rng.bytes(100), OK, size=SIZE)
    for kind, mode in [
        ("PNG", "1"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "RGBA"), ("TIFF", "1"), ("TIFF", "L"),
        ("TIFF", "LA"), ("TIFF", "RGBA"), ("TIFF", "CMYK"), ("TIFF", "P"), ("BMP", "1"), ("BMP",
        "L"),
        ("BMP", "P"), ("BMP", "RGBA"), ("GIF", "L"), ("GIF", "RGBA"), ("PPM", "1"), ("PPM", "L"),
        ("WEBP", "L"), ("AVIF", "L"), ("AVIF", "RGBA"), ("JPEG2000", "L"), ("JPEG2000", "LA"),
        ("JPEG2000", "RGBA"),
    ]:  # fmt: skip
        data = encode(pixels(rng, mode), kind)
        yield _case(f"valid {kind} {mode}", data, OK, size=SIZE)
    for color_type, depths, samples in [
        (0, (1, 2, 4, 8, 16), 1), (2, (8, 16), 3), (3, (1, 2, 4, 8), 1), (4, (8, 16), 2), (6,
        (8, 16), 4),
    ]:  # fmt: skip
        for depth in depths:
            for interlace in (0, 1):
                for width, height in ((48, 36), (1, 1), (5, 3), (3, 70)):
                    rows = png_rows(rng, width, height, depth * samples, interlace)
                    entries = 2**depth if color_type == 3 else 0
                    before = (
                        chunk(b"PLTE", rng.bytes(3 * entries)) + chunk(b"tRNS", rng.bytes(entries))
                        if color_type == 3
                        else b""
                    )
                    name = f"png {color_type} of {depth} bits, {interlace} {width}x{height}"
                    data = png(
                        width, height, depth, color_type, rows, interlace=interlace, before=before
                    )
                    yield _case(name, data, OK, size=(width, height))
    for dtype in (np.uint16, np.int32, np.float32):
        values = rng.integers(0, 60000, SIZE[::-1]).astype(dtype)
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
            data = encode(Image.fromarray(values), "TIFF", compression=compression)
            yield _case(f"tiff {np.dtype(dtype)} {compression}", data, OK, size=SIZE)


def oriented(rng: np.random.Generator) -> Iterator[HostileFile]:
    image = pixels(rng, "RGB")
    for value in [*range(11), 255, 65535]:
        exif = Image.Exif()
        exif[0x0112] = value
        turned = SIZE[::-1] if value in (5, 6, 7, 8) else SIZE
        for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
            data = encode(image, kind, exif=exif.tobytes())
            yield _case(f"exif {value} {kind}", data, OK, size=turned)
    for number in range(40):
        junk = b"Exif\x00\x00" + rng.bytes(int(rng.integers(0, 60)))
        yield _case(f"exif junk {number}", encode(image, "JPEG", exif=junk), OK, size=SIZE)
    whole = Image.Exif()
    whole[0x0112] = 6
    whole[0x010E] = "words"
    encoded = whole.tobytes()
    for number in range(20):
        cut = encoded[: 6 + number]
        yield _case(f"exif cut {number}", encode(image, "JPEG", exif=cut), OK)


# How many bytes tell a format, and how many at the end may be lost without losing a pixel.
_MAGIC_BYTES = {
    "jpeg": 3, "jpeg-progressive": 3, "jpeg-gray": 3, "jpeg-cmyk": 3, "png": 8, "png-palette": 8,
    "webp": 12, "webp-lossless": 12, "avif": 12, "tiff": 4, "tiff-lzw": 4, "tiff-deflate": 4,
    "tiff-jpeg": 4, "bmp": 15, "gif": 6, "pnm": 3, "jp2": 12,
}  # fmt: skip
_LOSABLE_BYTES = {
    "jpeg": 2, "jpeg-progressive": 2, "jpeg-gray": 2, "jpeg-cmyk": 2, "png": 12, "png-palette": 12,
    "gif": 4, "jp2": 2, "tiff-lzw": 4, "tiff-deflate": 6, "tiff-jpeg": 2,
}  # fmt: skip


def truncated(rng: np.random.Generator) -> Iterator[HostileFile]:
    for name, data in _bases(rng).items():
        magic = _MAGIC_BYTES[name]
        even = np.linspace(0, len(data) - 1, 22, dtype=int)
        cuts = {*even.tolist(), 1, magic - 1, magic, magic + 1, len(data) - 1, len(data) - 2}
        for cut in sorted(cuts):
            # What is left of a magic number may be text.
            statuses = [UNSUPPORTED, NOT_AN_IMAGE] if cut < magic else [CORRUPT]
            if cut >= len(data) - _LOSABLE_BYTES.get(name, 0):
                statuses.append(OK)
            yield _case(f"truncated {name} at {cut} of {len(data)}", data[:cut], *statuses)


def flipped(rng: np.random.Generator) -> Iterator[HostileFile]:
    for name, data in _bases(rng).items():
        for number in range(24):
            flipped_data = bytearray(data)
            last = len(data) - (12 if name.startswith("png") else 0)  # all but IEND
            position = int(rng.integers(_MAGIC_BYTES[name], last))
            flipped_data[position] ^= 1 << int(rng.integers(0, 8))
            statuses = [CORRUPT] if name.startswith("png") else sorted(ANY)
            yield _case(f"flip {number} {name} at {position}", bytes(flipped_data), *statuses)


def _patched(data: bytes, offset: int, body: bytes) -> bytes:
    return data[:offset] + body + data[offset + len(body) :]


def lying_headers(rng: np.random.Generator) -> Iterator[HostileFile]:
    bases = _bases(rng)
    rows = png_rows(rng, *SIZE, 24, 0)
    for width, height, status in [
        (60000, 60000, TOO_LARGE), (2**31 - 1, 2**31 - 1, TOO_LARGE), (50_000_001, 1, TOO_LARGE),
        (48, 37, CORRUPT), (48, 3600, CORRUPT), (0, 36, CORRUPT), (48, 0, CORRUPT),
    ]:  # fmt: skip
        yield _case(f"png claims {width}x{height}", png(width, height, 8, 2, rows), status)
    for depth, color_type in [(3, 0), (0, 0), (16, 3), (1, 2), (8, 5), (255, 255)]:
        data = png(*SIZE, depth, color_type, rows)
        yield _case(f"png depth {depth} type {color_type}", data, CORRUPT, UNSUPPORTED)
    jpeg = bases["jpeg"]
    sof = jpeg.index(b"\xff\xc0") + 5
    for height, width, status in [
        (65500, 65500, TOO_LARGE), (3600, 48, CORRUPT), (36, 4800, CORRUPT), (36, 0, CORRUPT),
    ]:  # fmt: skip
        data = _patched(jpeg, sof, struct.pack(">HH", height, width))
        yield _case(f"jpeg claims {width}x{height}", data, status)
    yield _case("jpeg of 12 bits", _patched(jpeg, sof - 1, b"\x0c"), UNSUPPORTED)
    for width, height, status in [(60000, 60000, TOO_LARGE), (48, 3600, CORRUPT), (0, 0, CORRUPT)]:
        data = _patched(bases["bmp"], 18, struct.pack("<ii", width, height))
        yield _case(f"bmp claims {width}x{height}", data, status)
    for width, height in [(65535, 65535), (10000, 10000)]:
        data = _patched(bases["gif"], 6, struct.pack("<HH", width, height))
        yield _case(f"gif claims {width}x{height}", data, TOO_LARGE)
    for header, status in [
        (b"P6 60000 60000 255\n", TOO_LARGE), (b"P6 48 3600 255\n", CORRUPT),
        (b"P6 48 36 0\n", CORRUPT),
        (b"P6 48 -36 255\n", CORRUPT), (b"P6 x y z\n", CORRUPT),
        (b"P5 999999999 9 255\n", TOO_LARGE),
        (b"P6\n", CORRUPT), (b"P2 2 2 255\n1 2 x 4", CORRUPT),
    ]:  # fmt: skip
        body = b"" if b"2 2" in header else bases["pnm"][15:]
        yield _case(f"pnm {header!r}", header + body, status)
    extended = b"RIFF" + struct.pack("<I", 1000) + b"WEBPVP8X" + struct.pack("<I", 10)
    yield _case(
        "webp claims 16M x 16M", extended + b"\x00" * 4 + b"\xff" * 6 + bytes(900), TOO_LARGE
    )
    lossless = bases["webp-lossless"]
    position = lossless.index(b"VP8L") + 9
    data = _patched(lossless, position, struct.pack("<I", 0x0FFFFFFF))
    yield _case("webp lossless claims 16384 x 16384", data, TOO_LARGE)
    jp2 = bases["jp2"]
    siz = jp2.index(b"\xff\x51")
    data = _patched(jp2, siz + 6, struct.pack(">II", 100000, 100000))
    header_box = jp2.index(b"ihdr") + 4
    data = _patched(data, header_box, struct.pack(">II", 100000, 100000))
    yield _case("jp2 claims 100000 x 100000", data, TOO_LARGE)
    for tag, value, status in [
        (256, 60000, CORRUPT),
        (256, 2_000_000, CORRUPT),  # read in bands, of which the bytes are not there
        (257, 2_000_000, CORRUPT),
        (256, 0, CORRUPT),
    ]:
        data = bytearray(bases["tiff"])
        (ifd,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, ifd)
        for entry in range(count):
            at = ifd + 2 + 12 * entry
            if struct.unpack_from("<H", data, at)[0] == tag:
                struct.pack_into("<HII", data, at + 2, 4, 1, value)
        yield _case(f"tiff tag {tag} = {value}", bytes(data), status)


def bombs(rng: np.random.Generator) -> Iterator[HostileFile]:
    rows = zlib.compress(bytes((40000 // 8 + 1) * 400), 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 1, 0, 0, 0, 0))
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    yield _case("png 1600 megapixels", signature + header + chunk(b"IDAT", rows) + end, TOO_LARGE)
    rows = png_rows(rng, *SIZE, 24, 0)
    for kind, prefix in ((b"zTXt", b"k\x00\x00"), (b"iCCP", b"k\x00\x00")):
        bomb = chunk(kind, prefix + zlib.compress(bytes(80 << 20), 9))
        yield _case(f"png {kind!r} of 80 MiB", png(*SIZE, 8, 2, rows, before=bomb), OK, CORRUPT)
    many = chunk(b"tEXt", b"k\x00v") * 20000
    yield _case("png of 20,000 texts", png(*SIZE, 8, 2, rows, before=many), OK, CORRUPT)
    for kind in ("TIFF", "GIF", "WEBP"):
        image = Image.new("L", (8000, 7000))
        options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
        # Bands of a TIFF are decoded one after the other.
        status = OK if kind == "TIFF" else TOO_LARGE
        yield _case(f"{kind} of 56 megapixels", encode(image, kind, **options), status)
    yield _case("PNG of 56 megapixels", encode(Image.new("1", (8000, 7000)), "PNG"), TOO_LARGE)
    yield _case("JPEG of 56 megapixels", encode(Image.new("L", (8000, 7000)), "JPEG"), TOO_LARGE)


def not_images(rng: np.random.Generator) -> Iterator[HostileFile]:
    unknown: list[bytes] = [
        b"", b"\x00", b"\xff\xd8", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"8BPS" + bytes(60), b"\x00\x00\x01\x00" + bytes(60), b"<svg xmlns='x'/>",
        b'<?xml version="1.0"?><svg/>', b"MZ" + bytes(200), b"ID3" + bytes(200),
        b"OggS" + bytes(200), b"\x93NUMPY" + bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(200),
        b"SIMPLE  =                    T" + bytes(200),
        b"\xff\x0a" + bytes(200),
        bytes(1000),
    ]  # fmt: skip
    others: list[bytes] = [
        b"GIF", b"BM", b"P6", b"<!DOCTYPE html><html><body>404</body></html>", b"\n\n<html>",
        b"%PDF-1.7\n", b"PK\x03\x04" + bytes(60), b"\x1f\x8b" + bytes(60),
        b'{"error": "no such key"}', b"\x7fELF" + bytes(200),
        b"\x00\x00\x00\x18ftypmp42" + bytes(200), "r\u00e9sum\u00e9".encode("utf-16"),
        b"version https://git-lfs.github.com/spec/v1\n", b"RIFF\x00\x00\x00\x00WAVE" + bytes(90),
    ]  # fmt: skip
    heic = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)
    yield _case("heic without content", heic, UNSUPPORTED, CORRUPT)  # as the extra is there
    for status, bodies in ((UNSUPPORTED, unknown), (NOT_AN_IMAGE, others)):
        for number, body in enumerate(bodies):
            yield _case(f"{status} {number} {body[:12]!r}", body, status)
    for number in range(60):
        body = b"\x01" + rng.bytes(int(rng.integers(1, 400)))
        yield _case(f"random bytes {number}", body, UNSUPPORTED)
    for name, magic in _MAGIC_BYTES.items():
        data = _bases(rng)[name]
        for number in range(4):
            body = data[:magic] + rng.bytes(300)
            yield _case(f"{name} magic, then noise {number}", body, CORRUPT, UNSUPPORTED, TOO_LARGE)


FAMILIES: tuple[Callable[[np.random.Generator], Iterator[HostileFile]], ...] = (
    valid,
    oriented,
    truncated,
    flipped,
    lying_headers,
    bombs,
    not_images,
)


@pytest.fixture(scope="session")
def hostile_files() -> list[HostileFile]:
    """More than 1,000 files; the same ones in every run."""
    return [
        case for number, make in enumerate(FAMILIES) for case in make(np.random.default_rng(number))
    ]


@pytest.fixture(scope="session")
def make_png() -> Callable[..., bytes]:
    """Return a writer of PNG files from raw scanlines."""

    def make(
        width: int, height: int, depth: int, kind: int, rows: bytes, transparent: bytes
    ) -> bytes:
        return png(width, height, depth, kind, rows, before=chunk(b"tRNS", transparent))

    return make
