import dataclasses
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from timm.models import save_for_hf

from imgcls.config.training import TrainConfig
from imgcls.data.dataset import read_dataset
from imgcls.errors import AccessDeniedError, BudgetExceededError
from imgcls.image.decode import decode
from imgcls.image.preprocess import preprocess
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve
from imgcls.storage.objects import list_objects, put
from imgcls.training.driver import train
from tests.kit.modes import refuse_reads
from tests.kit.predictors import open_predictor
from tests.training.bars import bars_config

ROOT = Path(__file__).parents[2]
MakeTree = Callable[..., Path]


make_config = partial(bars_config, batch_size=16, epochs=4, val_fraction=0.2, test_fraction=0.2)


def test_training_registers_a_model_that_predicts_its_test_split(make_tree: MakeTree) -> None:
    data = make_tree(40, num_classes=3)
    config = make_config(data)
    result = train(config)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["version"] == 1
    assert result["accuracy"] == result["test_accuracy"] > 0.9
    assert result["num_train"] + result["num_val"] + result["num_test"] == 120

    bundle = read_bundle(resolve(result["model"]))
    assert bundle.digest == result["digest"]
    assert bundle.class_names.names == ("class0", "class1", "class2")
    assert bundle.training["history"][-1]["epoch"] == 4
    # The accuracy in the result is that of the registered weights, decoded and run again.
    dataset = read_dataset(str(data), val_fraction=0.2, test_fraction=0.2, seed=0, is_balanced=True)
    predictor = open_predictor(bundle, device="cpu", batch_size=1)
    right = 0
    for sample in dataset.of_split("test"):
        [image] = decode(Path(sample.uri).read_bytes(), bundle.decode_spec)
        x_CHW = preprocess(image.image_HWC, bundle.preprocess_spec)
        right += int(predictor.predict(x_CHW[None]).label_B[0] == sample.label)
    assert right / result["num_test"] == pytest.approx(result["test_accuracy"])
    assert bundle.split_digest == dataset.split_digest


