"""Starting a run again: with other targets, and with images that have gone bad since."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imgcls.config.training import TrainConfig
from imgcls.data.dataset import read_dataset
from imgcls.errors import ConfigError
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.training.driver import train
from imgcls.training.finish.finish import make_bundle
from tests.training.bars import bars_config

MakeTree = Callable[..., Path]


make_config = partial(
    bars_config,
    batch_size=16,
    epochs=1,
    val_fraction=0.3,
    test_fraction=0.2,
    positive_class="class1",
    target_recall=0.6,
    num_decoders=1,
    cache="none",
)


class KilledError(BaseException):
    pass


def train_until(name: str, config: TrainConfig) -> None:
    """Train, and end as if killed where the driver calls this."""

    def killed(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"imgcls.training.driver.{name}", killed)
        with pytest.raises(KilledError):
            train(config)


def points(uri: str) -> list[str]:
    calibration = read_bundle(uri).calibration
    assert calibration is not None
    return [point["threshold_id"] for point in calibration["operating_points"]]


def damage_positives_of_val(config: TrainConfig) -> int:
    dataset = read_dataset(
        config.data,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        is_balanced=True,
    )
    positives = [s for s in dataset.of_split("val") if s.class_name == config.positive_class]
    for sample in positives:
        Path(sample.uri).write_bytes(b"damaged")
    return len(positives)


def test_a_restart_with_another_target_uses_it_and_says_so(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(make_tree(30))
    train_until("make_bundle", config)
    assert "was" not in caplog.text
    changed = make_config(Path(config.data), target_recall=0.5, target_specificity=0.6)
    result = train(changed)
    assert "--target-recall is 0.5 and was 0.6 when this run began" in caplog.text
    assert "--target-specificity is 0.6 and was 0.0 when" in caplog.text
    assert points(result["uri"]) == ["class1:recall>=0.5", "class1:specificity>=0.6"]
    written = json.loads((Path(result["run"]) / "run.json").read_text())
    assert written["target_recall"] == 0.5
    # The weights are the same: nothing was trained again, and nothing had to be.
    caplog.clear()
    undisturbed = train(config)
    assert "when this run began" not in caplog.text
    weights = [load_file(Path(r["uri"]) / "model.safetensors") for r in (result, undisturbed)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_a_registered_model_is_not_given_for_one_with_another_target(make_tree: MakeTree) -> None:
    config = make_config(make_tree(30))
    train_until("CheckpointWriter.remove_all", config)
    changed = make_config(Path(config.data), target_recall=0.5)
    train(changed)
    assert points(f"{config.registry}/bars/v1") == ["class1:recall>=0.6"]
    assert points(f"{config.registry}/bars/v2") == ["class1:recall>=0.5"]
    # The same command finds what it registered.
    result = train(changed)
    assert (result["version"], points(result["uri"])) == (2, ["class1:recall>=0.5"])


def test_a_finished_training_with_another_target_fits_thresholds_and_trains_nothing(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(make_tree(30))
    first = train(config)
    caplog.clear()
    changed = make_config(Path(config.data), target_recall=0.5, target_specificity=0.6)
    with caplog.at_level("INFO"):
        second = train(changed)
    assert "nothing is trained" in caplog.text
    assert "epoch 1" not in caplog.text
    assert (first["version"], second["version"]) == (1, 2)
    assert points(second["uri"]) == ["class1:recall>=0.5", "class1:specificity>=0.6"]
    old, new = read_bundle(first["uri"]), read_bundle(second["uri"])
    assert new.network_digest == old.network_digest
    assert new.training["config"]["target_recall"] == 0.5
    assert new.metrics["test"]["accuracy"] == old.metrics["test"]["accuracy"]
    assert second["verdict"] == new.verdict
    # Both commands find their own version again, and make no third one.
    assert [train(each)["version"] for each in (changed, config, changed)] == [2, 1, 2]
    assert not (Path(config.registry) / "bars" / "v3").exists()


def test_positives_that_give_no_pixels_are_found_before_the_first_step(
    make_tree: MakeTree,
) -> None:
    config = make_config(make_tree(30), max_bad_fraction=0.7)
    num_damaged = damage_positives_of_val(config)
    with pytest.raises(ConfigError, match=rf"0 show it \({num_damaged} more give no pixels\)"):
        train(config)
    assert not (Path(config.registry) / "bars").exists()
    assert not list(Path(config.registry).rglob("*.jsonl"))


def test_a_start_refused_for_its_images_changes_no_file_of_an_earlier_run(
    make_tree: MakeTree,
) -> None:
    config = make_config(make_tree(30), max_bad_fraction=0.7)
    run = Path(train(config)["run"])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    damage_positives_of_val(config)
    with pytest.raises(ConfigError, match="0 show it"):
        train(make_config(Path(config.data), max_bad_fraction=0.6))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_positives_that_go_bad_during_the_training_cost_no_model(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(make_tree(30), max_bad_fraction=0.7)
    num_damaged = 0

    def damage_then_make(*arguments: Any) -> Bundle:
        nonlocal num_damaged
        num_damaged = damage_positives_of_val(config)
        return make_bundle(*arguments)

    monkeypatch.setattr("imgcls.training.driver.make_bundle", damage_then_make)
    result = train(config)
    assert points(result["uri"]) == []
    words = "operating point for --positive-class 'class1': a threshold needs images of it"
    assert f"no {words}" in caplog.text
    assert f"0 show it ({num_damaged} more" in caplog.text
    card = (Path(result["uri"]) / "MODEL_CARD.md").read_text()
    assert f"**No {words}" in card
    assert f"no {words}" in read_bundle(result["uri"]).training["no_operating_point"]
