"""The last layer by logistic regression: right numbers, whole groups, no class forgotten."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from imgcls.training.head import solver
from imgcls.training.head.solver import (
    LinearHead,
    balanced_weights,
    fit_linear_head,
    out_of_fold_probs,
)

NUM, WIDTH = 240, 6


def one_hot(label_N: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.bool_]:
    return np.eye(num_classes, dtype=bool)[label_N]


def made(num_classes: int, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features of unlike scales and places, and labels that are linear in them but for noise."""
    rng = np.random.default_rng(seed)
    x_NE = rng.normal(size=(NUM, WIDTH))
    logits_NK = x_NE @ rng.normal(size=(WIDTH, num_classes)) + rng.gumbel(size=(NUM, num_classes))
    scale_E, place_E = 10.0 ** rng.uniform(-3, 3, WIDTH), rng.uniform(-50, 50, WIDTH)
    return (x_NE * scale_E + place_E).astype(np.float32), logits_NK.argmax(axis=1)


def fit(
    x_NE: npt.NDArray[np.float32], target_NK: npt.NDArray[np.bool_], **changes: object
) -> LinearHead:
    asked = {
        "weight_N": np.ones(len(x_NE), np.float32),
        "group_N": np.arange(len(x_NE)),
        "multi_label": False,
        "seed": 0,
    } | changes
    return fit_linear_head(x_NE, target_NK, **asked)  # type: ignore[arg-type]


