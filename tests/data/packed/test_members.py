"""Labels of images in containers: each image has its own, whatever the order of the members."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.config.source_options import ListingOptions
from imgcls.data.dataset import Dataset, freeze_split, read_dataset
from imgcls.data.label_manifest import Roles
from imgcls.errors import ConfigError, SourceError
from imgcls.sources.located import read_image
from imgcls.training.planning.fingerprint import read_versions
from tests.sources.archives import tar_bytes, zip_bytes

# The content of an image says what it is, so that a label that is shifted shows.
FILES = {f"{kind}/{n:02}.png": f"{kind} {n}".encode() for kind in ("cat", "dog") for n in range(9)}


def read(data: Path | str, **options: Any) -> Dataset:
    defaults: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    return read_dataset(str(data), **(defaults | options))


def labels(dataset: Dataset) -> dict[str, str]:
    """What each image says that it is, and what it is labelled."""
    return {read_image(sample).decode(): sample.class_name for sample in dataset.samples}


def web(*, numbers: range = range(18), suffix: str = "cls") -> dict[str, bytes]:
    """Members as WebDataset has them: images, and a label beside each."""
    found = dict[str, bytes]()
    for number in numbers:
        kind = "cat" if number % 3 else "dog"
        found[f"{number:03}.jpg"] = f"{kind} {number}".encode()
        found[f"{number:03}.{suffix}"] = kind.encode()
    return found


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def loose(tmp_path: Path) -> Dataset:
    for name, data in FILES.items():
        put(tmp_path / "loose" / name, data)
    return read(tmp_path / "loose")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.tar", tar_bytes(FILES)),
        ("dot.tar", tar_bytes({f"./{name}": data for name, data in FILES.items()})),
        ("whole.tar", tar_bytes({f"photos/{name}": data for name, data in FILES.items()})),
        ("x.tar.gz", tar_bytes(FILES, "w:gz")),
        ("x.zip", zip_bytes(FILES)),
        (
            "mac.zip",
            zip_bytes(
                {f"photos/{name}": data for name, data in FILES.items()}
                | {"__MACOSX/photos/cat/._00.png": b"x", "photos/README.txt": b"mine"}
            ),
        ),
        ("win.zip", zip_bytes({name.replace("/", "\\"): data for name, data in FILES.items()})),
    ],
)
def test_a_container_reads_as_the_folder_that_was_packed(
    name: str, data: bytes, loose: Dataset, tmp_path: Path
) -> None:
    packed = read(put(tmp_path / name, data))
    assert packed.split_digest == loose.split_digest
    assert [sample.key for sample in packed.samples] == [sample.key for sample in loose.samples]
    assert labels(packed) == labels(loose)
    # The frozen split names the members, and is read as the same data.
    frozen = put(tmp_path / "elsewhere" / "split.csv", freeze_split(packed.samples))
    again = read(frozen)
    assert again.split_digest == packed.split_digest
    assert labels(again) == labels(loose)


def test_several_containers_and_loose_files_are_one_tree(loose: Dataset, tmp_path: Path) -> None:
    names = sorted(FILES)
    root = tmp_path / "mixed"
    put(root / "a.tar", tar_bytes({name: FILES[name] for name in names[:6]}))
    put(root / "b.zip", zip_bytes({name: FILES[name] for name in names[6:12]}))
    put(root / "dog/rest.zip", zip_bytes({n[4:]: FILES[n] for n in names[12:16]}))
    for name in names[16:]:
        put(root / name, FILES[name])
    mixed = read(root)
    assert mixed.split_digest == loose.split_digest
    assert labels(mixed) == labels(loose)


def test_images_of_one_name_in_two_containers_are_two_images(tmp_path: Path) -> None:
    files = [{f"{kind}/{n}.png": f"{kind} {n} {part}".encode() for kind in ("cat", "dog")
              for n in range(5)} for part in "ab"]  # fmt: skip
    for part, each in zip("ab", files, strict=True):
        put(tmp_path / "lots" / f"{part}.tar", tar_bytes(each))
    found = read(tmp_path / "lots")
    assert len(found.samples) == len({sample.key for sample in found.samples}) == 20
    assert all(said.split()[0] == label for said, label in labels(found).items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("suffix", ["cls", "txt", "CLS"])
def test_labels_belong_to_images_by_name_in_any_order(
    suffix: str, seed: int, tmp_path: Path
) -> None:
    members = list(web(suffix=suffix).items())
    random.Random(seed).shuffle(members)
    found = read(put(tmp_path / "x.tar", tar_bytes(dict(members))))
    assert len(found.samples) == 18
    assert all(said.split()[0] == label for said, label in labels(found).items())


def test_a_member_without_label_is_named_and_shifts_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = web()
    del files["007.cls"]
    files["099.cls"] = b"dog"  # of no image
    data = put(tmp_path / "x.tar", tar_bytes(files))
    with pytest.raises(SourceError, match=r"1 images .*007\.jpg; --allow-unlabelled"):
        read(data)
    found = read(data, may_lack_labels=True)
    assert len(found.samples) == 17
    assert found.left_out.unlabelled == [f"{data}/007.jpg"]
    assert all(said.split()[0] == label for said, label in labels(found).items())
    assert "1 files of labels have no image of their name, such as 099.cls" in caplog.text


def test_two_images_of_one_key_share_their_label_and_their_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = dict[str, bytes]()
    for number in range(40):
        kind = "cat" if number % 2 else "dog"
        files[f"s{number}.cls"] = kind.encode()
        files[f"s{number}.left.png"] = f"{kind} {number} left".encode()
        files[f"s{number}.right.png"] = f"{kind} {number} right".encode()
        files[f"s{number}.npy"] = b"an array"
    found = read(put(tmp_path / "x.tar", tar_bytes(files)))
    assert len(found.samples) == 80
    assert all(said.split()[0] == label for said, label in labels(found).items())
    sides = dict[str, set[str]]()
    for sample in found.samples:
        sides.setdefault(sample.key.partition(".")[0], set()).add(sample.split)
    assert all(len(each) == 1 for each in sides.values())
    assert "40 samples" in caplog.text
    assert "--exclude" in caplog.text
    assert found.num_skipped["beside an image of its name, and not one itself"] == 40
    left = read(tmp_path / "x.tar", options=ListingOptions(exclude=("*.right.png",)))
    assert len(left.samples) == 40


def test_dots_in_names_do_not_join_images(tmp_path: Path) -> None:
    files = {}
    for number in range(12):
        kind = "cat" if number % 2 else "dog"
        files[f"cam.{number:04}.png"] = f"{kind} {number}".encode()
        files[f"cam.{number:04}.cls"] = kind.encode()
    found = read(put(tmp_path / "x.tar", tar_bytes(files)))
    assert all(said.split()[0] == label for said, label in labels(found).items())


def test_a_label_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    data = tar_bytes(web())
    more = tar_bytes({"004.cls": b"dog"})
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    path = put(tmp_path / "x.tar", data[:end] + more)
    with pytest.raises(SourceError, match=r"holds 004\.cls twice"):
        read(path)


def test_fields_of_json_are_labels_groups_and_slices(tmp_path: Path) -> None:
    files = dict[str, bytes]()
    for number in range(40):
        kind = "cat" if number % 2 else "dog"
        files[f"{number:03}.png"] = f"{kind} {number}".encode()
        fields = {"label": kind, "other": kind * 2, "patient": number // 4, "weight": -3.5}
        files[f"{number:03}.json"] = json.dumps(fields).encode()
    data = put(tmp_path / "x.tar", tar_bytes(files))
    roles = Roles.parse(group="patient", slice_by="other")
    found = read(data, roles=roles)
    assert all(said.split()[0] == label for said, label in labels(found).items())
    assert {sample.group for sample in found.samples} == {str(n) for n in range(10)}
    assert {sample.slice_name for sample in found.samples} == {"catcat", "dogdog"}
    other = read(data, options=ListingOptions(columns="label=other,group=patient"))
    assert {sample.class_name for sample in other.samples} == {"catcat", "dogdog"}
    assert len({sample.group for sample in other.samples}) == 10
    by_flag = read(data, roles=Roles.parse(label="other"))
    assert [s.class_name for s in by_flag.samples] == [s.class_name for s in other.samples]


def test_captions_beside_images_in_class_folders_are_no_labels(
    loose: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    captions = {name.replace(".png", ".txt"): b"a photo " + data for name, data in FILES.items()}
    found = read(put(tmp_path / "x.tar", tar_bytes(captions | FILES)))
    assert found.split_digest == loose.split_digest
    assert "--label txt" in caplog.text


def parquet(path: Path, rows: list[dict[str, Any]], features: Mapping[str, Any] | None) -> Path:
    table = pa.Table.from_pylist(rows)
    if features is not None:
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return path


def _rows(names: list[str] | None, numbers: range = range(30)) -> list[dict[str, Any]]:
    kinds = ["cat" if n % 3 else "dog" for n in numbers]
    return [
        {
            "image": {"bytes": f"{kind} {n}".encode(), "path": f"{n}.png"},
            "label": kind if names is None else names.index(kind),
            "patient": n // 3,
        }
        for n, kind in zip(numbers, kinds, strict=True)
    ]


def test_a_label_column_is_of_its_row_and_classes_have_their_names(tmp_path: Path) -> None:
    names = ["dog", "cat"]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    rows = _rows(names)
    rows[4]["label"], rows[7]["label"] = -1, None
    data = parquet(tmp_path / "x.parquet", rows, features)
    with pytest.raises(SourceError, match=r"2 images .* have no label"):
        read(data)
    found = read(data, may_lack_labels=True, roles=Roles.parse(group="patient"))
    assert len(found.samples) == 28
    assert found.class_names.names == ("cat", "dog")
    assert all(said.split()[0] == label for said, label in labels(found).items())
    assert len({sample.group for sample in found.samples}) == 10
    rows[4]["label"] = 2
    with pytest.raises(SourceError, match="row 5: the class 2 has no name; there are 2"):
        read(parquet(tmp_path / "y.parquet", rows, features))


def test_a_label_column_under_another_name(tmp_path: Path) -> None:
    rows = [{("Finding" if k == "label" else k): v for k, v in row.items()} for row in _rows(None)]
    data = parquet(tmp_path / "x.parquet", rows, None)
    with pytest.raises(SourceError, match=r"no column label.*--columns label=Finding"):
        read(data)
    found = read(data, options=ListingOptions(columns="label=Finding"))
    assert all(said.split()[0] == label for said, label in labels(found).items())


def test_each_parquet_file_is_read_by_its_own_header(tmp_path: Path) -> None:
    """The second has labels nowhere but in its folders; the third is like the first."""
    rows, root = _rows(None, range(36)), tmp_path / "shards"
    for row in rows[12:24]:
        row["image"]["path"] = f"{row.pop('label')}/{row['image']['path']}"
    for number, part in enumerate((rows[:12], rows[12:24], rows[24:])):
        parquet(root / f"{number}.parquet", part, None)
    found = read(root, may_lack_labels=True)
    said = {name: label for name, label in labels(found).items() if label}
    assert len(found.samples) == 36
    assert all(name.split()[0] == label for name, label in said.items())
    (root / "1.parquet").unlink()
    parquet(root / "1.parquet", [{"image": row["image"], "lot": 1} for row in _rows(None)], None)
    with pytest.raises(SourceError, match=r"1\.parquet has no column label.* columns are lot\."):
        read(root)


def test_names_of_files_tell_splits_where_there_are_two(tmp_path: Path) -> None:
    root = tmp_path / "data"
    parquet(root / "train-00000-of-00002.parquet", _rows(None, range(15)), None)
    parquet(root / "train-00001-of-00002.parquet", _rows(None, range(15, 30)), None)
    drawn = read(root)
    assert not drawn.names_splits
    assert {sample.split for sample in drawn.samples} == {"train", "val", "test"}
    parquet(root / "test-00000-of-00001.parquet", _rows(None, range(30, 39)), None)
    found = read(root)
    assert found.names_splits
    assert len(found.of_split("test")) == 9
    assert all(int(read_image(each).split()[1]) >= 30 for each in found.of_split("test"))
    put(root / "more.tar", tar_bytes(web()))
    with pytest.raises(SourceError, match=r"named like splits.*'more.tar'"):
        read(root)


def test_folders_of_containers_tell_splits(tmp_path: Path) -> None:
    put(tmp_path / "d/train/0.tar", tar_bytes(web()))
    put(tmp_path / "d/val/0.tar", tar_bytes(web(numbers=range(20, 30))))
    found = read(tmp_path / "d", test_fraction=0.0)
    assert {sample.split for sample in found.samples} == {"train", "val"}
    assert len(found.of_split("val")) == 10


def test_a_container_that_breaks_off_is_refused(tmp_path: Path) -> None:
    data = tar_bytes(FILES)
    with pytest.raises(SourceError, match=r"breaks off.*copy it again"):
        read(put(tmp_path / "x.tar", data[: len(data) // 2]))


def test_names_that_climb_stay_below_the_root(tmp_path: Path) -> None:
    files = {f"../../{name}": data for name, data in FILES.items()}
    found = read(put(tmp_path / "x.tar", tar_bytes(files)))
    assert found.class_names.names == ("cat", "dog")


def test_members_take_any_number_of_labels(tmp_path: Path) -> None:
    files = {}
    for number in range(20):
        wanted = [["a"], ["a", "b"], ["b"], []][number % 4]
        files[f"{number}.png"] = f"{number}".encode()
        files[f"{number}.json"] = json.dumps({"label": wanted}).encode()
    data = put(tmp_path / "x.tar", tar_bytes(files))
    found = read(data, multi_label=True)
    assert {len(sample.labels) for sample in found.samples} == {0, 1, 2}
    with pytest.raises(ConfigError, match="several labels per image need"):
        read(put(tmp_path / "y.tar", tar_bytes(FILES)), multi_label=True)
    del files["3.json"]
    with pytest.raises(SourceError, match=r"3\.png has no label"):
        read(put(tmp_path / "z.tar", tar_bytes(files)), multi_label=True)


def test_containers_beside_other_places_are_read_together(tmp_path: Path) -> None:
    names = sorted(FILES)
    tar = put(tmp_path / "a.tar", tar_bytes({name: FILES[name] for name in names[::2]}))
    zipped = put(tmp_path / "b.zip", zip_bytes({name: FILES[name] for name in names[1::4]}))
    for name in names[3::4]:
        put(tmp_path / "loose" / name, FILES[name])
    also = (str(zipped), str(tmp_path / "loose"))
    found = read(tar, options=ListingOptions(also=also))
    assert len(found.samples) == len(FILES)
    assert all(said.split()[0] == label for said, label in labels(found).items())
    before = read_versions(str(tar), found.samples)
    put(zipped, zip_bytes({name: FILES[name] + b" more" for name in names[1::4]}))
    again = read(tar, options=ListingOptions(also=also))
    assert read_versions(str(tar), again.samples) != before