def test_weights_of_a_network_that_was_built_with_options_are_trained_as_such(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    """A folder of timm, then the model that came of it: neither fits the plain architecture."""
    thin = {"channels": [8, 16, 24, 32], "stem_width": 16}
    folder = tmp_path / "thin"
    torch.manual_seed(5)
    network = timm.create_model("resnet18", num_classes=4, **thin)
    save_for_hf(network, str(folder), model_args=thin, safe_serialization=True)
    config = make_config(
        make_tree(20), arch="timm:resnet18", weights=str(folder), epochs=1, freeze_stages=1
    )
    first = train(config)
    bundle = read_bundle(resolve(first["model"]))
    assert bundle.arch_options | thin == bundle.arch_options
    assert bundle.state_dict["conv1.weight"].equal(network.state_dict()["conv1.weight"])
    second = train(dataclasses.replace(config, name="again", weights=first["model"]))
    assert read_bundle(resolve(second["model"])).arch_options == bundle.arch_options


def test_training_again_registers_the_next_version_with_equal_weights(make_tree: MakeTree) -> None:
    data = make_tree(20)
    first, second = (train(make_config(data, epochs=1, num_decoders=n)) for n in (1, 2))
    assert (first["version"], second["version"]) == (1, 2)
    weights = [load_file(Path(r["uri"]) / "model.safetensors") for r in (first, second)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_the_cache_does_not_change_the_weights(cache: str, make_tree: MakeTree) -> None:
    data = make_tree(20)
    results = [train(make_config(data, epochs=2, cache=c)) for c in ("ram", cache)]
    weights = [load_file(Path(r["uri"]) / "model.safetensors") for r in results]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_bad_images_are_counted_and_too_many_register_nothing(make_tree: MakeTree) -> None:
    data = make_tree(30)
    for number in range(3):
        (data / "class0" / f"{number:03d}.png").write_bytes(b"damaged")
    result = train(make_config(data, epochs=1, max_bad_fraction=0.3))
    assert result["num_bad"] == 3
    bad = read_bundle(result["uri"]).training["bad_images"]
    named = {uri for split in bad.values() for uri in split}
    assert named == {str(data / "class0" / f"{n:03d}.png") for n in range(3)}
    with pytest.raises(BudgetExceededError):
        train(make_config(data, epochs=1, max_bad_fraction=0.0))
    assert not (data.parent / "registry" / "bars" / "v2").exists()


@pytest.mark.parametrize("listed", [False, True])
def test_an_image_that_may_not_be_read_is_a_bad_image_and_all_of_them_are_not(
    listed: bool, make_tree: MakeTree, tmp_path: Path
) -> None:
    data = make_tree(24)
    refuse_reads(data / "class0" / "003.png")
    source = data
    if listed:
        source = tmp_path / "list.csv"
        paths = sorted(data.rglob("*.png"))
        source.write_text("\n".join(["uri,label", *(f"{p},{p.parent.name}" for p in paths)]))
    config = make_config(source, epochs=1, max_bad_fraction=0.3)
    result = train(config)
    assert result["num_bad"] == 1
    bad = read_bundle(result["uri"]).training["bad_images"]
    assert [uri for split in bad.values() for uri in split] == [str(data / "class0" / "003.png")]
    for path in data.rglob("*.png"):
        refuse_reads(path)
    with pytest.raises(AccessDeniedError, match="could not be read"):
        train(config)


def test_without_validation_and_test_the_last_weights_are_registered(make_tree: MakeTree) -> None:
    result = train(make_config(make_tree(20), epochs=2, val_fraction=0, test_fraction=0))
    assert result["accuracy"] is None
    assert result["best_epoch"] == 2


def run_command(config: TrainConfig) -> subprocess.Popen[str]:
    """Start the training in a process of its own, on one thread."""
    program = (
        "import sys, json; from imgcls.config.training import TrainConfig;"
        "from imgcls.training.driver import train;"
        "r = train(TrainConfig(**json.loads(sys.argv[1]))); assert 'ray' not in sys.modules;"
        "print(json.dumps(r))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoints(config: TrainConfig) -> list[Path]:
    return list(Path(config.registry).glob("_training/*/run-*/checkpoints/*/SHA256SUMS"))


def kill_and_resume(config: TrainConfig, kill_after_steps: list[int]) -> None:
    """Kill the training each time a checkpoint of so many steps is there; then let it finish."""
    for num_steps in kill_after_steps:
        process = run_command(config)
        while process.poll() is None:
            steps = [int(path.parent.name.split("-")[0]) for path in checkpoints(config)]
            if max(steps, default=0) >= num_steps:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the training ended before it was killed"
    process = run_command(config)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def check_resume_is_exact(data: Path, kill_after_steps: list[int], **changes: Any) -> None:
    changes = {"epochs": 40, "checkpoint_every": "1"} | changes
    registries = [str(data.parent / name) for name in ("undisturbed", "killed")]
    undisturbed, killed = (make_config(data, registry=r, **changes) for r in registries)
    torch.set_num_threads(1)
    train(undisturbed)
    kill_and_resume(killed, kill_after_steps)
    first, second = (load_file(f"{r}/bars/v1/model.safetensors") for r in registries)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert checkpoints(killed) == []
    # The sums of an epoch came back in its middle, too.
    histories = [read_bundle(f"{r}/bars/v1").training["history"] for r in registries]
    same = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert [[n[k] for k in same] for n in histories[0]] == [
        [n[k] for k in same] for n in histories[1]
    ]
    assert not Path(f"{registries[1]}/bars/v2").exists()


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(make_tree: MakeTree) -> None:
    check_resume_is_exact(make_tree(40), [30])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_kills_at_random_steps_change_no_bit(seed: int, make_tree: MakeTree) -> None:
    steps = np.random.default_rng(seed).integers(1, 60, 2)
    check_resume_is_exact(make_tree(40), sorted(steps.tolist()), seed=seed)


def test_a_run_that_was_killed_after_registering_registers_no_second_version(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(make_tree(20), epochs=1)

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("imgcls.training.driver.CheckpointWriter.remove_all", killed)
        with pytest.raises(KilledError):
            train(config)
    result = train(config)
    assert result["version"] == 1


def test_a_registry_that_cannot_be_written_is_found_before_training(make_tree: MakeTree) -> None:
    data = make_tree(20)
    (data.parent / "registry").write_text("a file")
    start_s = time.monotonic()
    with pytest.raises(Exception, match="registry"):
        train(make_config(data, epochs=10_000))
    assert time.monotonic() - start_s < 15


@pytest.mark.s3
def test_training_from_s3_to_s3(s3_bucket: str, make_tree: MakeTree) -> None:
    data = make_tree(20)
    for path in data.rglob("*.png"):
        put(f"{s3_bucket}/data/{path.relative_to(data)}", path.read_bytes())
    config = make_config(
        data, data=f"{s3_bucket}/data", registry=f"{s3_bucket}/reg", epochs=2, checkpoint_every="2"
    )
    result = train(config)
    assert result["model"] == f"{s3_bucket}/reg/bars@v1"
    local = train(make_config(data, epochs=2))
    assert read_bundle(result["uri"]).metrics == read_bundle(local["uri"]).metrics
    left = [entry.uri for entry in list_objects(f"{s3_bucket}/reg/_training")]
    assert not [uri for uri in left if "checkpoints" in uri]


def test_a_grey_and_a_colour_image_train_together(make_tree: MakeTree) -> None:
    data = make_tree(20)
    for path in list((data / "class0").glob("*.png"))[:10]:
        Image.open(path).convert("RGB").save(path)
    assert train(make_config(data, epochs=1))["num_bad"] == 0


def test_sigterm_writes_a_checkpoint_and_ends_resumable(make_tree: MakeTree) -> None:
    config = make_config(make_tree(40), epochs=2000, checkpoint_every="1000000")
    process = run_command(config)
    log_lines = Path(config.registry) / "_training" / "bars"
    while not list(log_lines.glob("run-*/log/*/epoch-00002.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "RunStoppedError: stopped when asked to, in epoch" in errors
    [sums] = checkpoints(config)
    assert int(sums.parent.name.split("-")[0]) > 0


@pytest.mark.parametrize("dies_before_step", [5, 6])  # an epoch has four
def test_each_step_and_epoch_is_told_once_although_the_run_was_resumed(
    dies_before_step: int, make_tree: MakeTree
) -> None:
    config = make_config(make_tree(40), epochs=3, checkpoint_every="2")
    num_steps = 0

    class KilledError(BaseException):
        pass

    def killed_later(*_: object, **__: object) -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == dies_before_step:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgcls.training.optim.step.set_lr", killed_later)
        with pytest.raises(KilledError):
            train(config)
    result = train(config)
    lines = []
    for path in sorted(Path(result["run"]).glob("log/*/epoch-*.jsonl")):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    steps = [(line["epoch"], line["step"]) for line in lines if line["kind"] == "step"]
    num_per_epoch = max(step for _, step in steps)
    assert steps == [(e, s) for e in (1, 2, 3) for s in range(1, num_per_epoch + 1)]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert [line["lr"] for line in epochs] == [
        line["lr"] for line in lines if line["kind"] == "step" and line["step"] == num_per_epoch
    ]
    assert all(line["images_per_s"] > 0 for line in epochs)
    assert epochs == [{"kind": "epoch"} | n for n in read_bundle(result["uri"]).training["history"]]


@pytest.mark.parametrize("changes", [{"ema_decay": 0.9}, {"optimizer": "sgd", "lr": 0.05}])
def test_resume_brings_back_average_and_momentum(
    changes: dict[str, Any], make_tree: MakeTree
) -> None:
    """In process: the second `train` continues from the checkpoint that the first left."""
    data = make_tree(40)
    torch.set_num_threads(1)
    whole = train(make_config(data, registry=str(data.parent / "whole"), epochs=3, **changes))
    config = make_config(data, epochs=3, checkpoint_every="4", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgcls.training.driver.make_bundle", lambda *_: pytest.fail("as if killed"))
        patch.setattr("imgcls.training.record.recorder.Recorder.after_training", lambda _: None)
        with pytest.raises(pytest.fail.Exception):
            train(config)
    assert checkpoints(config)
    resumed = train(config)
    weights = [load_file(Path(r["uri"]) / "model.safetensors") for r in (whole, resumed)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def write_digits(root: Path, digits: range, num: int) -> Path:
    """Write scikit-learn's digits of some classes as a folder tree."""
    data = load_digits()
    chosen = [i for i in range(len(data.images)) if data.target[i] in digits][:num]
    for index in chosen:
        folder = root / str(data.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (data.images[index] * 15.9375).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    return root


@pytest.mark.slow
def test_weights_of_other_classes_beat_new_ones_at_equal_epochs(tmp_path: Path) -> None:
    low = write_digits(tmp_path / "low", range(5), 600)
    high = write_digits(tmp_path / "high", range(5, 10), 300)
    values = {"image_px": 32, "epochs": 2, "lr": 1e-3}
    teacher = train(make_config(low, **values | {"epochs": 6}))
    results = {
        weights: [train(make_config(high, weights=weights, seed=s, **values)) for s in range(3)]
        for weights in ("", teacher["model"])
    }
    for number, is_better in (("val_loss", operator.lt), ("test_accuracy", operator.gt)):
        new, tuned = (float(np.mean([r[number] for r in rs])) for rs in results.values())
        assert is_better(tuned, new), f"{number}: {tuned} tuned, {new} new"


@pytest.mark.slow
def test_frozen_stages_stay_as_they_were_loaded(tmp_path: Path) -> None:
    low = write_digits(tmp_path / "low", range(5), 100)
    teacher = train(make_config(low, image_px=32, epochs=1))
    weights = f"{teacher['uri']}/model.safetensors"
    frozen = train(make_config(low, image_px=32, epochs=1, weights=weights, freeze_stages=2))
    tensors = [load_file(Path(r["uri"]) / "model.safetensors") for r in (teacher, frozen)]
    names = [name for name in tensors[0] if name.startswith("features.")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_digits_reach_0_985(seed: int, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(10), 1797)
    result = train(
        TrainConfig(
            str(data), str(tmp_path / "reg"), "digits", "simple_cnn", image_px=32, seed=seed
        )
    )
    assert result["test_accuracy"] >= 0.985
