"""--augment-from source: each epoch looks at other parts of the files, with their own detail."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.errors import ConfigError
from imgcls.image.crops import decode_frames
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.seen import measure_seen
from imgcls.image.fit.view import Part
from imgcls.image.spec import PreprocessSpec
from imgcls.training.data.sampler import Share
from imgcls.training.driver import train
from imgcls.training.optim.loop import make_changes
from imgcls.training.optim.setup import make_loaders
from imgcls.training.planning.fit import check_seen
from imgcls.training.planning.make_plan import build_train_recipe, check_flags, make_plan
from imgcls.training.ranks.rank import Place
from tests.training.test_driver import make_config

MakeTree = Callable[..., Path]
FLAGS: dict[str, Any] = {"augment": "standard", "augment_from": "source", "allow_leaks": True}


def large(root: Path) -> Path:
    """Make the pictures 8 times as large, with lines too fine for the input."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        with Image.open(path) as small:
            pixels = np.asarray(small.resize((96, 96))).copy()
        pixels[number % 3 :: 3] //= 2
        Image.fromarray(pixels).save(path)
    return root


def test_each_epoch_draws_its_part_from_the_file(make_tree: MakeTree) -> None:
    plan = make_plan(make_config(large(make_tree(20)), cache="ram", **FLAGS))
    samples, index_B = plan.splits["train"], np.array([3, 0, 5])
    share = Share(index_B, num_passes=1, min_rows=2)
    seen = []
    with DecoderPool(plan.decode_spec, plan.preprocess_spec, 1) as pool:
        loaders = make_loaders(plan, pool, Place())
        for epoch in (0, 1):
            with make_changes(loaders["train"], plan.recipe, epoch) as changes:
                [batch] = loaders["train"].batches_to_train([share], changes)
                for row, index in enumerate(index_B.tolist()):
                    data = Path(samples[index].uri).read_bytes()
                    view = changes.view_of(index, 1.0)
                    [crop] = decode_frames(data, *pool_specs(plan), part=Part(view))
                    np.testing.assert_array_equal(batch.x_BCHW[row].numpy(), crop.x_CHW)
                assert batch.draws_BN is not None
            seen.append(batch.x_BCHW)
        [validation] = loaders["val"].batches([np.array([0])])
    assert not torch.equal(*seen)
    data = Path(plan.splits["val"][0].uri).read_bytes()
    [whole] = decode_frames(data, *pool_specs(plan))
    np.testing.assert_array_equal(validation.x_BCHW[0].numpy(), whole.x_CHW)


def pool_specs(plan: Any) -> tuple[Any, Any]:
    return plan.decode_spec, plan.preprocess_spec


def test_a_training_says_what_it_zooms_into_and_what_cannot_be_is_refused(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(large(make_tree(20)), epochs=1, **FLAGS)
    assert train(config)["epochs"] == 1
    assert "zooms into the pictures themselves: each is read and decoded in every epoch" in (
        caplog.text
    )
    spec, plain = PreprocessSpec.for_image_px(12), replace(config, augment_from="input")
    check_seen(plain, measure_seen([(96, 96)], spec))
    assert "--augment-from source does" in caplog.text
    # Where nothing moves there is no view, and it is the same training.
    still = replace(config, augment="none")
    recipes = [build_train_recipe(each, spec).augment for each in (config, plain, still)]
    assert [recipe.from_source for recipe in recipes] == [True, False, False]
    with pytest.raises(ConfigError, match="--augment-from source: must be input with tiles"):
        check_flags(replace(config, frames="pool"))
