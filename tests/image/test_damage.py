"""No status is ok after an error that somebody swallowed: files of each format, cut and zeroed."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import CorruptImageError, DecodeError
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIZE = (96, 64)
NUM_CUTS = 60


def picture(mode: str, seed: int = 0) -> Image.Image:
    """Detail everywhere, nothing blank: a row that is lost shows."""
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "P": 3, "1": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 1}[mode]
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    waves = np.stack([128 + 60 * np.sin(x / (5 + c) + y / 7) for c in range(channels)], -1)
    values = np.clip(waves + rng.normal(0, 12, waves.shape), 1, 254).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[:, :, 0].astype(np.uint16) * 257)
    image = Image.fromarray(values[:, :, 0] if channels == 1 else values)
    return image.convert(mode)


def write(kind: str, mode: str, num_frames: int = 1, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        if num_frames > 1:
            options.update(save_all=True, append_images=[picture(mode, i) for i in range(1, 3)])
        picture(mode).save(out, kind, **options)
        return out.getvalue()

    return make


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": write("JPEG", "RGB", quality=90),
    "jpeg progressive": write("JPEG", "RGB", progressive=True),
    "jpeg gray progressive": write("JPEG", "L", progressive=True),
    "jpeg of restarts": write("JPEG", "RGB", restart_marker_rows=1),
    "jpeg cmyk": write("JPEG", "CMYK"),
    "png": write("PNG", "RGB"),
    "png palette": write("PNG", "P"),
    "png 16": write("PNG", "I;16"),
    "apng": write("PNG", "RGB", 3),
    "webp": write("WEBP", "RGB"),
    "webp lossless": write("WEBP", "RGBA", lossless=True),
    "webp animated": write("WEBP", "RGB", 3),
    "avif": write("AVIF", "RGB"),
    "avif animated": write("AVIF", "RGB", 3),
    "tiff raw": write("TIFF", "RGB"),
    "tiff 16": write("TIFF", "I;16"),
    "tiff lzw": write("TIFF", "RGB", compression="tiff_lzw"),
    "tiff deflate": write("TIFF", "L", compression="tiff_adobe_deflate"),
    "tiff packbits": write("TIFF", "RGB", compression="packbits"),
    "tiff jpeg": write("TIFF", "RGB", compression="jpeg"),
    "tiff group4": write("TIFF", "1", compression="group4"),
    "tiff group3": write("TIFF", "1", compression="group3"),
    "tiff pages": write("TIFF", "RGB", 3),
    "tiff pages lzw": write("TIFF", "RGB", 3, compression="tiff_lzw"),
    "bmp": write("BMP", "RGB"),
    "bmp palette": write("BMP", "P"),
    "gif": write("GIF", "P"),
    "gif interlaced": write("GIF", "L", interlace=1),
    "gif animated": write("GIF", "P", 3),
    "ppm": write("PPM", "RGB"),
    "pgm 16": write("PPM", "I;16"),
    "pbm": write("PPM", "1"),
    "jp2": write("JPEG2000", "RGB"),
    "jp2 lossy": write("JPEG2000", "RGB", irreversible=True, quality_layers=[20, 5]),
    "jp2 16": write("JPEG2000", "I;16"),
    "jp2 tiled": write("JPEG2000", "RGB", tile_size=(32, 32)),
}


def decoded(data: bytes, frames: Any) -> list[np.ndarray[Any, Any]] | None:
    try:
        return [image.image_HWC for image in decode(data, DecodeSpec(frames=frames))]
    except DecodeError:
        return None


@pytest.mark.parametrize("frames", ["first", "all"])
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_gives_the_whole_picture_or_none(name: str, frames: Any) -> None:
    data = FILES[name]()
    whole = decoded(data, frames)
    assert whole is not None
    cuts = {*np.linspace(20, len(data) - 1, NUM_CUTS, dtype=int), *range(len(data) - 30, len(data))}
    for cut in sorted(int(cut) for cut in cuts):
        found = decoded(data[:cut], frames)
        if found is None:
            continue
        assert len(found) == len(whole), f"{len(found)} frames of {cut} bytes of {len(data)}"
        same = all((a == b).all() for a, b in zip(found, whole, strict=True))
        assert same, f"other pixels of {cut} bytes of {len(data)}"


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk of a PNG."""
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position, position + length + 12
        position += length + 12


