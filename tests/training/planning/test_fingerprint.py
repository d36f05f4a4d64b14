"""When a training is the same as an earlier one: it continues, or is done already."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from imgcls.config.training import TrainConfig
from imgcls.data.dataset import Dataset, freeze_split, read_dataset
from imgcls.image.spec import PreprocessSpec
from imgcls.model.registry import list_versions
from imgcls.training.driver import train
from imgcls.training.planning.fingerprint import digest
from imgcls.training.planning.make_plan import (
    build_decode_spec,
    build_train_recipe,
    decisive_values,
    make_plan,
)
from imgcls.training.train_plan import run_uri
from tests.training.bars import bars_config

MakeTree = Callable[..., Path]
make_config = partial(bars_config, batch_size=16, epochs=4, val_fraction=0.2, test_fraction=0.2)


def test_a_training_that_is_done_is_not_done_again(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(make_tree(20), epochs=1)
    first, again = train(config), train(config)
    assert again == first | {"already_trained": True, "total_s": again["total_s"]}
    assert "this training is done already" in caplog.text
    assert [model.version for model in list_versions(config.registry, "bars")] == [1]
    # By a version that did not know one of the flags.
    finished = Path(first["run"]) / "finished.json"
    done = json.loads(finished.read_text())
    del done["config"]["layer_decay"]
    finished.write_text(json.dumps(done))
    assert train(config)["already_trained"]
    # What is gone is trained again, and so is what is asked for with another flag.
    shutil.rmtree(first["uri"])
    assert "already_trained" not in train(config)
    assert "already_trained" not in train(make_config(Path(config.data), epochs=1, cache="none"))


@pytest.mark.parametrize("as_manifest", [False, True])
def test_a_training_over_images_that_were_replaced_begins_anew(
    as_manifest: bool, make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_tree(20)
    config = make_config(data, epochs=2, checkpoint_every="2")
    if as_manifest:
        lines = [f"{path},{path.parent.name}" for path in sorted(data.rglob("*.png"))]
        (data.parent / "list.csv").write_text("\n".join(["uri,label", *lines]))
        config = make_config(data, data=str(data.parent / "list.csv"), epochs=2)
    plan = make_plan(config)
    assert make_plan(config).fingerprint == plan.fingerprint
    image = min(data.rglob("*.png"))
    # Restored from a backup: another file of the same bytes and time.
    status = image.stat()
    copy = image.with_name("copy")
    copy.write_bytes(image.read_bytes())
    copy.replace(image)
    os.utime(image, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert make_plan(config).fingerprint == plan.fingerprint
    image.write_bytes(max(data.rglob("*.png")).read_bytes())
    assert make_plan(config).fingerprint != plan.fingerprint


def test_an_unfinished_run_of_27535e0_goes_on_until_its_images_are_replaced(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_tree(20)
    config = make_config(data, epochs=1)
    # Split by hash alone, as that version did; its split.csv was there before its first step.
    dataset = read_dataset_of(config)
    earlier = Path(run_uri(config, "0" * 16))
    earlier.mkdir(parents=True)
    (earlier / "run.json").write_text(json.dumps(asdict(config)))
    (earlier / "split.csv").write_bytes(freeze_split(dataset.samples))
    plan = make_plan(config)
    assert plan.split_digest == dataset.split_digest
    values = decisive_values(config, plan.recipe, plan.decode_spec, dataset)
    earlier = earlier.rename(run_uri(config, digest(values)))
    assert make_plan(config).run_uri == str(earlier)
    assert train(config)["run"] == str(earlier)
    assert make_plan(config).run_uri == str(earlier)
    os.utime(min(data.rglob("*.png")), ns=(1, 1))
    assert make_plan(config).run_uri != str(earlier)
    assert "over other versions of these images" in caplog.text


def read_dataset_of(config: TrainConfig) -> Dataset:
    return read_dataset(
        config.data,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )


def test_a_plain_training_has_the_fingerprint_of_the_versions_before(tmp_path: Path) -> None:
    """Else its checkpoints are not found again after an upgrade."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(1, 10):
            (tmp_path / label / f"{number}.png").touch()
    config = TrainConfig(
        data=str(tmp_path),
        registry="r",
        name="x",
        arch="simple_cnn",
        image_px="12",
        batch_size=8,
        # What `measured` comes to where the data has no deep greys, as it had none of them then.
        gray_range="declared",
    )
    dataset = read_dataset(config.data, val_fraction=0.15, test_fraction=0.15, seed=0)
    spec = PreprocessSpec.for_image_px(12, mean=(0.1, 0.2, 0.3), std=(0.2, 0.2, 0.2))
    recipe = build_train_recipe(config, spec)
    values = decisive_values(config, recipe, build_decode_spec(config), dataset)
    assert digest(values) == "44684a3ab758663f"  # as of commit 7f1a610
