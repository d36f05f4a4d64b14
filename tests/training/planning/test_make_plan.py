import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.choices import WorkerRange
from imgcls.errors import ConfigError, ImgclsError
from imgcls.model.registry import register
from imgcls.training.planning.make_plan import make_plan
from tests.scoring.tiny import make_bundle
from tests.training.bars import bars_config

MakeTree = Callable[..., Path]


make_config = partial(bars_config, epochs=2, lr=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet17"}, "resnet18"),
        ({"arch": "vgg11", "image_px": 16}, "at least 32 px"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": 5000}, "--batch-size 5000 .* there are"),
        ({"batch_size": 1}, "normalises over the batch"),
        ({"lr": 0.0}, "--lr 0.0: must be more than 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"warmup_fraction": 1.5}, "--warmup-fraction 1.5: must be 0 to 1"),
        ({"max_bad_fraction": -0.1}, "--max-bad-fraction"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"name": "a/b"}, "--name 'a/b'"),
        ({"registry": "ftp://host/x"}, "ftp://"),
        ({"num_workers": "-1"}, "--num-workers -1: .*MIN:MAX"),
        ({"num_workers": "0:2"}, "--num-workers 0:2: .*MIN at least 1"),
        ({"num_workers": "3:2"}, "--num-workers 3:2"),
        ({"num_workers": "two"}, "--num-workers two"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints 0"),
        ({"checkpoint_every": "often"}, "--checkpoint-every often"),
        ({"data": "/nonexistent/images"}, "/nonexistent/images"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, make_tree: MakeTree
) -> None:
    data = make_tree(12)
    with pytest.raises(ConfigError, match=message) as raised:
        make_plan(make_config(data, **changes))
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert not (data.parent / "registry").exists()


def test_images_that_are_none_are_refused_with_a_name(make_tree: MakeTree) -> None:
    data = make_tree(12)
    for path in data.rglob("*.png"):
        path.write_bytes(b"<html>")
    with pytest.raises(ImgclsError, match=r"none of \d+ training images gives pixels.*\.png"):
        make_plan(make_config(data))


def test_plan_measures_the_colours_and_counts_the_splits(make_tree: MakeTree) -> None:
    plan = make_plan(make_config(make_tree(40)))
    assert sum(len(samples) for samples in plan.splits.values()) == 80
    # Noise of mean 45/255 and a bright bar over a quarter of the image.
    assert plan.preprocess_spec.mean == pytest.approx((0.29,) * 3, abs=0.03)
    assert all(0.1 < std < 0.35 for std in plan.preprocess_spec.std)
    assert plan.shape_CHW == (3, 12, 12)
    assert plan.recipe.global_batch_size == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": "2", "batch_size": 4},
        {"device": "cpu"},
        {"cache": "none"},
        {"num_decoders": 2},
    ],
)
def test_where_it_runs_does_not_change_the_run(
    changes: dict[str, Any], make_tree: MakeTree
) -> None:
    config = make_config(make_tree(20))
    changed = dataclasses.replace(config, **changes)
    assert make_plan(changed).run_uri == make_plan(config).run_uri


@pytest.mark.parametrize(
    "changes", [{"lr": 0.5}, {"seed": 1}, {"epochs": 3}, {"batch_size": 4}, {"augment": "none"}]
)
def test_what_changes_the_weights_is_another_run(
    changes: dict[str, Any], make_tree: MakeTree
) -> None:
    config = make_config(make_tree(20))
    changed = dataclasses.replace(config, **changes)
    assert make_plan(changed).run_uri != make_plan(config).run_uri


def test_more_images_are_another_run(make_tree: MakeTree) -> None:
    config = make_config(make_tree(20))
    before = make_plan(config).run_uri
    first = next(Path(config.data).rglob("*.png"))
    (first.parent / "another.png").write_bytes(first.read_bytes())
    assert make_plan(config).run_uri != before


def test_other_weights_of_the_images_are_another_run(make_tree: MakeTree) -> None:
    tree = make_tree(20)
    manifest = tree.parent / "labels.csv"
    config = make_config(manifest)

    def run_uri_with(weight_of_first: float) -> str:
        rows = [
            f"{path},{path.parent.name},{1.0 if number else weight_of_first}"
            for number, path in enumerate(sorted(tree.rglob("*.png")))
        ]
        manifest.write_text("\n".join(["uri,label,weight", *rows]))
        return make_plan(config).run_uri

    assert run_uri_with(1.0) == run_uri_with(1.0) != run_uri_with(2.0)


@pytest.mark.parametrize(
    ("text", "fewest", "most", "is_elastic"),
    [("0", 0, 0, False), ("2", 2, 2, False), ("1:4", 1, 4, True), (" 3:3 ", 3, 3, False)],
)
def test_workers_are_a_number_or_a_range(
    text: str, fewest: int, most: int, is_elastic: bool
) -> None:
    workers = WorkerRange.parse(text)
    assert (workers.fewest, workers.most, workers.is_elastic) == (fewest, most, is_elastic)


def test_weights_of_a_bundle_are_met_with_their_own_normalization(make_tree: MakeTree) -> None:
    data = make_tree(20)
    bundle = make_bundle()
    register(str(data.parent / "models"), "teacher", bundle)
    tuned = make_plan(make_config(data, weights=f"{data.parent}/models/teacher@v1"))
    new = make_plan(make_config(data))
    assert tuned.preprocess_spec.mean == bundle.preprocess_spec.mean != new.preprocess_spec.mean
    assert tuned.preprocess_spec.std == bundle.preprocess_spec.std
    assert tuned.fingerprint != new.fingerprint
