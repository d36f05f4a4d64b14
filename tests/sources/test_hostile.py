"""Archives that are damaged, odd or meant to harm: each member accounted for, nothing written."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.errors import DecodeError, ImageTooLargeError, StorageError
from imgcls.sources import members, tar
from imgcls.sources import zip as zips
from imgcls.sources.containers import open_containers
from imgcls.sources.members import Member
from imgcls.sources.read import get_images
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.objects import head, put
from tests.sources.archives import parquet_bytes, tar_bytes, zip_bytes
from tests.sources.test_read import OPTIONS, requests

FILES = {f"{n:02d}.png": bytes([n]) * (300 + 97 * n) for n in range(12)}
Found = dict[str | None, bytes | Exception]


def read_all(folder: Path, name: str, data: bytes) -> Found:
    """Everything that is found of an archive; other files of the folder must stay away."""
    put(str(folder / name), data)
    entries = list(open_containers([head(str(folder / name))], OPTIONS))
    found = [entry for entry in entries if isinstance(entry, Member)]
    if not found:
        [entry] = entries
        assert isinstance(entry, ObjectInfo | Skipped)
        return {}
    results = dict(get_images(requests(found)))
    assert sorted(results) == list(range(len(found)))
    assert [path.name for path in folder.rglob("*")] == [name], "nothing is written"
    assert len({member.name for member in found}) == len(found)
    return {member.name: results[index] for index, member in enumerate(found)}


def is_told(body: bytes | Exception) -> bool:
    return isinstance(body, DecodeError | StorageError) and bool(str(body))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.tar", lambda: tar_bytes(FILES)),
        ("x.tgz", lambda: tar_bytes(FILES, "w:gz")),
        ("x.tar.xz", lambda: tar_bytes(FILES, "w:xz")),
        ("x.zip", lambda: zip_bytes(FILES)),
        ("x.parquet", lambda: parquet_bytes(dict(FILES))),
    ],
)
def test_of_a_truncated_archive_what_is_whole_is_read_and_the_rest_is_named(
    name: str, make: Callable[[], bytes], tmp_path: Path
) -> None:
    whole = make()
    for number in range(50):
        size = number * len(whole) // 50
        folder = tmp_path / str(number)
        folder.mkdir()
        found = read_all(folder, name, whole[:size])
        # None at all: the file itself is left to the decoders, which cannot read it either.
        whole_ones = {key: body for key, body in found.items() if isinstance(body, bytes)}
        assert whole_ones == {key: FILES[str(key)] for key in whole_ones}
        assert all(is_told(body) for key, body in found.items() if key not in whole_ones)
        if found:
            assert len(whole_ones) < len(FILES) or name.startswith("x.t"), size
            if len(whole_ones) < len(FILES):
                assert any(is_told(body) for body in found.values()), size


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.parquet", "x.tgz"])
def test_damage_in_the_middle_is_an_error_of_members_and_never_their_bytes(
    name: str, tmp_path: Path
) -> None:
    make: dict[str, Callable[[], bytes]] = {
        "x.tar": lambda: tar_bytes(FILES),
        "x.tgz": lambda: tar_bytes(FILES, "w:gz"),
        "x.zip": lambda: zip_bytes(FILES),
        "x.parquet": lambda: parquet_bytes(dict(FILES)),
    }
    whole = make[name]()
    for number in range(30):
        at = 10 + number * (len(whole) - 40) // 30
        damaged = whole[:at] + bytes(byte ^ 0x5A for byte in whole[at : at + 16]) + whole[at + 16 :]
        folder = tmp_path / str(number)
        folder.mkdir()
        found = read_all(folder, name, damaged)
        if name == "x.zip":  # of which each member has a checksum
            for key, body in found.items():
                assert is_told(body) or body == FILES.get(str(key)), (at, key)
        if found and not any(is_told(body) for body in found.values()):
            assert len(found) == len(FILES), f"damage at {at} lost a member in silence"


def test_a_zip_bomb_is_stopped_at_what_it_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zip_bytes({"bomb.png": bytes(50_000_000)})
    # It says that it is small: in its directory, and in its local header.
    small = bomb.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 1000))
    asked: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, wbits: int) -> None:
            self._inner = real(wbits)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            asked.append(max_length)
            return self._inner.decompress(data, max_length)

    monkeypatch.setattr(zips.zlib, "decompressobj", Watched)
    [body] = read_all(tmp_path, "x.zip", small).values()
    assert is_told(body)
    assert asked == [1001]


def test_what_is_too_large_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (members, tar, zips):
        monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 1000)
    for name, make in (("x.zip", zip_bytes), ("x.tar", tar_bytes)):
        folder = tmp_path / name
        folder.mkdir()
        found = read_all(folder, name, make({"big.png": bytes(1001), "a.png": b"abc"}))
        assert isinstance(found["big.png"], ImageTooLargeError)
        assert found["a.png"] == b"abc"


def test_a_tar_header_that_promises_terabytes_loses_no_member_before_it(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("huge.png")
    entry.size = 1 << 42
    data = tar_bytes(FILES).rstrip(b"\0")
    data += bytes(-len(data) % 512) + entry.tobuf(tarfile.GNU_FORMAT)
    found = read_all(tmp_path, "x.tar", data)
    assert {k: v for k, v in found.items() if isinstance(v, bytes)} == FILES
    assert is_told(found["huge.png"])


def test_odd_but_valid_archives_are_read(tmp_path: Path) -> None:
    sfx = b"#!/bin/sh\nexit\n" + zip_bytes(FILES)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # zip64, with data descriptors
        for name, data in FILES.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(data)
    stream = io.BytesIO()

    class Unseekable(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return stream.write(data)

    with zipfile.ZipFile(Unseekable(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    commented = io.BytesIO(zip_bytes(FILES))
    with zipfile.ZipFile(commented, "a") as archive:
        archive.comment = b"exported by a PACS"
    odd = {"z64.zip": buffer, "stream.zip": stream, "comment.zip": commented}
    for name, file in odd.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        assert read_all(folder, name, file.getvalue()) == FILES, name
    (tmp_path / "sfx").mkdir()
    put(str(tmp_path / "sfx" / "x.zip"), sfx)
    [entry] = open_containers([head(str(tmp_path / "sfx" / "x.zip"))], OPTIONS)
    assert isinstance(entry, ObjectInfo), "what does not begin as a zip is left to the decoders"


def test_encrypted_members_say_so(tmp_path: Path) -> None:
    data = bytearray(zip_bytes({"a.png": b"secret"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    [body] = read_all(tmp_path, "x.zip", bytes(data)).values()
    assert "encrypted" in str(body)


def test_names_that_lead_out_or_are_no_text_are_only_names(tmp_path: Path) -> None:
    names = [
        "../../evil.png",
        "/etc/evil.png",
        "C:\\evil.png",
        "a\nb.png",
        "x\x1b[31m.png",
        "é.png",
    ]
    odd = {name: str(number).encode() for number, name in enumerate(names)}
    assert read_all(tmp_path, "x.tar", tar_bytes(odd)) == odd
    latin = tar_bytes({"\udce9.png": b"1"}, errors="surrogateescape")
    (tmp_path / "latin").mkdir()
    assert list(read_all(tmp_path / "latin", "x.tar", latin)) == ["\\udce9.png"]


def test_members_of_one_name_are_all_there(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(4):
            entry = tarfile.TarInfo("a.png" if number < 3 else "a.png#2")
            entry.size = 1
            archive.addfile(entry, io.BytesIO(bytes([number])))
    found = read_all(tmp_path, "x.tar", buffer.getvalue())
    assert sorted(found.values()) == [b"\0", b"\1", b"\2", b"\3"]
    assert set(found) == {"a.png", "a.png#2", "a.png#3", "a.png#2#2"}
