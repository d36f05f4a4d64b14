from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.data.class_names import ClassNames
from imgcls.data.dataset import Dataset, freeze_split, read_dataset
from imgcls.data.label_manifest import Roles
from imgcls.errors import ConfigError, SourceError
from imgcls.storage import objects

MakeTree = Callable[..., str]


def _read(data: str, **options: object) -> Dataset:
    defaults: dict[str, object] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    return read_dataset(data, **(defaults | options))  # type: ignore[arg-type]  (mixed options)


def _keys(*names: str, count: int = 10) -> list[str]:
    return [f"{name}/{i}.png" for name in names for i in range(count)]


def _write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_tree_gives_classes_and_every_split(make_tree: MakeTree) -> None:
    data = make_tree(*_keys("b", "a", count=30), "a/deep/er/x.png")
    dataset = _read(data)
    assert dataset.class_names.names == ("a", "b")
    assert len(dataset.samples) == 61
    splits = [dataset.of_split(split) for split in ("train", "val", "test")]
    assert sum(map(len, splits)) == len(dataset.of_split("all")) == 61
    assert all({sample.label for sample in part} == {0, 1} for part in splits)
    deep = next(sample for sample in dataset.samples if sample.key == "a/deep/er/x.png")
    assert (deep.uri, deep.class_name) == (f"{data}/a/deep/er/x.png", "a")
    assert sum(sum(by_class.values()) for by_class in dataset.counts().values()) == 61


def test_split_is_the_same_wherever_the_data_lies(make_tree: MakeTree) -> None:
    here = _read(make_tree(*_keys("a", "b"), name="here"))
    there = _read(make_tree(*_keys("a", "b"), name="there"))
    assert here.split_digest == there.split_digest
    assert here.split_digest != _read(make_tree(*_keys("a", "b")), seed=1).split_digest


def test_split_does_not_move_when_images_are_added(make_tree: MakeTree) -> None:
    before = _read(make_tree(*_keys("a", "b", count=80)))
    after = _read(make_tree(*_keys("a", "b", count=120), *_keys("c", count=40)))
    side = {sample.key: sample.split for sample in after.samples}
    assert all(side[sample.key] == sample.split for sample in before.samples)


def test_named_split_folders_are_kept(make_tree: MakeTree) -> None:
    data = make_tree(
        *(f"{s}/{key}" for s in ("train", "val", "test") for key in _keys("a", "b", count=2))
    )
    dataset = _read(data)
    assert all(sample.key.startswith(sample.split) for sample in dataset.samples)
    assert dataset.class_names.names == ("a", "b")


def test_missing_val_is_drawn_from_train_and_test_is_left_alone(make_tree: MakeTree) -> None:
    data = make_tree(*(f"{s}/{key}" for s in ("train", "test") for key in _keys("a", "b")))
    dataset = _read(data)
    assert {s.key.split("/")[0] for s in dataset.of_split("val")} == {"train"}
    assert len(dataset.of_split("test")) == 20
    assert all(s.key.startswith("test") for s in dataset.of_split("test"))


def test_class_may_be_called_train(make_tree: MakeTree) -> None:
    dataset = _read(make_tree(*_keys("train", "bus")))
    assert dataset.class_names.names == ("bus", "train")


def test_litter_is_left_out_and_counted(make_tree: MakeTree, tmp_path: Path) -> None:
    data = make_tree(*_keys("a", "b"), "a/Thumbs.db", "b/.DS_Store", "b/x/.DS_Store", "README.md")
    dataset = _read(data)
    assert len(dataset.samples) == 20
    assert sum(dataset.num_skipped.values()) == 4


