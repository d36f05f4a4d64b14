"""Members are listed and read as the loose files that they were."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.errors import ConfigError, CorruptImageError, ObjectChangedError, SourceError
from imgcls.sources import read as reading
from imgcls.sources.containers import ContainerOptions, open_containers
from imgcls.sources.members import Member, MemberRequest, Method, Place
from imgcls.sources.read import get_images
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.objects import head, put
from tests.sources.archives import parquet_bytes, tar_bytes, zip_bytes

FILES = {f"lot-{n % 3}/{n:04d}.png": bytes([n % 251]) * (n * 37 % 5000 + 1) for n in range(60)}
OPTIONS = ContainerOptions()


def zip_of_zips(method: int) -> bytes:
    names = sorted(FILES)
    halves = {"a.zip": names[:30], "sub/b.zip": names[30:]}
    inner = {n: zip_bytes({k: FILES[k] for k in part}) for n, part in halves.items()}
    return zip_bytes(inner, method)


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "x.tar": lambda: tar_bytes(FILES),
    "gnu.tar": lambda: tar_bytes({f"{'d' * 120}/{n}": d for n, d in FILES.items()}),
    "pax.tar": lambda: tar_bytes({f"ä{'d' * 300}/{n}": d for n, d in FILES.items()}, format=2),
    "x.tar.gz": lambda: tar_bytes(FILES, "w:gz"),
    "x.tgz": lambda: tar_bytes(FILES, "w:gz"),
    "x.tar.bz2": lambda: tar_bytes(FILES, "w:bz2"),
    "x.tar.xz": lambda: tar_bytes(FILES, "w:xz"),
    "x.tar.zst": lambda: pa.compress(tar_bytes(FILES), "zstd", asbytes=True),
    "deflated.zip": lambda: zip_bytes(FILES),
    "STORED.ZIP": lambda: zip_bytes(FILES, zipfile.ZIP_STORED),
    "deflated-zips.zip": lambda: zip_of_zips(zipfile.ZIP_DEFLATED),
    "stored-zips.zip": lambda: zip_of_zips(zipfile.ZIP_STORED),
    "x.parquet": lambda: parquet_bytes(FILES),
}


def listed(uri: str, options: ContainerOptions = OPTIONS) -> list[ObjectInfo | Member | Skipped]:
    return list(open_containers([head(uri)], options))


def requests(members: list[Member]) -> list[GetRequest]:
    return [
        MemberRequest(
            index,
            member.container.uri,
            member.container.etag,
            member=member.name,
            size_bytes=member.size_bytes,
            place=member.place,
        )
        for index, member in enumerate(members)
    ]


def read_all(uri: str) -> dict[str | None, bytes | Exception]:
    members = [entry for entry in listed(uri) if isinstance(entry, Member)]
    results = list(get_images(requests(members)))
    assert sorted(index for index, _ in results) == list(range(len(members)))
    assert len({member.name for member in members}) == len(members)
    return {members[index].name: body for index, body in results}


def plain(name: str | None) -> str:
    """The name without the folders that a container puts around it."""
    return "/".join(str(name).split("/")[-2:])


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_members_of_every_container_have_the_bytes_of_the_loose_files(
    name: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if store == "local" else request.getfixturevalue("s3_bucket")
    put(f"{root}/{name}", CONTAINERS[name]())
    found = read_all(f"{root}/{name}")
    assert {plain(name): data for name, data in found.items()} == FILES


def test_members_that_lie_together_are_read_in_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path / "x.tar"), tar_bytes(FILES))
    num_read = 0
    real = reading.get_many

    def counted(requests: object, **options: object) -> object:
        def each() -> object:
            nonlocal num_read
            for one in requests:  # type: ignore[attr-defined]
                num_read += 1
                yield one

        return real(each(), **options)  # type: ignore[arg-type]

    members = [entry for entry in listed(str(tmp_path / "x.tar")) if isinstance(entry, Member)]
    monkeypatch.setattr(reading, "get_many", counted)
    assert len(list(get_images(requests(members)))) == 60
    assert num_read == 1
    monkeypatch.setattr(reading, "MAX_REQUEST_BYTES", 20_000)
    assert len(list(get_images(requests(members)))) == 60
    assert 5 < num_read < 40


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_that_was_overwritten_is_changed_for_all_of_its_members(
    name: str, tmp_path: Path
) -> None:
    uri = str(tmp_path / name)
    put(uri, CONTAINERS[name]())
    members = [entry for entry in listed(uri) if isinstance(entry, Member)]
    put(uri, CONTAINERS[name]() + b"\0" * 512)
    results = list(get_images(requests(members)))
    assert len(results) == len(members)
    assert all(isinstance(body, ObjectChangedError) for _, body in results)


def test_objects_and_members_come_in_one_stream(tmp_path: Path) -> None:
    put(str(tmp_path / "x.tar"), tar_bytes(FILES))
    put(str(tmp_path / "y.png"), b"loose")
    members = [entry for entry in listed(str(tmp_path / "x.tar")) if isinstance(entry, Member)]
    mixed = [*requests(members), GetRequest(100, str(tmp_path / "y.png"))]
    found = dict(get_images(mixed))
    assert found[100] == b"loose"
    assert len(found) == 61


def test_a_file_that_is_not_what_its_name_says_stays_an_object(tmp_path: Path) -> None:
    files = {"x.tar": b"\x89PNG\r\n\x1a\n" * 64, "x.zip": b"\xff\xd8\xff", "empty.tar": b""}
    files |= {"x.parquet": b"PAR1", "empty.zip": b""}
    for name, data in files.items():
        put(str(tmp_path / name), data)
        assert listed(str(tmp_path / name)) == [head(str(tmp_path / name))]


def test_a_parquet_file_without_images_stays_an_object(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    assert listed(str(tmp_path / "x.parquet")) == [head(str(tmp_path / "x.parquet"))]


def test_an_empty_container_stays_an_object(tmp_path: Path) -> None:
    put(str(tmp_path / "x.tar"), tar_bytes({}))
    put(str(tmp_path / "x.zip"), zip_bytes({}))
    for name in ("x.tar", "x.zip"):
        assert listed(str(tmp_path / name)) == [head(str(tmp_path / name))]


def test_parquet_asks_which_column_where_that_is_not_clear(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"a", "path": "a.png"}])
    pq.write_table(pa.table({"uri": ["x"], "image": image}), tmp_path / "both.parquet")
    pq.write_table(pa.table({"one": image, "two": image}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"png": [b"abc"], "n": [1]}), tmp_path / "plain.parquet")
    for name in ("both", "two"):
        with pytest.raises(ConfigError, match="--image-column"):
            listed(str(tmp_path / f"{name}.parquet"))
    both = str(tmp_path / "both.parquet")
    assert listed(both, ContainerOptions("none")) == [head(both)]
    [member] = listed(both, ContainerOptions("image"))
    assert isinstance(member, Member)
    assert member.name == "a.png"
    with pytest.raises(ConfigError, match="n"):
        listed(str(tmp_path / "plain.parquet"), ContainerOptions("n"))
    [row] = listed(str(tmp_path / "plain.parquet"), ContainerOptions("png"))
    assert isinstance(row, Member)
    assert dict(get_images(requests([row]))) == {0: b"abc"}


def test_rows_without_bytes_and_without_paths_are_rows_all_the_same(tmp_path: Path) -> None:
    put(str(tmp_path / "x.parquet"), parquet_bytes({"a": b"1", "b": None}, with_path=False))
    found = read_all(str(tmp_path / "x.parquet"))
    assert found["00000000"] == b"1"
    assert isinstance(found["00000001"], CorruptImageError)


def test_a_compressed_tar_above_the_limit_is_named_with_its_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(str(tmp_path / "x.tgz"), tar_bytes(FILES, "w:gz"))
    [entry] = listed(str(tmp_path / "x.tgz"), ContainerOptions(max_compressed_bytes=100))
    assert isinstance(entry, Member)
    assert entry.name is None
    assert "--max-compressed-gib" in entry.place.problem
    assert "x.tgz: too_large" in caplog.text


def test_a_hard_link_has_the_bytes_of_its_target(tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_bytes({"a.png": b"abc"}))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    put(str(tmp_path / "x.tar"), buffer.getvalue())
    assert read_all(str(tmp_path / "x.tar")) == {"a.png": b"abc", "b.png": b"abc"}


def test_a_way_of_reading_that_is_not_known_is_never_taken_for_another() -> None:
    assert set(get_args(Method)) == {*reading._IN_ORDER, *reading._BY_SPAN}
    place = Place("solid", start=3)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="'solid', which this version of imgcls cannot"):
        list(get_images([MemberRequest(0, "s3://b/x.7z", "etag", None, member="a", place=place)]))
