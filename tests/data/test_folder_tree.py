"""Folder trees as people and programs leave them: recognised, or refused by name."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.config.training import TrainConfig
from imgcls.data.dataset import Dataset, describe_classes, read_dataset
from imgcls.data.folder_names import split_of
from imgcls.data.folder_tree import read_tree
from imgcls.errors import AccessDeniedError, ConfigError, SourceError
from imgcls.training.planning.make_plan import check_flags, make_plan
from tests.kit.modes import let_nobody_in, not_root

MakeTree = Callable[..., str]


def read(data: str, **options: bool) -> Dataset:
    return read_dataset(data, val_fraction=0.2, test_fraction=0.2, seed=0, **options)  # type: ignore[arg-type]


def keys(*names: str, count: int = 6) -> list[str]:
    return [f"{name}/{i}.png" for name in names for i in range(count)]


SPELLINGS = {
    "train": ["train", "TRAIN", "Training", "training_set", "Train-Data", "trainset", "train2017",
              "images_train", "Train images"],
    "val": ["val", "VAL", "valid", "Validate", "validation", "dev", "dev-set", "val2017"],
    "test": ["test", "Testing", "Testset", "test-set", "Test_set", "TEST", "holdout",
             "test_images"],
    "": ["eval", "Evaluation"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for split, names in SPELLINGS.items() for name in names]
)
def test_splits_are_told_in_every_usual_spelling(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["cat", "trains", "invalid", "contest", "tested", "values", "1"])
def test_other_names_are_no_splits(name: str) -> None:
    assert split_of(name) is None


@pytest.mark.parametrize(
    ("train", "other"), [("Training", "Testing"), ("TRAIN", "VAL"), ("train_set", "test-set")]
)
@pytest.mark.parametrize("is_below", [False, True])
def test_splits_above_or_below_the_classes_are_kept(
    train: str, other: str, is_below: bool, make_tree: MakeTree
) -> None:
    names = [(split, label) for split in (train, other) for label in ("dark", "light")]
    data = make_tree(*keys(*("/".join(n[::-1] if is_below else n) for n in names)))
    dataset = read(data)
    assert dataset.class_names.names == ("dark", "light")
    expected = split_of(other)
    assert {s.split for s in dataset.samples if other in s.key} == {expected}
    assert len(dataset.of_split(str(expected))) == 12


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Training", "Testing"), "images right in 'Testing', 'Training'"),
        (("train/a", "train/b", "eval/a"), "eval is val to some and test to others"),
        (("train/a", "train/b", "Train/a", "test/b"), "'Train', 'train' all read as train"),
        (("a/train", "a/test", "b"), "splits in some classes.*'a'.*not in others.*'b'"),
        (("a/train", "b/train", "b/more"), "splits in some classes"),
        (("train/a", "train/b", "cat"), "beside others"),
    ],
)
def test_splits_that_are_not_clear_are_refused_by_name(
    names: tuple[str, ...], message: str, make_tree: MakeTree
) -> None:
    with pytest.raises(SourceError, match=message):
        read(make_tree(*keys(*names)))


@pytest.mark.parametrize(
    "folder",
    [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", "$RECYCLE.BIN", ".git",
     ".Trash-1000",
     "lost+found", "#recycle", "System Volume Information", "node_modules", ".AppleDouble"],
)  # fmt: skip
def test_folders_of_programs_are_left_out_and_counted_at_any_depth(
    folder: str, make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    more = [f"{folder}/copy.png", f"dark/{folder}/0-checkpoint.png", f"dark/x/{folder}/y/1.png"]
    dataset = read(make_tree(*keys("dark", "light"), *more))
    assert dataset.class_names.names == ("dark", "light")
    assert len(dataset.samples) == 12
    assert sum(dataset.num_skipped.values()) == 3
    assert f"left out 3 of {make_tree()}/: in a folder {folder}" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["._0.png", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", ".gitignore",
     "0.png:Zone.Identifier"],
)  # fmt: skip
def test_files_of_programs_are_left_out_wherever_they_lie(name: str, make_tree: MakeTree) -> None:
    dataset = read(make_tree(*keys("dark", "light"), name, f"dark/{name}", f"light/x/{name}"))
    assert (len(dataset.samples), sum(dataset.num_skipped.values())) == (12, 3)


def test_a_hidden_image_and_one_without_a_usual_name_stay(make_tree: MakeTree) -> None:
    assert (
        len(read(make_tree(*keys("a", "b"), "a/.hidden.jpg", "b/IM0001", "b/x.txt")).samples) == 15
    )


def test_a_program_s_folder_alone_is_no_empty_class(make_tree: MakeTree, tmp_path: Path) -> None:
    data = make_tree(*keys("a", "b"))
    for name in ("@eaDir", ".git", "a/__MACOSX"):
        (Path(data) / name).mkdir()
    assert read(data).class_names.names == ("a", "b")


def test_folders_below_classes_are_said_and_become_groups_when_asked(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_tree(*keys(*(f"{c}/p{c}{n}" for c in ("dark", "light") for n in range(6)), count=5))
    torn = read(data)
    assert "60 images" in caplog.text
    assert "--group-by folder" in caplog.text
    assert not any(sample.group for sample in torn.samples)
    grouped = read(data, group_by_folder=True)
    sides: dict[str, set[str]] = {}
    for sample in grouped.samples:
        assert sample.group == sample.key.split("/")[1]
        sides.setdefault(sample.group, set()).add(sample.split)
    assert all(len(found) == 1 for found in sides.values())
    assert {s for found in sides.values() for s in found} == {"train", "val", "test"}


def test_training_refuses_images_without_a_folder_to_group_by(make_tree: MakeTree) -> None:
    data = make_tree(*keys("a/p1", "a/p2", "a/p3", "b/p4", "b/p5", "b/p6"), "b/stray.png")
    config = TrainConfig(
        data=data, registry=f"{data}-reg", name="m", arch="simple_cnn", group_by="folder"
    )
    with pytest.raises(ConfigError, match=r"1 images .*stray\.png"):
        make_plan(config)


@pytest.mark.parametrize("flag", ["registry", "work_dir"])
def test_nothing_is_written_into_the_data_also_not_through_a_link(
    flag: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    data = make_tree(*keys("a", "b"))
    (tmp_path / "link").symlink_to(data)
    for place in (f"{data}/reg", f"{tmp_path}/link/reg"):
        places = {"registry": f"{tmp_path}/reg", flag: place}
        with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} .* lies inside --data"):
            check_flags(TrainConfig(data=data, name="m", **places))


@pytest.mark.parametrize(
    "own",
    ["reg/m/v1/SHA256SUMS", "a/x/v12/SHA256SUMS", "out/_lease.json", "out/_runs/r/plan.json",
     "_training/m/run-0a/run.json", "out/date=2026-01-01/run=r/_manifest.json"],
)  # fmt: skip
def test_what_imgcls_wrote_is_no_class_also_through_a_link(
    own: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="imgcls itself wrote"):
        read(make_tree(*keys("a", "b"), own, name="with"))
    elsewhere = tmp_path / "elsewhere" / own
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    linked = make_tree(*keys("a", "b"), name="linked")
    (Path(linked) / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="imgcls itself wrote"):
        read(linked)


def test_checksums_and_texts_beside_the_classes_are_left_out(make_tree: MakeTree) -> None:
    dataset = read(make_tree(*keys("a", "b"), "SHA256SUMS", "LICENSE", "README", "labels.csv"))
    assert len(dataset.samples) == 12


@pytest.mark.parametrize(
    "names", [("dark", "dark "), ("caf\u00e9", "cafe\u0301"), ("a", "a\u200b")]
)
def test_classes_that_look_alike_are_refused(names: tuple[str, str], make_tree: MakeTree) -> None:
    with pytest.raises(ConfigError, match=r"look alike|surrounding blanks"):
        read(make_tree(*keys(*names)))


def test_classes_and_counts_are_described(make_tree: MakeTree) -> None:
    data = make_tree(*keys("train/a", "test/a", "train/b"), "train/c/1.png")
    lines = list(describe_classes(read_dataset(data, val_fraction=0, test_fraction=0, seed=0)))
    assert lines == [
        "class 'a': 12 images (6 train, 6 test)",
        "class 'b': 6 images (6 train)",
        "class 'c': 1 images (1 train)",
    ]


def test_a_class_folder_that_may_not_be_listed_is_refused_and_a_program_s_is_left_out(
    tmp_path: Path,
) -> None:
    data = let_nobody_in(tmp_path) / "data"
    for name in ("a/1.png", "b/1.png", "b/deep/2.png", "lost+found/x"):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (data / "lost+found").chmod(0)
    with not_root():
        assert sorted(row.key for row in read_tree(str(data)).rows) == [
            "a/1.png", "b/1.png", "b/deep/2.png",
        ]  # fmt: skip
    (data / "b/deep").chmod(0)
    with not_root(), pytest.raises(AccessDeniedError, match="b/deep/: the folder may not be"):
        read_tree(str(data))
