"""`train --head linear`: the backbone as it was, features once per image, a bundle of it."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.spec import DecodeSpec
from imgcls.inference.predictor import Predictor
from imgcls.model.architectures import build_model
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import list_versions, register
from imgcls.scoring.driver import score
from imgcls.training import driver
from imgcls.training.driver import train
from imgcls.training.head import feature_store
from tests.scoring.tiny import make_bundle

NUM_CLASSES = 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_data(root: Path, per_class: int = 20, *, several: bool = False) -> Path:
    """Stripes of three directions, some of them in both; a manifest with groups of two."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_CLASSES * per_class):
        label = number % NUM_CLASSES
        y, x = np.mgrid[0:32, 0:32]
        wave = (x, y, x + y)[label] * 0.8
        image = 128 + 60 * np.sin(wave + rng.uniform(0, 6)) + rng.normal(0, 20, (32, 32))
        path = root / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).convert("RGB").save(path)
        name = ("along", "across", "slanted")[label]
        named = f"{name}|striped" if several else name
        rows.append((path.name, named, f"p{number // (2 * NUM_CLASSES)}"))
    manifest = root / ("several.csv" if several else "one.csv")
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "label", "group"), *rows])
    return manifest


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    registry = str(tmp_path / "registry")
    register(registry, "other", make_bundle(decode_spec=DecodeSpec(gray_range="min_max")))
    return TrainConfig(
        data=str(write_data(tmp_path / "data")),
        registry=registry,
        name="stripes",
        head="linear",
        backbone=f"{registry}/other@v1",
        val_fraction=0.25,
        test_fraction=0.25,
        device="cpu",
        num_decoders=1,
    )


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch has that goes through a network for its features."""
    real, found = Predictor.submit, list[int]()

    def submit(self: Predictor, x_BCHW: Any) -> Any:
        if self.backend.demand.embedding:
            found.append(len(x_BCHW))
        return real(self, x_BCHW)

    monkeypatch.setattr(Predictor, "submit", submit)
    return found


def test_the_backbone_stays_and_a_bundle_like_any_other_comes_out(
    config: TrainConfig, tmp_path: Path
) -> None:
    result = train(config)
    backbone, bundle = read_bundle(f"{config.registry}/other/v1"), read_bundle(result["uri"])
    head = ("classifier.4.weight", "classifier.4.bias")
    for name, tensor in backbone.state_dict.items():
        if name not in head:
            assert torch.equal(bundle.state_dict[name], tensor), name
    assert bundle.state_dict[head[0]].shape == (NUM_CLASSES, 128)
    assert bundle.decode_spec == backbone.decode_spec
    assert bundle.preprocess_spec == backbone.preprocess_spec
    assert result["test_accuracy"] > 0.8, "random features tell stripes apart"
    assert bundle.metrics["test"]["per_class"].keys() == {"across", "along", "slanted"}
    assert bundle.calibration is not None
    assert bundle.training["head"]["num_computed"] == result["num_train"]
    again = evaluate(
        EvaluateConfig(model=result["model"], data=config.data, split="test", device="cpu")
    )
    assert again["accuracy"] == pytest.approx(result["test_accuracy"])
    night = score(
        ScoreConfig(str(tmp_path / "data"), result["model"], str(tmp_path / "out"), device="cpu")
    )
    assert night["status_counts"]["ok"] == NUM_CLASSES * 20


def test_features_are_computed_once_per_image_and_kept_for_the_next_training(
    config: TrainConfig, submitted: list[int]
) -> None:
    first = train(config)
    assert sum(submitted) == first["num_train"]
    submitted.clear()
    second = train(replace(config, balance="weights"))
    assert second["version"] == 2
    assert submitted == []
    assert read_bundle(second["uri"]).training["head"]["num_computed"] == 0
    for path in Path(config.registry).glob("_training/stripes/features/*/*"):
        path.write_bytes(path.read_bytes()[:100])
    train(replace(config, seed=5))
    assert sum(submitted) > 0, "what is damaged is computed again"


def test_another_backbone_has_features_of_its_own(
    config: TrainConfig, submitted: list[int]
) -> None:
    train(config)
    submitted.clear()
    register(config.registry, "other", make_bundle(seed=1))
    result = train(replace(config, backbone=f"{config.registry}/other@v2"))
    assert sum(submitted) == result["num_train"]


def test_several_labels_and_thresholds_come_with_it(config: TrainConfig, tmp_path: Path) -> None:
    data = write_data(tmp_path / "several", several=True)
    result = train(
        replace(config, data=str(data), multi_label=True, positive_class="along", target_recall=0.2)
    )
    bundle = read_bundle(result["uri"])
    assert bundle.multi_label
    assert bundle.calibration is not None
    [point] = bundle.calibration["operating_points"]
    assert point["positive_class"] == "along"
    assert bundle.metrics["test"]["accuracy"] > 0.5


def test_a_training_that_was_killed_before_its_end_registers_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(driver, "write_finished", die)
        with pytest.raises(SystemExit):
            train(config)
    assert train(config)["version"] == 1
    assert len(list_versions(config.registry, "stripes")) == 1


def test_equal_pixels_alone_have_equal_keys() -> None:
    class Seen:
        def __init__(self, *values: int) -> None:
            self.x_CHW = np.array(values, np.uint8)

    key_of = feature_store.key_of
    assert key_of([Seen(1, 2)]) == key_of([Seen(1, 2)])  # type: ignore[list-item]
    assert key_of([Seen(1, 2)]) != key_of([Seen(2, 1)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": ""}, "keeps a trained backbone as it is, and none is named"),
        ({"head": "full"}, "--backbone is for --head linear"),
        ({"epochs": 5}, r"--epochs 5: --head linear trains no backbone"),
        ({"mixup": 0.2}, r"--mixup 0\.2: --head linear trains no backbone"),
        ({"arch": "resnet50"}, r"--arch resnet50: --backbone .* brings its own"),
        ({"color": "gray"}, r"--color gray: --backbone .* brings its own"),
        ({"fit": "tiles"}, "--head linear takes one look at an image: leave out --fit tiles"),
        ({"balance": "sampling"}, "--balance sampling: --head linear has no epochs"),
    ],
)
def test_flags_that_a_head_has_no_use_for_are_refused_by_name(
    config: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(config, **changes))


def test_a_backbone_whose_last_layer_is_more_than_linear_is_refused(
    config: TrainConfig, tmp_path: Path
) -> None:
    """squeezenet takes the mean after its last layer and a ReLU: no head on its mean is it."""
    weights = tmp_path / "squeezenet.safetensors"
    torch.manual_seed(0)
    model = build_model("squeezenet1_1", 3, image_px=32)
    safetensors.torch.save_file(model.state_dict(), weights)
    wanted = replace(config, backbone="", arch="squeezenet1_1", weights=str(weights), image_px="32")
    with pytest.raises(ConfigError, match="does after its embedding is more than one linear layer"):
        train(wanted)
