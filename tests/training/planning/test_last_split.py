import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from imgcls.config.models import EvaluateConfig
from imgcls.data.dataset import Sample
from imgcls.evaluation.evaluate import evaluate
from imgcls.training.driver import train
from imgcls.training.planning.make_plan import make_plan
from tests.training.bars import bars_config

MakeTree = Callable[..., Path]

make_config = partial(bars_config, batch_size=8, epochs=1, val_fraction=0.2, test_fraction=0.2)


@pytest.fixture
def parts(make_tree: MakeTree) -> Path:
    """Twenty parts of two images of each class, in folders; more can be added."""
    data = make_tree(40)
    for image in sorted(data.glob("*/*.png")):
        part = image.parent / f"part{int(image.stem) % 20:02}"
        part.mkdir(exist_ok=True)
        image.rename(part / image.name)
    return data


def _add_parts(data: Path, start: int, count: int) -> None:
    for folder in sorted(data.glob("class*")):
        for number in range(start, start + count):
            shutil.copytree(folder / "part00", folder / f"part{number:02}")


def _sides(samples: list[Sample]) -> dict[str, str]:
    return {sample.group: sample.split for sample in samples}


def test_few_groups_hold_their_share_and_the_log_says_so(
    parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(5):
        with caplog.at_level(logging.INFO):
            plan = make_plan(make_config(parts, group="folder:2", seed=seed))
        assert {split: len(samples) for split, samples in plan.splits.items()} == {
            "train": 48, "val": 16, "test": 16,
        }  # fmt: skip
    assert "test 20.0% (asked 20.0%)" in caplog.text


def test_a_group_keeps_its_side_and_only_new_ones_are_balanced(
    parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(parts, group="folder:2", seed=3, allow_leaks=True)
    train(config)
    before = _sides(make_plan(config).samples)
    _add_parts(parts, 20, 10)
    plan = make_plan(config)
    after = _sides(plan.samples)
    assert len(after) == 30
    assert all(after[group] == side for group, side in before.items())
    assert len(plan.splits["test"]) == len(plan.splits["val"]) == 24
    with caplog.at_level(logging.WARNING):
        other = make_plan(make_config(parts, group="folder:2", seed=4, allow_leaks=True))
    assert "not that of v1: --seed was 3 and is 4" in caplog.text
    assert _sides(other.samples) != after


def test_the_file_of_the_last_version_counts_whatever_a_hash_would_give(parts: Path) -> None:
    config = make_config(parts, group="folder:2")
    result = train(config)
    split = Path(result["run"]) / "split.csv"
    # As an earlier imgcls may have drawn it.
    swapped = {"train": "test", "test": "train", "val": "val"}
    header, *lines = split.read_text().splitlines()
    at = header.split(",").index("split")
    cells = [line.split(",") for line in lines]
    moved = [[*row[:at], swapped[row[at]], *row[at + 1 :]] for row in cells]
    split.write_text("\n".join([header, *(",".join(row) for row in moved)]) + "\n")
    plan = make_plan(config)
    assert len(plan.splits["test"]) == 48
    # The same where the version is gone, but not the run.
    shutil.rmtree(result["uri"])
    assert make_plan(config).split_digest == plan.split_digest
    split.unlink()
    assert len(make_plan(config).splits["test"]) == 16


def test_an_evaluation_finds_the_test_images_of_a_balanced_split(parts: Path) -> None:
    result = train(make_config(parts, group="folder:2", seed=1))
    bundle = Path(result["uri"])
    assert json.loads((bundle / "split_moved.json").read_text())["side_by_hash_of_key"]
    for _ in range(2):
        measured = evaluate(
            EvaluateConfig(
                model=result["model"], data=str(parts), split="test", device="cpu", num_decoders=1
            )
        )
        assert measured["same_split_as_training"] is True
        assert measured["num_images"] == 16
        # Nothing but the bundle is needed for it.
        shutil.rmtree(result["run"], ignore_errors=True)
