import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgcls.config.globs import glob_to_regex
from imgcls.errors import ConfigError, SourceError, StorageError
from imgcls.scoring.planning import listing
from imgcls.scoring.planning.listing import covers, list_source, may_hold
from imgcls.storage.objects import ObjectInfo, Skipped, put
from tests.kit.modes import let_nobody_in, not_root


def listed(source: str) -> list[str]:
    return [entry.uri for entry in list_source(source) if isinstance(entry, ObjectInfo)]


@pytest.mark.parametrize(
    ("glob", "key", "matches"),
    [
        ("night/*.png", "night/a.png", True),
        ("night/*.png", "night/lot/a.png", False),
        ("night/**/*.png", "night/lot/cam/a.png", True),
        ("night/**/*.png", "night/a.png", True),
        ("night/**", "night/lot/a", True),
        ("a.b/*", "aXb/c", False),
        ("lot[[]1]/*[?]", "lot[1]/a?", True),
        ("lot[12]/*", "lot1/a", True),
        ("lot[12]/*", "lot3/a", False),
        ("lot[!12]/*", "lot3/a", True),
        ("lot[!12]/*", "lot//a", False),
        ("cam?/*", "cam7/a", True),
        ("cam?/*", "cam/a", False),
        ("x/*.{jpg,[pP]ng}", "x/a.Png", True),
        ("x/*.{jpg,[pP]ng}", "x/a.PNG", False),
        ("{a,b/**}/*.{jpg,j{p,}eg}", "b/c/d/x.jeg", True),
        ("x/[{]*", "x/{a", True),
        ("night/*", "night/new\nline", True),
    ],
)
def test_signs_of_a_glob_mean_what_they_usually_do(glob: str, key: str, matches: bool) -> None:
    assert (glob_to_regex(glob).fullmatch(key) is not None) is matches


@pytest.mark.parametrize(
    ("source", "uri", "covered"),
    [
        ("s3://b/night", "s3://b/night/out/part", True),
        ("s3://b/night/", "s3://b/night-out/part", False),
        ("s3://b", "s3://b/out/part", True),
        ("s3://b", "s3://c/out/part", False),
        ("s3://b/**", "s3://b/out/part", True),
        ("s3://b/*", "s3://b/out/part", False),
        ("s3://b/**/*.png", "s3://b/out/part.parquet", False),
        ("images", "images/out/part", True),
        ("/data/list.csv", "/data/list.csv/x", False),
    ],
)
def test_source_covers_what_listing_it_would_list(source: str, uri: str, covered: bool) -> None:
    assert covers(source, uri) is covered


@pytest.mark.parametrize(
    ("source", "folder", "may"),
    [
        ("/data", "/data/a/", True),
        ("/data/*.png", "/data/a/", False),
        ("/data/lot-*/x.png", "/data/lot-1/", True),
        ("/data/lot-*/x.png", "/data/private/", False),
        ("/data/lot-*/x.png", "/data/lot-1/deep/", False),
        ("/data/**/*.png", "/data/a/b/c/", True),
        ("/data/a/**", "/data/b/", False),
    ],
)
def test_a_folder_may_hold_what_a_glob_lists_below_it(source: str, folder: str, may: bool) -> None:
    assert may_hold(source, folder) is may


def test_a_closed_folder_is_told_where_the_glob_goes_into_it(tmp_path: Path) -> None:
    data = let_nobody_in(tmp_path) / "data"
    for name in ["lot-1/a.png", "lot-2/a.png", "private/a.png"]:
        put(str(data / name), b"x")
    (data / "lot-2").chmod(0)
    (data / "private").chmod(0)
    with not_root():
        entries = list(list_source(f"{data}/lot-*/*.png"))
    assert [entry.uri for entry in entries] == [f"{data}/lot-1/a.png", f"{data}/lot-2/"]


def test_an_empty_disk_with_a_folder_of_its_own_is_empty(tmp_path: Path) -> None:
    (let_nobody_in(tmp_path) / "data/lost+found").mkdir(parents=True)
    (tmp_path / "data/lost+found").chmod(0)
    with not_root():
        [entry] = list_source(str(tmp_path / "data"), was_there=lambda: False)
    assert isinstance(entry, Skipped)


def test_prefix_lists_every_object_whatever_its_name(tmp_path: Path) -> None:
    names = ["a.png", "_hidden.webp", ".dot", "no-ending", "deep/er/x.tif"]
    for name in names:
        put(str(tmp_path / name), b"x")
    assert listed(str(tmp_path)) == sorted(str(tmp_path / name) for name in names)


