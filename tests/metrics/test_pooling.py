"""Pooling: by hand, by torch, with a gradient that reaches the instances it should."""

import numpy as np
import pytest
import torch

from imgcls.metrics.pooling import (
    POOLINGS,
    Pooling,
    background_of,
    best_instance,
    pool,
    pool_logits,
    pool_samples,
)

# Four tiles, three marks that exclude nothing.
EACH_IK = np.array([[0.1, 0.5, 0.0], [0.4, 0.5, 0.0], [0.2, 0.5, 1.0], [0.8, 0.5, 0.0]])
# Four tiles of good, scratch, dent.
EXCLUSIVE_IK = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.5, 0.1, 0.4], [0.8, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("max", [0.8, 0.5, 1.0]),
        ("mean", [0.375, 0.5, 0.25]),
        ("top3_mean", [1.4 / 3, 0.5, 1 / 3]),
        ("noisy_or", [1 - 0.9 * 0.6 * 0.8 * 0.2, 1 - 0.5**4, 1.0]),
    ],
)
def test_each_class_by_itself_by_hand(rule: Pooling, expected: list[float]) -> None:
    np.testing.assert_allclose(pool(EACH_IK, rule, multi_label=True), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("max", [0.2, 0.7, 0.1]),  # the tile that is least good
        ("mean", [0.6, 0.2375, 0.1625]),
        ("top3_mean", [0.5, 0.3, 0.2]),
        # none of the four shows a defect: 0.9 * 0.2 * 0.5 * 0.8 = 0.072; 0.928 is shared out as
        # 1 - 0.95 * 0.3 * 0.9 * 0.9 = 0.76915 to 1 - 0.95 * 0.9 * 0.6 * 0.9 = 0.5383
        ("noisy_or", [0.072, 0.928 * 0.76915 / 1.30745, 0.928 * 0.5383 / 1.30745]),
    ],
)
def test_against_a_background_by_hand(rule: Pooling, expected: list[float]) -> None:
    pooled_K = pool(EXCLUSIVE_IK, rule, multi_label=False, background=0)
    np.testing.assert_allclose(pooled_K, expected, rtol=1e-12)


def test_one_defect_among_a_hundred_good_tiles_is_found_against_a_background_only() -> None:
    tiles_IK = np.array([[0.99, 0.01]] * 100 + [[0.05, 0.95]])
    assert pool(tiles_IK, "max", multi_label=False, background=0).argmax() == 1
    assert pool(tiles_IK, "noisy_or", multi_label=False, background=0).argmax() == 1
    # Without a background the hundred count: 0.99 beside 0.95.
    assert pool(tiles_IK, "max", multi_label=False).argmax() == 0


def test_without_a_background_the_sum_is_brought_back_to_one() -> None:
    pooled_K = pool(EXCLUSIVE_IK, "max", multi_label=False)
    np.testing.assert_allclose(pooled_K, np.array([0.9, 0.7, 0.4]) / 2.0)


@pytest.mark.parametrize("rule", POOLINGS)
@pytest.mark.parametrize("background", [None, 1])
def test_a_distribution_stays_one_and_one_instance_keeps_its_bits(
    rule: Pooling, background: int | None
) -> None:
    probs_IK = np.random.default_rng(0).dirichlet(np.ones(5), 300).astype(np.float32)
    sample_I = np.random.default_rng(1).integers(0, 40, 300)
    sample_I[0] = 40  # alone
    pooled_SK = pool_samples(probs_IK, sample_I, rule, multi_label=False, background=background)
    assert pooled_SK.dtype == np.float32
    assert pooled_SK.shape == (41, 5)
    np.testing.assert_allclose(pooled_SK.sum(axis=1), 1, rtol=1e-6)
    assert (pooled_SK[40] == probs_IK[0]).all()


def test_samples_are_pooled_apart_whatever_the_order() -> None:
    sample_I = np.array([2, 0, 2, 1])
    pooled_SK = pool_samples(EACH_IK, sample_I, "max", multi_label=True)
    np.testing.assert_array_equal(pooled_SK, [[0.4, 0.5, 0.0], [0.8, 0.5, 0.0], [0.2, 0.5, 1.0]])


