"""Which instances are trained on, and that leaving the others out changes no gradient."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.training.instances.batch import Batch, Instances
from imgcls.training.instances.cache import KnownInstances
from imgcls.training.instances.choose import (
    MAX_CANDIDATES,
    NUM_KEPT,
    choose_instances,
    limit_known,
)
from imgcls.training.instances.pooled_loss import loss_of_samples, pool_batch
from imgcls.training.optim.losses import loss_per_image
from tests.training.rank_main import make_recipe

NUM = 40


def batch_of(target_IK: np.ndarray, labels: list[int], counts: list[int]) -> Batch:
    num = sum(counts)
    return Batch(
        torch.arange(num, dtype=torch.uint8)[:, None, None, None],
        torch.eye(2)[labels],
        torch.ones(len(labels)),
        torch.arange(len(labels)) + 7,
        instances=Instances(np.repeat(np.arange(len(counts)), counts), torch.from_numpy(target_IK)),
    )


def unknown(num: int) -> np.ndarray:
    return np.full((num, 2), np.nan, np.float32)


def logits(seed: int = 0, num: int = NUM) -> torch.Tensor:
    return torch.randn((num, 2), generator=torch.Generator().manual_seed(seed)) * 3


def choose(batch: Batch, step: int = 0, **changes: Any) -> tuple[Batch, np.ndarray]:
    """Return the batch and the rows that were kept; the logits of a row are those of its pixel."""
    recipe = make_recipe(1, **{"pooling": "max", "background": 0} | changes)
    every = logits()

    def probs_of(x_ICHW: torch.Tensor) -> np.ndarray:
        return every[x_ICHW.flatten().long()].softmax(dim=1).numpy()

    kept = choose_instances(batch, probs_of, recipe, step)
    return kept, kept.x_BCHW.flatten().numpy()


@pytest.mark.parametrize("rule", ["max", "top3_mean"])
def test_the_gradient_of_a_label_per_picture_is_that_of_all_instances(rule: str) -> None:
    counts = [25, 15]
    batch = batch_of(unknown(NUM), [1, 1], counts)
    recipe = replace(make_recipe(1), pooling=rule, background=0)  # type: ignore[arg-type]

    def gradient(of: Batch, rows: np.ndarray) -> torch.Tensor:
        every = logits().requires_grad_()
        assert of.instances is not None
        chosen = every[torch.from_numpy(rows).long()]
        pooled = pool_batch(chosen, of.instances, recipe)
        loss_B = loss_of_samples(
            chosen,
            loss_per_image(pooled, of.target_BK, "cross_entropy"),
            of.instances,
            lambda logits_BK, target_BK: loss_per_image(logits_BK, target_BK, "cross_entropy"),
        )
        loss_B.sum().backward()
        assert every.grad is not None
        return every.grad

    few, rows = choose(batch, pooling=rule)
    assert len(rows) == 2 * NUM_KEPT
    torch.testing.assert_close(gradient(few, rows), gradient(batch, np.arange(NUM)))


def test_of_known_instances_the_worst_are_kept_and_what_is_in_a_box() -> None:
    target_IK = np.tile(np.array([1.0, 0.0], np.float32), (NUM, 1))
    target_IK[[4, 30]] = 0.0, 1.0
    target_IK[5] = np.nan
    few, rows = choose(batch_of(target_IK, [1], [NUM]))
    bad_I = logits().softmax(dim=1)[:, 1].numpy()
    bad_I[[4, 5, 30]] = -1
    assert {4, 30} <= set(rows.tolist())
    assert 5 not in rows
    assert set(np.argsort(-bad_I)[:3]) <= set(rows.tolist())
    assert len(rows) == 2 + NUM_KEPT
    assert few.instances is not None
    assert not few.instances.target_IK.isnan().any()


def test_the_choice_depends_on_the_sample_and_the_step_not_on_its_neighbours() -> None:
    counts = [20, 20]
    together, rows = choose(batch_of(unknown(NUM), [1, 1], counts))
    assert together.instances is not None
    alone = batch_of(unknown(20), [1], [20])
    _, alone_rows = choose(alone)
    assert rows[: len(alone_rows)].tolist() == alone_rows.tolist()
    _, later_rows = choose(alone, step=1)
    assert later_rows.tolist() != alone_rows.tolist()


def test_each_class_without_a_background_keeps_the_instance_that_speaks_for_it() -> None:
    batch = batch_of(unknown(NUM), [1], [NUM])
    recipe = make_recipe(1, pooling="max", multi_label=True)
    probs_IK = logits().sigmoid().numpy()
    few = choose_instances(batch, lambda _x: probs_IK, recipe, 0)
    rows = few.x_BCHW.flatten().tolist()
    assert {int(probs_IK[:, 0].argmax()), int(probs_IK[:, 1].argmax())} <= set(rows)


def test_few_known_instances_are_looked_at_and_all_where_only_the_picture_has_a_label() -> None:
    x_ICHW = np.arange(300, dtype=np.int64)[:, None, None, None]
    target_IK = np.tile(np.array([1.0, 0.0], np.float32), (300, 1))
    target_IK[[7, 8]] = 0.0, 1.0
    few = limit_known(KnownInstances(x_ICHW, target_IK), lambda num: np.arange(num)[::-1])
    assert len(few.x_ICHW) == MAX_CANDIDATES
    assert {7, 8} <= set(few.x_ICHW.flatten().tolist())
    everything = KnownInstances(x_ICHW, unknown(300))
    assert limit_known(everything, np.arange) is everything


def test_a_box_weighs_as_much_as_the_rest_of_its_picture() -> None:
    target_IK = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    loss_I = torch.tensor([8.0, 1.0, 2.0, 3.0])
    instances = Instances(np.zeros(4, np.int64), target_IK)
    found = loss_of_samples(
        torch.zeros(4, 2), torch.tensor([99.0]), instances, lambda _l, _t: loss_I
    )
    assert found.tolist() == [(8 + 2) / 2]
    nothing = Instances(np.zeros(4, np.int64), torch.full((4, 2), torch.nan))
    assert loss_of_samples(
        torch.zeros(4, 2), torch.tensor([99.0]), nothing, lambda _l, _t: loss_I
    ).tolist() == [99.0]