def test_glob_lists_only_what_matches(tmp_path: Path) -> None:
    for name in ["a.png", "a.txt", "deep/b.png"]:
        put(str(tmp_path / name), b"x")
    assert listed(f"{tmp_path}/*.png") == [str(tmp_path / "a.png")]
    assert len(listed(f"{tmp_path}/**/*.png")) == 2


def test_manifest_lists_its_uris_once_and_plans_the_missing_ones(tmp_path: Path) -> None:
    put(str(tmp_path / "a.png"), b"xyz")
    rows = [str(tmp_path / "a.png"), str(tmp_path / "gone.png"), str(tmp_path / "a.png")]
    put(str(tmp_path / "list.csv"), ("uri\n" + "\n".join(rows) + "\n").encode())
    entries = list(list_source(str(tmp_path / "list.csv")))
    objects = [entry for entry in entries if isinstance(entry, ObjectInfo)]
    assert [(info.uri, info.size_bytes) for info in objects] == [(rows[0], 3), (rows[1], 0)]
    assert objects[1].etag == ""
    assert len(entries) == 3, "the second mention is skipped by name, not forgotten"


def test_manifest_without_uri_names_the_columns_it_has(tmp_path: Path) -> None:
    put(str(tmp_path / "list.csv"), b"path,label\na,b\n")
    with pytest.raises(ConfigError, match=r"uri.*path"):
        list(list_source(str(tmp_path / "list.csv")))


def test_empty_and_missing_prefix_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        list(list_source(str(tmp_path / "nowhere")))
    put(str(tmp_path / "a.png"), b"x")
    with pytest.raises(SourceError, match=r"\*\.tif"):
        list(list_source(f"{tmp_path}/*.tif"))


@pytest.mark.s3
@pytest.mark.parametrize(
    "names",
    [
        ["a", "b"],
        [f"2026/11/{day:02d}/{n}" for day in range(1, 13) for n in range(5)] + ["2026/top", "x/y"],
        [f"{n % 30}/{n}" for n in range(2500)],
        ["only/one/chain/of/folders/a"],
    ],
)
def test_parallel_listing_lists_every_key_once(names: list[str], s3_bucket: str) -> None:
    uris = [f"{s3_bucket}/night/{name}" for name in names]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, uris, [b"x"] * len(uris)))
    put(f"{s3_bucket}/nightfall/other", b"x")
    found = [entry.uri for entry in list_source(f"{s3_bucket}/night")]
    assert sorted(found) == sorted(uris)


@pytest.mark.s3
def test_listing_that_fails_in_one_folder_fails_whole(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        put(f"{s3_bucket}/{number}/x", b"x")
    real = listing.list_entries

    def fail_in_one(folder: str) -> Iterator[ObjectInfo | Skipped]:
        if folder.endswith("/7/"):
            raise StorageError("no answer")
        return real(folder)

    monkeypatch.setattr(listing, "list_entries", fail_in_one)
    with pytest.raises(StorageError, match="no answer"):
        list(list_source(s3_bucket))


@pytest.mark.s3
def test_listing_that_is_given_up_early_ends_its_threads(s3_bucket: str) -> None:
    for number in range(12):
        put(f"{s3_bucket}/{number}/x", b"x")
    entries = listing.list_parallel(s3_bucket)
    next(entries)
    entries.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("listing")]


@pytest.mark.parametrize("is_linked", [False, True])
def test_an_output_in_the_source_is_skipped_by_name_and_images_in_it_are_not(
    is_linked: bool, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    output = tmp_path / "elsewhere" if is_linked else source / "out"
    run = "_runs/night"
    own = [
        f"{run}/plan.json", f"{run}/plan/00000-ab.parquet", f"{run}/commits/00000.json",
        f"{run}/attempts/00000-cd.parquet", f"{run}/logs/x.log", f"{run}/int8-0a.zip",
        f"{run}/progress.json", "date=2026-01-01/run=night/part-00000.parquet",
        "date=2026-01-01/run=night/_manifest.json", "_lease.json",
    ]  # fmt: skip
    for name in own:
        put(str(output / name), b"x")
    images = [f"{run}/plan/a.png", "date=2026-01-01/run=night/part-00000.png", "lease.json"]
    for name in images:
        put(str(output / name), b"x")
    put(str(source / "a.png"), b"x")
    if is_linked:
        (source / "out").symlink_to(output)
    entries = list(list_source(str(source)))
    skipped = {entry.uri for entry in entries if isinstance(entry, Skipped)}
    assert skipped == {f"{source}/out/{name}" for name in own}
    found = {entry.uri for entry in entries if isinstance(entry, ObjectInfo)}
    assert found == {f"{source}/a.png", *(f"{source}/out/{name}" for name in images)}