@pytest.mark.parametrize("rule", POOLINGS)
@pytest.mark.parametrize(("multi_label", "background"), [(True, None), (False, None), (False, 2)])
def test_torch_pools_by_the_same_formula(
    rule: Pooling, multi_label: bool, background: int | None
) -> None:
    rng = np.random.default_rng(0)
    logits_IK = torch.from_numpy(rng.normal(0, 3, (60, 4)))
    sample_I = np.r_[np.arange(12), rng.integers(0, 12, 48)]
    kind = {"multi_label": multi_label, "background": background}
    pooled_SK = pool_logits(logits_IK, sample_I, rule, **kind)  # type: ignore[arg-type]
    given_SK = pooled_SK.sigmoid() if multi_label else pooled_SK.softmax(dim=1)
    probs_IK = logits_IK.sigmoid() if multi_label else logits_IK.softmax(dim=1)
    expected_SK = pool_samples(probs_IK.numpy(), sample_I, rule, **kind)  # type: ignore[arg-type]
    np.testing.assert_allclose(given_SK.numpy(), expected_SK, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", POOLINGS)
@pytest.mark.parametrize(("multi_label", "background"), [(True, None), (False, None), (False, 2)])
def test_the_gradient_is_that_of_the_formula(
    rule: Pooling, multi_label: bool, background: int | None
) -> None:
    logits_IK = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sample_I = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])

    def pooled(x_IK: torch.Tensor) -> torch.Tensor:
        return pool_logits(x_IK, sample_I, rule, multi_label=multi_label, background=background)

    assert torch.autograd.gradcheck(pooled, logits_IK.requires_grad_())


@pytest.mark.parametrize(("rule", "reached"), [("max", 1), ("top3_mean", 3), ("mean", 5)])
def test_the_gradient_reaches_the_instances_that_count(rule: Pooling, reached: int) -> None:
    logits_IK = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    pooled_SK = pool_logits(logits_IK, np.zeros(5, int), rule, multi_label=False, background=0)
    torch.nn.functional.cross_entropy(pooled_SK, torch.tensor([1])).backward()
    assert logits_IK.grad is not None
    assert int((logits_IK.grad.abs().sum(dim=1) > 0).sum()) == reached


@pytest.mark.parametrize("rule", POOLINGS)
@pytest.mark.parametrize("scale", [1e-3, 40.0, 300.0])
@pytest.mark.parametrize(("multi_label", "background"), [(True, None), (False, None), (False, 0)])
def test_neither_value_nor_gradient_is_lost_at_extreme_logits(
    rule: Pooling, scale: float, multi_label: bool, background: int | None
) -> None:
    random = torch.Generator().manual_seed(2)
    logits_IK = (scale * torch.randn(20, 3, generator=random)).requires_grad_()
    sample_I = np.repeat(np.arange(4), 5)
    kind = {"multi_label": multi_label, "background": background}
    pooled_SK = pool_logits(logits_IK, sample_I, rule, **kind)  # type: ignore[arg-type]
    pooled_SK.sum().backward()
    assert pooled_SK.isfinite().all()
    assert logits_IK.grad is not None
    assert logits_IK.grad.isfinite().all()


def test_the_best_instance_is_the_one_with_the_least_background() -> None:
    assert best_instance(EXCLUSIVE_IK, multi_label=False, background=0) == 1
    assert best_instance(EXCLUSIVE_IK, multi_label=False) == 0
    assert best_instance(EACH_IK, multi_label=True) == 2


def test_the_background_is_the_class_that_need_not_be_found() -> None:
    assert background_of(["crack", "fine"], ["crack"], multi_label=False) == 1
    assert background_of(["dent", "Good", "scratch"], multi_label=False) == 1
    assert background_of(["cat", "dog"], multi_label=False) is None
    assert background_of(["crack", "good"], ["crack"], multi_label=True) is None
    assert background_of(["delle", "gut", "kratzer"], ["kratzer", "delle"], multi_label=False) == 1
    assert background_of(["delle", "gut", "kratzer"], ["kratzer"], multi_label=False) is None
    # Two classes could be meant: none is guessed.
    assert background_of(["good", "normal", "dent"], multi_label=False) is None


def test_of_instances_that_are_all_background_the_others_classes_tell() -> None:
    probs_IK = np.array([[1.0, 1e-12], [1.0, 1e-9], [1.0, 1e-20]], np.float32)
    pooled_K = pool(probs_IK, "max", multi_label=False, background=0)
    assert pooled_K.tolist() == probs_IK[1].tolist()
    assert best_instance(probs_IK, multi_label=False, background=0) == 1
