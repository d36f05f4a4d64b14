"""`train --folds`: every image is measured by a model that has not seen it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.model.bundle import read_bundle
from imgcls.training import driver
from imgcls.training.driver import train
from imgcls.training.finish.out_of_fold import FILE, read_out_of_fold
from imgcls.training.planning.folds import fold_plans
from imgcls.training.planning.make_plan import make_plan
from tests.training.finish.test_finish import SIDE_PX, write_data


def _config(root: Path, **changes: Any) -> TrainConfig:
    values = {
        "data": str(write_data(root / "data", num_patients=16)),
        "registry": str(root / "registry"),
        "name": "bars",
        "arch": "simple_cnn",
        "image_px": str(SIDE_PX),
        "batch_size": 16,
        "epochs": 3,
        "lr": 5e-3,
        "folds": 4,
        "positive_class": "bad",
        "target_recall": 0.8,
        "device": "cpu",
        "num_decoders": 1,
    }
    return TrainConfig(**{**values, **changes})


def test_a_group_lies_in_one_fold_and_every_image_in_one(tmp_path: Path) -> None:
    plan = make_plan(_config(tmp_path))
    assert [len(samples) for samples in plan.splits.values()] == [64, 0, 0]
    folds = fold_plans(plan)
    held_out = [sample.uri for fold in folds for sample in fold.splits["test"]]
    assert sorted(held_out) == sorted(sample.uri for sample in plan.splits["train"])
    for fold in folds:
        groups = [{sample.group for sample in fold.splits[side]} for side in ("train", "test")]
        assert not groups[0] & groups[1]
        assert len(fold.splits["test"]) == 16
    assert len({fold.run_uri for fold in folds} | {plan.run_uri}) == 5
    with pytest.raises(ConfigError, match="--folds 17: 17 folds need as many groups"):
        fold_plans(make_plan(_config(tmp_path / "more", folds=17)))


def test_numbers_come_from_the_folds_and_a_killed_command_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path)
    plan = make_plan(config)
    folds = fold_plans(plan)
    trained: list[str] = []
    run: Callable[..., dict[str, Any]] = driver._run

    def killed_in_the_third(this: Any) -> dict[str, Any]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(this.fold)
        return run(this)

    monkeypatch.setattr(driver, "_run", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    done = [Path(fold.run_uri, FILE) for fold in folds[:2]]
    written = [path.read_bytes() for path in done]
    result = train(config)
    assert [path.read_bytes() for path in done] == written

    bundle = read_bundle(result["uri"])
    assert set(bundle.metrics) == {"out of fold"}
    numbers = bundle.metrics["out of fold"]
    assert numbers["num_images"] == 64
    assert [fold["num_images"] for fold in numbers["folds"]] == [16] * 4
    found, _ = read_out_of_fold(plan)
    assert found.index_B.tolist() == list(range(64))
    label_B = np.array([sample.labels[0] for sample in plan.splits["train"]])
    assert numbers["accuracy"] == (found.probs_BK.argmax(axis=1) == label_B).mean()
    assert result["accuracy"] == numbers["accuracy"]
    [point] = bundle.calibration["operating_points"]  # type: ignore[index]
    assert point["num_positive"] == int((label_B == 0).sum())
    # The final model knows all images, and says that it was not measured.
    assert result["num_train"] == 64
    assert result["verdict"]["split"] == "out of fold"
    lines = "\n".join(result["verdict"]["lines"])
    assert "From fold to fold: accuracy" in lines
    assert "and was not measured" in lines
    card = Path(result["uri"], "MODEL_CARD.md").read_text()
    assert "**The model in this bundle was itself not measured.**" in card
    again = train(config)
    assert (again["version"], again.get("already_trained")) == (1, True)