def test_file_that_is_no_image_by_content_stays(make_tree: MakeTree) -> None:
    assert len(_read(make_tree(*_keys("a", "b"), "a/notes.html")).samples) == 21


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "missing, or it is empty"),
        (["Thumbs.db"], "missing, or it is empty"),
        (_keys("a"), "one class only, 'a'"),
        ([*_keys("a", "b"), "stray.png"], "no class folder: 'stray.png'"),
        ([*_keys("a", "b"), "c/Thumbs.db"], "without images.*'c'"),
        (_keys("Cat", "cat", "dog"), "only in case"),
        ([*_keys("a"), "b/1.png", "b/2.png"], "too few images.*'b', the smallest with 2"),
        (["train/a/1.png", "train/b/1.png", "other/x.png"], "beside others"),
        (["train/a/1.png", "test/a/1.png", "test/b/1.png"], "without an image in train: 'b'"),
        (["train/a/1.png", "train/b/1.png", "val/stray.png"], "beside others"),
    ],
)
def test_unusable_tree_is_refused(make_tree: MakeTree, keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _read(make_tree(*keys))


def test_empty_class_folder_is_refused_by_name(make_tree: MakeTree, tmp_path: Path) -> None:
    data = make_tree(*_keys("a", "b"))
    (tmp_path / "data" / ".hidden").mkdir()
    assert len(_read(data).samples) == 20
    (tmp_path / "data" / "c").mkdir()
    with pytest.raises(SourceError, match=r"without images.*'c'"):
        _read(data)


@pytest.mark.s3
def test_tree_in_a_bucket_reads_as_on_disk(s3_bucket: str, make_tree: MakeTree) -> None:
    keys = _keys("a b", "ü#1", count=6)
    for key in keys:
        objects.put(f"{s3_bucket}/set/{key}", b"x")
    dataset = _read(f"{s3_bucket}/set/")
    assert dataset.split_digest == _read(make_tree(*keys)).split_digest
    assert {sample.uri for sample in dataset.samples} == {f"{s3_bucket}/set/{key}" for key in keys}
    with pytest.raises(SourceError, match="missing, or it is empty"):
        _read(f"{s3_bucket}/nothing")
    objects.put(f"{s3_bucket}/set/c/", b"")
    with pytest.raises(SourceError, match=r"without images.*'c'"):
        _read(f"{s3_bucket}/set")


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    lines = [f"{i}.png,{'ab'[i % 2]},p{i // 4}" for i in range(80)]
    dataset = _read(_write(tmp_path / "m.csv", "uri,label,group", *lines))
    sides = {sample.group: set[str]() for sample in dataset.samples}
    for sample in dataset.samples:
        sides[sample.group].add(sample.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {side for by_group in sides.values() for side in by_group} == {"train", "val", "test"}


def test_repeated_row_counts_once(tmp_path: Path) -> None:
    lines = [f"{key},{key[0]}" for key in _keys("a", "b")]
    dataset = _read(_write(tmp_path / "m.csv", "uri,label", *lines, *lines[:3]))
    assert (len(dataset.samples), dataset.num_duplicates) == (20, 3)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["uri,label", "x.png,a", "x.png,b"], r"x\.png is listed twice, with label 'a' and 'b'"),
        (["uri,label,split", "x.png,a,dev", "y.png,b,train"], "unknown splits 'dev'"),
        (["uri,label,split", "x.png,a,", "y.png,b,train"], r"others none, such as .*x\.png"),
        (["uri,label", "x.png,a", "y.png,b"], "too few images"),
    ],
)
def test_contradictory_manifest_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        _read(_write(tmp_path / "m.csv", *lines))


def test_classes_of_a_model_keep_their_labels(make_tree: MakeTree) -> None:
    names = ClassNames(("z", "b", "a"))
    data = make_tree(*_keys("a", "b"))
    assert {s.class_name: s.label for s in _read(data, class_names=names).samples} == {
        "a": 2,
        "b": 1,
    }
    with pytest.raises(ConfigError, match="does not know: 'a'"):
        _read(data, class_names=ClassNames(("b", "z")))


def test_no_shares_at_all_leave_everything_in_one_split(make_tree: MakeTree) -> None:
    dataset = _read(make_tree("a/1.png", "b/1.png"), val_fraction=0.0, test_fraction=0.0)
    assert len(dataset.of_split("train")) == 2


def test_multi_label_manifest(tmp_path: Path) -> None:
    combos = ["x", "y", "x|y", ""]
    lines = [f"{i}.png,{combos[i % 4]}" for i in range(60)]
    path = _write(tmp_path / "m.csv", "uri,label", *lines)
    dataset = _read(path, multi_label=True)
    assert dataset.class_names.names == ("x", "y")
    by_key = {sample.key: sample.labels for sample in dataset.samples}
    assert [by_key[f"{i}.png"] for i in range(4)] == [(0,), (1,), (0, 1), ()]
    assert {split for split in ("train", "val", "test") if dataset.of_split(split)} == {
        "train",
        "val",
        "test",
    }