def with_chunk(data: bytes, kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Put a chunk behind the header of a PNG, by default with its right checksum."""
    right = zlib.crc32(kind + body)
    chunk = struct.pack(">I", len(body)) + kind + body
    return data[:33] + chunk + struct.pack(">I", checksum or right) + data[33:]


@pytest.mark.parametrize("row", [0, 1, 40, 63])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_impossible_filter_in_a_png_is_no_blank_rest(row: int, mode: str) -> None:
    values = np.asarray(picture(mode)).reshape(SIZE[1], -1)
    color_type = {"L": 0, "RGB": 2, "RGBA": 6}[mode]
    filters = [9 if y == row else 0 for y in range(SIZE[1])]
    rows = b"".join(bytes([f]) + values[y].tobytes() for y, f in enumerate(filters))
    header = struct.pack(">IIBBBBB", *SIZE, 8, color_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    with pytest.raises(CorruptImageError):
        decode(data, DecodeSpec())


IDLE = [
    (b"pHYs", bytes(9)), (b"gAMA", bytes(4)), (b"tEXt", b"Comment\x00words"),
    (b"zTXt", b"Comment\x00\x00no zlib stream"), (b"iTXt", b"Comment\x00"), (b"tIME", bytes(7)),
    (b"iCCP", b"no profile"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), IDLE)
@pytest.mark.parametrize("checksum", [None, 1])
def test_a_chunk_without_pixels_costs_no_png(
    kind: bytes, body: bytes, checksum: int | None
) -> None:
    whole = write("PNG", "P")()
    [expected] = decode(whole, DecodeSpec())
    [found] = decode(with_chunk(whole, kind, body, checksum), DecodeSpec())
    np.testing.assert_array_equal(found.image_HWC, expected.image_HWC)


def test_a_wrong_checksum_of_what_decides_is_corrupt() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = write("PNG", "P", exif=exif, transparency=3)()
    for kind, start, _ in chunks(whole):
        if kind == b"IEND":
            continue
        damaged = bytearray(whole)
        for bit in (5, 0):  # of its name: of the unknown chunks none may be dropped
            damaged[start + 4] ^= 1 << bit
            with pytest.raises(CorruptImageError):
                decode(bytes(damaged), DecodeSpec())
        damaged = bytearray(whole)
        damaged[start + 8] ^= 1
        with pytest.raises(CorruptImageError):
            decode(bytes(damaged), DecodeSpec())
    profile = with_chunk(whole, b"iCCP", b"no profile", 1)
    with pytest.raises(CorruptImageError, match="iCCP"):
        decode(profile, DecodeSpec(icc="srgb"))


@pytest.mark.parametrize("name", ["png", "png palette", "png 16"])
def test_a_png_that_lacks_only_its_end_is_whole(name: str) -> None:
    whole = FILES[name]()
    [expected] = decode(whole, DecodeSpec())
    for cut in range(1, 13):
        [found] = decode(whole[:-cut], DecodeSpec())
        np.testing.assert_array_equal(found.image_HWC, expected.image_HWC)
    with pytest.raises(CorruptImageError):
        decode(whole[:-13], DecodeSpec())


def test_orientation_is_found_on_both_sides_of_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = write("PNG", "RGB", exif=exif)()
    [expected] = decode(whole, DecodeSpec())
    assert expected.image_HWC.shape[:2] == SIZE
    [(start, end)] = [(start, end) for kind, start, end in chunks(whole) if kind == b"eXIf"]
    moved = whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:]
    [found] = decode(moved, DecodeSpec())
    np.testing.assert_array_equal(found.image_HWC, expected.image_HWC)


def smallest_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour, (0, 1, 1): five codes of one symbol, no bits per pixel."""
    bits = "000" + "".join("100" + symbol for symbol in ("1", "0", "1", "0", "0"))
    coded = int(bits[::-1], 2).to_bytes(3, "little")
    body = b"\x2f" + (width - 1 | height - 1 << 14).to_bytes(4, "little") + coded
    riff = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


@pytest.mark.parametrize("size", [(1, 1), (100, 100), (1000, 3)])
def test_the_smallest_webp_is_read(size: tuple[int, int]) -> None:
    data = smallest_webp(*size)
    assert len(data) < 30
    [found] = decode(data, DecodeSpec())
    assert found.image_HWC.shape == (*size[::-1], 3)
    assert (found.image_HWC == (0, 1, 1)).all()
    for cut in range(12, len(data)):
        with pytest.raises(CorruptImageError):
            decode(data[:cut], DecodeSpec())


@pytest.mark.parametrize("name", ["jp2", "jp2 lossy", "jp2 16", "jp2 tiled"])
def test_a_jpeg_2000_that_ends_between_two_packets_is_corrupt(name: str) -> None:
    data = FILES[name]()
    tile_parts = [at for at in range(len(data)) if data.startswith(b"\xff\x90\x00\x0a", at)]
    assert len(tile_parts) == (6 if "tiled" in name else 1)
    for at in tile_parts:
        header = data.index(b"\xff\x93", at) + 2
        for cut in (at, at + 12, header, header + 1):
            with pytest.raises(CorruptImageError):
                decode(data[:cut], DecodeSpec())
