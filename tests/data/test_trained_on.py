"""A model knows whether images are those that it was trained on, also among a million."""

import logging
from pathlib import Path

import pytest

from imgcls.data.dataset import Dataset, Sample, read_dataset
from imgcls.data.trained_on import (
    MAX_HASHES,
    TRAINED_ON,
    choose_split,
    count_trained_on,
    write_trained_on,
)
from imgcls.errors import BundleError


def samples(prefix: str, count: int, split: str = "train") -> list[Sample]:
    return [
        Sample(f"/{prefix}/{i}", (0,), "a", split, "", f"{prefix}/{i}", 1.0) for i in range(count)
    ]


@pytest.mark.parametrize("count", [5, MAX_HASHES, 20 * MAX_HASHES])
def test_trained_images_are_known_by_their_keys_and_others_are_not(count: int) -> None:
    trained = samples("a", count)
    data = write_trained_on([*trained, *samples("kept apart", 50, "test")])
    assert len(data) < 100_000
    bundle = {TRAINED_ON: data}
    assert count_trained_on(bundle, trained) == 1.0
    assert count_trained_on(bundle, samples("b", 1000)) == 0.0
    assert count_trained_on(bundle, samples("kept apart", 50)) == 0.0
    mixed = [*trained, *samples("b", count)]
    assert count_trained_on(bundle, mixed) == pytest.approx(0.5, abs=0.05)


def test_a_bundle_of_before_does_not_know() -> None:
    assert count_trained_on({}, samples("a", 3)) is None


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"num_images": "x"}', b"[" * 10**5])
def test_a_damaged_list_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        count_trained_on({TRAINED_ON: data}, samples("a", 3))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    lines = [f"{i}.png,{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *lines]))
    return read_dataset(str(tmp_path / "m.csv"), val_fraction=0.2, test_fraction=0.2, seed=0)


def test_all_of_new_data_is_measured_and_of_known_data_the_test_split(
    dataset: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    num_test = len(dataset.of_split("test"))
    assert 0 < num_test < 40
    before = {"config": {"data": "/trained/here"}}
    assert choose_split("/new", dataset, before, 0.0) == "all"
    assert "all 40 images" in caplog.text
    assert "was not checked" not in caplog.text
    assert choose_split("/new", dataset, before, None) == "all"
    assert "was not checked" in caplog.text
    caplog.clear()
    assert choose_split("/trained/here", dataset, before, 0.0) == "test"
    assert f"{num_test} of 40 images" in caplog.text
    assert "--split all" in caplog.text
    assert choose_split("/new", dataset, before, 0.9) == "test"
    assert "90% of its images are called like those of the training" in caplog.text
    # Noted down by a version that kept paths as they were typed.
    monkeypatch.chdir("/")
    assert (
        choose_split("/trained/here", dataset, {"config": {"data": "trained/here/"}}, None)
        == "test"
    )


def test_named_splits_decide(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,label,split\n1,a,train\n2,b,train\n3,a,test\n4,b,val\n")
    dataset = read_dataset(str(tmp_path / "m.csv"), val_fraction=0.2, test_fraction=0.2, seed=0)
    assert choose_split("/new", dataset, {}, 0.0) == "test"