def test_several_labels_per_image_need_a_multi_label_model(tmp_path: Path) -> None:
    message = r"several classes, such as 'x\|y'.*--multi-label"
    lines = [f"{i}.png,{('x', 'y', 'x|y')[i % 3]}" for i in range(30)]
    path = _write(tmp_path / "m.csv", "uri,label", *lines)
    with pytest.raises(ConfigError, match=message):
        _read(path)
    with pytest.raises(ConfigError, match=message):
        _read(path, class_names=ClassNames(("x", "y")))
    # A name may hold the sign where no other label is a part of it.
    lines = [f"{i}.png,{('on|off', 'broken')[i % 2]}" for i in range(30)]
    path = _write(tmp_path / "other.csv", "uri,label", *lines)
    assert _read(path).class_names.names == ("broken", "on|off")


def test_frozen_split_gives_the_same_samples_from_anywhere(tmp_path: Path) -> None:
    lines = [f'"{i}, a\n.png",{"ab"[i % 2]},p{i // 4},{1 + i % 3},{"xy"[i % 2]}' for i in range(80)]
    path = _write(tmp_path / "m.csv", "uri,label,group,weight,scanner", *lines)
    dataset = _read(path, roles=Roles.parse(slice_by="scanner"))
    elsewhere = tmp_path / "elsewhere" / "split.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(freeze_split(dataset.samples, slice_by="scanner"))
    again = _read(str(elsewhere), roles=Roles.parse(slice_by="scanner"), seed=5, val_fraction=0.5)
    assert again.samples == dataset.samples
    assert again.split_digest == dataset.split_digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,Cat", "b.png,cat", "c.png,dog"], "only in case.*'Cat', 'cat'"),
        (["a.png,cat", "b.png,cat ", "c.png,dog"], "surrounding blanks: 'cat', 'cat '"),
        (["a.png,cat", "b.png,", "c.png,dog"], "class name is empty"),
    ],
)
def test_labels_that_hardly_differ_are_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _read(_write(tmp_path / "m.csv", "uri,label", *lines))


def test_group_slice_and_label_by_keys_in_a_folder_tree(make_tree: MakeTree) -> None:
    keys = [f"{'ab'[p % 2]}/p{p}/camera={n % 2}/x{n}.png" for p in range(12) for n in range(4)]
    roles = Roles.parse(group="folder:2", slice_by="camera")
    dataset = _read(make_tree(*keys), roles=roles)
    assert {(s.group, s.slice_name) for s in dataset.samples} == {
        (f"p{p}", str(n)) for p in range(12) for n in range(2)
    }
    sides = {s.group: {o.split for o in dataset.samples if o.group == s.group} for s in
             dataset.samples}  # fmt: skip
    assert all(len(side) == 1 for side in sides.values())


def test_labels_in_file_names_need_no_class_folders(make_tree: MakeTree) -> None:
    keys = [f"line{n % 2}/part{n}_{('ok', 'nok')[n % 3 == 0]}.png" for n in range(60)]
    data = make_tree(*keys, "line0/top.txt", "line0/Thumbs.db")
    with pytest.raises(SourceError, match=r"1 images .* no label from --label, .*top\.txt"):
        _read(data, roles=Roles.parse(label=r"name:_(ok|nok)\."))
    Path(data, "line0/top.txt").unlink()
    dataset = _read(data, roles=Roles.parse(label=r"name:_(ok|nok)\."))
    assert dataset.class_names.names == ("nok", "ok")
    assert sum(s.class_name == "nok" for s in dataset.samples) == 20


def test_a_manifest_takes_keys_beside_its_columns(tmp_path: Path) -> None:
    lines = [f"lot={n // 4}/{n}.png,{'ab'[n % 2]},{n / 4}" for n in range(80)]
    path = _write(tmp_path / "m.csv", "uri,Finding,thickness", *lines)
    roles = Roles.parse(group="lot", slice_by="thickness", label="Finding")
    dataset = _read(path, roles=roles)
    assert len({s.group for s in dataset.samples}) == 20
    assert dataset.class_names.names == ("a", "b")
    with pytest.raises(SourceError, match=r"no column 'site'.*'thickness'.*No path has a folder"):
        _read(path, roles=Roles.parse(label="Finding", group="site"))


def test_the_two_spellings_of_a_group_are_not_given_at_once(make_tree: MakeTree) -> None:
    with pytest.raises(ConfigError, match="--group and --group-by folder: give one"):
        _read(make_tree("a/p/1.png"), group_by_folder=True, roles=Roles.parse(group="folder:2"))


def test_a_group_that_is_said_twice_is_not_shown(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.csv", "uri,label,group", "a.png,x,Doe", "a.png,x,Roe")
    with pytest.raises(SourceError, match="listed twice, with groups that differ") as raised:
        _read(path)
    assert "oe" not in str(raised.value)