def probs(head: LinearHead, x_NE: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    logits_NK = x_NE.astype(np.float64) @ head.weight_KE.T + head.bias_K
    odds_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(odds_NK / odds_NK.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_layer_gives_the_probabilities_of_a_logistic_regression(num_classes: int) -> None:
    x_NE, label_N = made(num_classes)
    head = fit(x_NE, one_hot(label_N, num_classes))
    scaled_NE = (x_NE - x_NE.mean(axis=0)) / x_NE.std(axis=0)
    reference = LogisticRegression(C=head.strength, max_iter=1000).fit(scaled_NE, label_N)
    np.testing.assert_allclose(probs(head, x_NE), reference.predict_proba(scaled_NE), atol=2e-3)
    assert (probs(head, x_NE).argmax(axis=1) == label_N).mean() > 0.6


def test_the_strength_is_chosen_by_groups_that_were_not_seen() -> None:
    """Features that name the patient: within patients they tell the label, beyond them nothing."""
    rng = np.random.default_rng(0)
    group_N = np.arange(NUM) // 6
    label_N = rng.integers(0, 2, NUM // 6)[group_N]
    names_NE = np.eye(NUM // 6, dtype=np.float32)[group_N]
    by_patient = fit(names_NE, one_hot(label_N, 2), group_N=group_N)
    by_image = fit(names_NE, one_hot(label_N, 2), group_N=np.arange(NUM))
    assert by_patient.strength == solver.STRENGTHS[0]
    assert by_image.strength > 10 * by_patient.strength
    assert min(by_patient.loss_by_strength.values()) > 0.5 > min(by_image.loss_by_strength.values())


@pytest.mark.parametrize("seed", range(3))
def test_what_only_a_weak_penalty_finds_is_found_behind_strengths_that_guess(seed: int) -> None:
    """A difference of two noisy features tells the class: the loss rises before it falls."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(NUM) % 3
    noise_NE = rng.normal(size=(NUM, 6))
    x_NE = np.concatenate([noise_NE + np.eye(6)[label_N] / 4, noise_NE], axis=1, dtype=np.float32)
    head = fit(x_NE[:60], one_hot(label_N[:60], 3))
    losses = list(head.loss_by_strength.values())
    assert max(losses[:4]) > losses[0], "otherwise this asks for nothing"
    assert head.strength >= 100
    assert (probs(head, x_NE[60:]).argmax(axis=1) == label_N[60:]).all()


def test_a_rare_class_counts_as_much_as_the_others_when_it_is_weighed() -> None:
    rng = np.random.default_rng(0)
    label_N = (np.arange(NUM) % 12 == 0).astype(int)
    x_NE = (rng.normal(size=(NUM, 2)) + label_N[:, None]).astype(np.float32)
    target_NK = one_hot(label_N, 2)
    weight_N = balanced_weights(target_NK)
    assert weight_N[label_N == 0].sum() == pytest.approx(weight_N[label_N == 1].sum())
    assert weight_N.sum() == pytest.approx(NUM)
    found = [
        (probs(head, x_NE).argmax(axis=1)[label_N == 1] == 1).mean()
        for head in (fit(x_NE, target_NK), fit(x_NE, target_NK, weight_N=weight_N))
    ]
    assert found[1] > found[0] + 0.3


def test_classes_of_several_labels_are_fitted_each_by_itself() -> None:
    x_NE, label_N = made(3)
    target_NK = one_hot(label_N, 3) | one_hot((label_N + (x_NE[:, 0] > x_NE[:, 0].mean())) % 3, 3)
    target_NK = np.concatenate(
        [target_NK, np.ones((NUM, 1), bool), np.zeros((NUM, 1), bool)], axis=1
    )
    head = fit(x_NE, target_NK, multi_label=True)
    logits_NK = x_NE @ head.weight_KE.T + head.bias_K
    right_K = ((logits_NK > 0) == target_NK).mean(axis=0)
    assert (right_K[:3] > 0.65).all()
    assert right_K[3:].tolist() == [1.0, 1.0], "a class that all show, and one that none does"


def test_a_class_without_a_training_image_is_there_and_is_never_the_answer() -> None:
    x_NE, label_N = made(3)
    head = fit(x_NE, one_hot(label_N * 2, 6))
    found_NK = probs(head, x_NE)
    assert head.weight_KE.shape == (6, WIDTH)
    assert found_NK[:, [1, 3, 5]].max() < 0.05
    assert (found_NK.argmax(axis=1) == label_N * 2).mean() > 0.6


def test_too_few_groups_to_choose_by_are_said() -> None:
    x_NE, label_N = made(2)
    head = fit(x_NE, one_hot(label_N, 2), group_N=np.zeros(NUM, np.int64))
    assert head.loss_by_strength == {}


def test_a_group_that_the_choice_of_a_strength_does_not_see_is_judged_all_the_same() -> None:
    """Of another patient than all others is one image, not among the 5,000 that choose."""
    num = solver._MAX_FOLD_IMAGES + 50
    alone = np.random.default_rng(0).permutation(num)[-1]
    label_N = np.arange(num) % 2
    x_NE = (label_N[:, None] + np.random.default_rng(1).normal(size=(num, 1))).astype(np.float32)
    group_N = (np.arange(num) == alone).astype(np.int64)
    probs_NK = out_of_fold_probs(x_NE, one_hot(label_N, 2), group_N, seed=0)
    assert probs_NK.sum(axis=1) == pytest.approx(1.0)


def test_a_feature_that_is_the_same_in_all_images_but_for_rounding_changes_nothing() -> None:
    x_NE, label_N = made(2)
    dead_NE = 1e-3 + np.random.default_rng(0).normal(size=(NUM, 1)) * 1e-8
    both_NE = np.concatenate([x_NE * 1e3, dead_NE], axis=1, dtype=np.float32)
    group_N = np.arange(NUM)
    found = [out_of_fold_probs(x, one_hot(label_N, 2), group_N, 0) for x in (x_NE, both_NE)]
    np.testing.assert_allclose(*found, atol=1e-3)


def test_a_fit_is_one_thread_and_is_the_same_beside_any_number_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small products on several threads take three times as long, and sum in another order."""
    x_NE, label_N = made(3)
    asked, used = solver._solve, []

    def watched(*given: object) -> object:
        used.extend(i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas")
        return asked(*given)

    monkeypatch.setattr(solver, "_solve", watched)
    found = []
    for num_threads in (1, 2):
        with threadpool_limits(num_threads, "blas"):
            found.append(fit(x_NE, one_hot(label_N, 3)))
    assert set(used) == {1}
    assert found[0].weight_KE.tobytes() == found[1].weight_KE.tobytes()
    assert found[0].loss_by_strength == found[1].loss_by_strength
