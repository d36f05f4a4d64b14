"""Trainings whose model fails on an image, or whose device is short of memory, or wrong."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.errors import BundleError, ConfigError
from imgcls.inference.backends.demand import Demand, demand_of_run
from imgcls.inference.predictor import Predictor, make_predictor
from imgcls.model.bundle import read_bundle
from imgcls.model.networks.own_archs import SimpleCnn
from imgcls.model.registry import resolve
from imgcls.training.driver import train
from imgcls.training.finish import finish
from imgcls.training.ranks.rank import Place, refuse_mig_slices
from tests.training.bars import bars_config
from tests.training.conftest import SIDE_PX

MakeTree = Callable[..., Path]


def split_data(make_tree: MakeTree, *splits_with_white: str) -> Path:
    """Two classes in train/, val/ and test/, with one white image in some of them."""
    for split, number in (("train", 20), ("val", 10), ("test", 8)):
        root = make_tree(number, name=f"data/{split}")
        # Else they would be the same images in all splits.
        for path in root.rglob("*.png"):
            image_HW = np.asarray(Image.open(path)).astype(int)
            shift = np.random.default_rng(len(split)).integers(-20, 20, image_HW.shape)
            Image.fromarray((image_HW + shift).clip(0, 220).astype(np.uint8)).save(path)
        if split in splits_with_white:
            white_HW = np.full((SIDE_PX, SIDE_PX), 255, np.uint8)
            Image.fromarray(white_HW).save(root / "class0" / "white.png")
    return root.parent


def fail(monkeypatch: pytest.MonkeyPatch, max_rows: int = 1 << 30, *, on_white: bool) -> list[int]:
    """Have networks that are not being trained raise on white images, and above so many rows."""
    real, passed = SimpleCnn.forward, list[int]()

    def forward(self: SimpleCnn, x_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training:
            passed.append(len(x_BCHW))
            if len(x_BCHW) > max_rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            # Normalised: white is at 2 and more, and nothing else is everywhere.
            if on_white and (x_BCHW.flatten(1) > 2).all(dim=1).any():
                raise ValueError("too bright to look at")
        logits_BK: torch.Tensor = real(self, x_BCHW)
        return logits_BK

    monkeypatch.setattr(SimpleCnn, "forward", forward)
    return passed


def config_of(data: Path, **changes: Any) -> Any:
    return bars_config(data, batch_size=16, epochs=2, **changes)


def test_an_image_that_the_model_fails_on_is_named_and_not_measured(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In validation, in the golden images and in what is measured at the end."""
    data = split_data(make_tree, "val", "test")
    fail(monkeypatch, on_white=True)
    with caplog.at_level(logging.WARNING, "imgcls"):
        # The white image is in two splits.
        result = train(config_of(data, allow_leaks=True))
    bundle = read_bundle(resolve(result["model"]))
    assert [epoch["num_val"] for epoch in bundle.training["history"]] == [20, 20]
    for split, number in (("val", 20), ("test", 16)):
        metrics = bundle.metrics[split]
        assert metrics["num_ok"] == number
        assert metrics["statuses"] == {"model_error": 1, "ok": number}
        assert "too bright" in metrics["not_ok"][0]["error"]
    assert "val split: the model fails on " in caplog.text
    assert "white.png: ValueError: too bright to look at" in caplog.text
    assert not (bundle.golden_x_BCHW.flatten(1) == 255).all(dim=1).any()


def test_validation_with_little_memory_measures_the_same_and_remembers(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = split_data(make_tree)
    plain = read_bundle(resolve(train(config_of(data, name="plain"))["model"]))
    real = finish.make_bundle
    with monkeypatch.context() as patched:
        passed = fail(patched, 8, on_white=False)

        def with_all_memory(*args: Any) -> Any:
            patched.undo()
            return real(*args)

        patched.setattr("imgcls.training.driver.make_bundle", with_all_memory)
        small = read_bundle(resolve(train(config_of(data, name="small"))["model"]))
    for ours, theirs in zip(plain.training["history"], small.training["history"], strict=True):
        assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-5)
        assert (theirs["num_val"], theirs["val_accuracy"]) == (20, ours["val_accuracy"])
        assert theirs["train_loss"] == ours["train_loss"]
    # 20 images, 16 and 4 a batch, and 8 black ones that prove the smaller shape.
    assert passed == [16, 8, 8, 8, 4, 8, 8, 4]


def test_nothing_left_to_validate_is_an_error_not_the_best_loss_of_all(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = split_data(make_tree)
    real = SimpleCnn.forward

    def forward(self: SimpleCnn, x_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training and (x_BCHW.flatten(1).std(dim=1) > 0).any():
            raise ValueError("nothing but plain colours")
        logits_BK: torch.Tensor = real(self, x_BCHW)
        return logits_BK

    monkeypatch.setattr(SimpleCnn, "forward", forward)
    with pytest.raises(ConfigError, match="not one of 20 validation images could be measured"):
        train(config_of(data))


def test_a_gpu_that_misses_the_golden_answers_costs_no_model(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    devices: list[str] = []

    def demand(*, device: Any, **values: Any) -> Demand:
        # No driver here: what is asked of the GPU is asked of the CPU, and fails there by name.
        devices.append(str(device))
        return demand_of_run(device="cpu", **values)

    def make(bundle: Any, asked: Demand) -> Predictor:
        if devices[-1] != "cpu":
            raise BundleError("the model does not reproduce its golden probabilities on cuda:1")
        return make_predictor(bundle, asked)

    monkeypatch.setattr(finish, "demand_of_run", demand)
    monkeypatch.setattr(finish, "make_predictor", make)
    on_gpu = Place(torch.device("cuda", 1))
    real = finish.make_bundle
    monkeypatch.setattr(
        "imgcls.training.driver.make_bundle",
        lambda plan, state, loaders, _place, leaks: real(plan, state, loaders, on_gpu, leaks),
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    with caplog.at_level(logging.WARNING, "imgcls"):
        result = train(config_of(split_data(make_tree)))
    assert devices == ["cuda:1", "cpu"], "the device that trained, with its index"
    assert "cuda:1: the model does not reproduce" in result["golden_miss"]
    assert "score with --device cpu or on another GPU" in caplog.text
    bundle = read_bundle(resolve(result["model"]))
    assert bundle.training["golden_miss"] == result["golden_miss"]
    assert bundle.training["hardware"] == "GPU 1"
    assert bundle.metrics["test"]["num_ok"] == 16
    card = (Path(resolve(result["model"])) / "MODEL_CARD.md").read_text()
    assert "**Where it was trained this model does not give its golden answers" in card


def test_several_ranks_on_slices_of_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cuda:0": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "cuda:1": "NVIDIA A100-SXM4-40GB"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[str(device)])
    sliced, whole = (torch.device(name) for name in names)
    with pytest.raises(ConfigError, match=r"rank 1 of 2 has a MIG slice .*--num-workers 0 or 1"):
        refuse_mig_slices(Place(sliced, 1, 2))
    for place in (Place(sliced), Place(whole, 1, 2), Place(rank=1, world_size=2)):
        refuse_mig_slices(place)
