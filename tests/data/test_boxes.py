"""Boxes in a manifest: where a label applies."""

from pathlib import Path

import pytest

from imgcls.data.boxes import LabelledBox
from imgcls.data.dataset import Dataset, freeze_split, read_dataset
from imgcls.errors import ConfigError, SourceError

HEADER = "uri,label,split,x,y,w,h\n"
GOOD = "g1.png,good,train,,,,\ng2.png,good,train,,,,\n"


def read(
    folder: Path, text: str, *, name: str = "labels.csv", multi_label: bool = False
) -> Dataset:
    (folder / name).write_text(text)
    return read_dataset(
        str(folder / name), val_fraction=0, test_fraction=0, seed=0, multi_label=multi_label
    )


def boxes(dataset: Dataset) -> dict[str, list[tuple[int, ...]]]:
    return {s.key: [(*box.place, *box.labels) for box in s.boxes] for s in dataset.samples}


def test_several_rows_of_one_uri_are_one_picture_with_several_boxes(tmp_path: Path) -> None:
    rows = "a.png,scratch,train,1,2,3,4\na.png,scratch,train,50,60,7.5,8\n"
    dataset = read(tmp_path, HEADER + GOOD + rows)
    assert boxes(dataset) == {
        "a.png": [(1, 2, 3, 4, 1), (50, 60, 8, 8, 1)],
        "g1.png": [],
        "g2.png": [],
    }
    assert dataset.num_duplicates == 0
    assert [s.labels for s in dataset.samples] == [(1,), (0,), (0,)]


def test_the_same_box_twice_counts_once(tmp_path: Path) -> None:
    dataset = read(tmp_path, HEADER + GOOD + 2 * "a.png,scratch,train,1,2,3,4\n")
    assert boxes(dataset)["a.png"] == [(1, 2, 3, 4, 1)]
    assert dataset.num_duplicates == 1


def test_a_frozen_split_keeps_the_boxes_and_its_digest(tmp_path: Path) -> None:
    rows = "a.png,dent|scratch,train,1,2,3,4\na.png,dent,train,50,60,7,8\nb.png,dent,train,,,,\n"
    dataset = read(tmp_path, HEADER + rows + "g.png,,train,,,,\n", multi_label=True)
    frozen = tmp_path / "run" / "split.csv"
    frozen.parent.mkdir()
    frozen.write_bytes(freeze_split(dataset.samples))
    again = read_dataset(str(frozen), val_fraction=0, test_fraction=0, seed=0, multi_label=True)
    assert boxes(again) == boxes(dataset)
    assert again.split_digest == dataset.split_digest


def test_of_several_labels_a_picture_has_those_of_all_its_boxes(tmp_path: Path) -> None:
    rows = "a.png,scratch,train,1,2,3,4\na.png,dent,train,50,60,7,8\n"
    dataset = read(tmp_path, HEADER + "g.png,,train,,,,\n" + rows, multi_label=True)
    [picture] = [s for s in dataset.samples if s.key == "a.png"]
    assert picture.labels == (0, 1)
    assert [box.labels for box in picture.boxes] == [(1,), (0,)]


def test_boxes_of_unlike_labels_need_a_model_of_several_labels(tmp_path: Path) -> None:
    rows = "a.png,scratch,train,1,2,3,4\na.png,dent,train,50,60,7,8\nb.png,dent,train,1,1,9,9\n"
    with pytest.raises(ConfigError, match="--multi-label"):
        read(tmp_path, HEADER + GOOD + rows + "c.png,scratch,train,,,,\n")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,2,3,", "row 3 has no box with x='1', y='2', w='3', h=None"),
        ("1,2,0,4", "w and h at least 1"),
        ("-1,2,3,4", "top left corner"),
        ("0.2,0.3,0.1,0.1", "in pixels"),
        ("a,2,3,4", "x='a'"),
        ("nan,2,3,4", "x='nan'"),
    ],
)
def test_what_is_not_a_box_is_refused_by_its_row(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read(tmp_path, HEADER + GOOD + f"a.png,scratch,train,{row}\n")


def test_a_picture_with_and_without_a_box_is_refused(tmp_path: Path) -> None:
    rows = "a.png,scratch,train,1,2,3,4\na.png,scratch,train,,,,\n"
    with pytest.raises(SourceError, match=r"a\.png is listed with a box and without one"):
        read(tmp_path, HEADER + GOOD + rows)


@pytest.mark.parametrize("header", ["uri,label,x,y", "uri,label,X,Y", "uri,label,x,W"])
def test_columns_that_are_not_all_of_a_box_are_not_read(tmp_path: Path, header: str) -> None:
    dataset = read(tmp_path, f"{header}\na.png,good,left,-1\nb.png,bad,right,7\n")
    assert not any(s.boxes for s in dataset.samples)


def test_boxes_in_json_lines_are_numbers_and_null(tmp_path: Path) -> None:
    lines = (
        '{"uri": "a.png", "label": "scratch", "x": 1, "y": 2.0, "w": 3, "h": 4}\n'
        '{"uri": "b.png", "label": "good", "x": null, "y": null, "w": null, "h": null}\n'
    )
    dataset = read(tmp_path, lines, name="labels.jsonl")
    assert dataset.samples[0].boxes == (LabelledBox(1, 2, 3, 4, (1,), "scratch"),)
    assert dataset.samples[1].boxes == ()
