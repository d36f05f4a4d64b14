"""Which images are chosen, what that tells of a model, and what the next model learns of it."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from imgcls.labelling.choose import Candidates, choose
from imgcls.metrics.sampled import Stratum, estimate
from imgcls.training.head.solver import fit_linear_head


def test_a_queue_takes_turns_and_draws_the_rest_from_all() -> None:
    number = 1000
    rng = np.random.default_rng(0)
    called = ["positive" if i < 50 else "negative" for i in range(number)]
    found = Candidates(
        called=called,
        lot=rng.random(number),
        doubt=rng.random(number),
        unfamiliar=np.where(np.arange(number) < 10, 1.0, np.nan),
        disagreeing=np.full(number, np.nan),
        embedding_NE=rng.normal(size=(number, 8)).astype(np.float32),
    )
    chosen = choose(found, 60, 0.5)
    assert len({choice.index for choice in chosen}) == len(chosen) == 60
    by_reason = {why: [c for c in chosen if c.why == why] for why in {c.why for c in chosen}}
    assert {why: len(of) for why, of in by_reason.items()} == {
        "unfamiliar": 10, "uncertain": 10, "diverse": 10, "random": 30,
    }  # fmt: skip
    drawn = by_reason["random"]
    # Each kind is drawn in its share, and what is drawn stands for all that were not chosen.
    assert 2 <= sum(called[c.index] == "positive" for c in drawn) <= 4
    chosen_positive = sum(called[c.index] == "positive" for c in chosen if c.why != "random")
    sizes = {c.stratum: c.stratum_images for c in drawn}
    assert sizes == {
        "random: positive": 50 - chosen_positive,
        "random: negative": 950 - (30 - chosen_positive),
    }
    assert choose(found, 60, 0.5) == chosen
    assert len(choose(found, 5000, 0.2)) == number


def test_diverse_pictures_come_from_every_cluster() -> None:
    rng = np.random.default_rng(1)
    cluster_N = np.repeat(np.arange(8), [500, 200, 100, 50, 20, 10, 5, 3])
    x_NE = (rng.normal(size=(8, 16))[cluster_N] * 20 + rng.normal(size=(888, 16))).astype("f4")
    unknown = np.full(888, np.nan)
    found = Candidates(["a"] * 888, rng.random(888), unknown, unknown, unknown, x_NE)
    picked = {int(cluster_N[choice.index]) for choice in choose(found, 8, 0.0)}
    assert picked == set(range(8))


def _stream(rng: np.random.Generator) -> tuple[list[Stratum], float, float]:
    """A week of nights whose queue picks the uncertain, and what the model is truly worth."""
    strata, cells = [], np.zeros((2, 2))
    for _ in range(7):
        truth = rng.random(400) < 0.06
        called = np.where(truth, rng.random(400) < 0.85, rng.random(400) > 0.95)
        np.add.at(cells, (truth.astype(int), called.astype(int)), 1)
        doubt = rng.random(400) + 0.6 * (called != truth)
        found = Candidates(
            ["positive" if c else "negative" for c in called], rng.random(400), doubt,
            *[np.full(400, np.nan)] * 2,
        )  # fmt: skip
        chosen = choose(found, 40, 0.25)
        for name in {choice.stratum for choice in chosen}:
            of = [choice for choice in chosen if choice.stratum == name]
            positive = int(sum(truth[choice.index] for choice in of))
            strata.append(
                Stratum(
                    not name.startswith("random"), name.endswith("positive"),
                    of[0].stratum_images, len(of), positive, len(of),
                )
            )  # fmt: skip
    return strata, cells[1, 1] / cells[1].sum(), cells[0, 0] / cells[0].sum()


def test_weekly_estimates_hold_the_truth_while_the_queue_picks_the_uncertain() -> None:
    rng = np.random.default_rng(7)
    held, off, naive = [], [], []
    for _ in range(60):
        strata, sensitivity, specificity = _stream(rng)
        found = estimate(strata)
        for name, truth in (("sensitivity", sensitivity), ("specificity", specificity)):
            low, high = found[f"{name}_interval"]
            held.append(low <= truth <= high)
        off.append(found["sensitivity"] - sensitivity)
        seen = [s for s in strata if s.is_called_positive]
        missed = [s for s in strata if not s.is_called_positive]
        found_ones = sum(s.num_positive for s in seen)
        naive.append(found_ones / (found_ones + sum(s.num_positive for s in missed)) - sensitivity)
    assert np.mean(held) >= 19 / 20
    assert abs(np.mean(off)) < 0.02
    # Without weights the queue would make the model look far worse than it is.
    assert np.mean(naive) < -0.1


def _next_probs(
    x_NE: npt.NDArray[np.float32], label_N: npt.NDArray[np.int64], of_NE: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Fit a last layer to what is labelled; return its probabilities of other images."""
    num = len(label_N)
    head = fit_linear_head(
        x_NE, np.eye(int(label_N.max()) + 1, dtype=bool)[label_N],
        weight_N=np.ones(num, np.float32), group_N=np.arange(num), multi_label=False, seed=0,
    )  # fmt: skip
    logits_NK = of_NE @ head.weight_KE.T.astype(np.float64) + head.bias_K
    probs_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(probs_NK / probs_NK.sum(axis=1, keepdims=True))


def _learn(data: str, random_share: float, seed: int, *, diverse: bool) -> float:
    """Label 30 images of each of three nights, by the queue; return how good the next model is.

    Accuracy of five or ten digits; of one that is a thirtieth of the images, average precision.
    """
    rng = np.random.default_rng(seed)
    digits = load_digits(n_class=5 if data == "five digits" else 10)
    x_NE = (digits.data / 16).astype(np.float32)
    label_N = (digits.target == 8).astype(np.int64) if data == "a rare one" else digits.target
    test, pool = np.split(rng.permutation(len(x_NE)), [len(x_NE) // 3])
    if data == "a rare one":
        is_rare = label_N[pool] == 1
        # Three are known to begin with.
        rest = np.concatenate([pool[is_rare][3:36], pool[~is_rare]])
        pool = np.concatenate([pool[is_rare][:3], rng.permutation(rest)])
    labelled = list(pool[:60])
    for night in np.array_split(pool[60:], 3):
        probs_NK = _next_probs(x_NE[labelled], label_N[labelled], x_NE[night])
        two_NK = np.sort(probs_NK, axis=1)[:, -2:]
        nothing = np.full(len(night), np.nan)
        found = Candidates(
            called=[str(label) for label in probs_NK.argmax(axis=1)],
            lot=rng.random(len(night)),
            doubt=1 - (two_NK[:, 1] - two_NK[:, 0]),
            unfamiliar=nothing,
            disagreeing=nothing,
            embedding_NE=x_NE[night] if diverse else None,
        )
        labelled += [night[choice.index] for choice in choose(found, 30, random_share)]
    probs_NK = _next_probs(x_NE[labelled], label_N[labelled], x_NE[test])
    if data == "a rare one":
        return float(average_precision_score(label_N[test], probs_NK[:, 1]))
    return float(np.mean(probs_NK.argmax(axis=1) == label_N[test]))


@pytest.mark.parametrize(
    ("data", "seeds"),
    [
        pytest.param("five digits", (0,), id="sample"),
        pytest.param("ten digits", range(5), marks=pytest.mark.slow),
        pytest.param("a rare one", range(5), marks=pytest.mark.slow),
    ],
)
def test_a_model_learns_more_from_the_queue_than_from_as_many_drawn_at_random(
    data: str, seeds: tuple[int, ...]
) -> None:
    """What was measured, also of uncertain ones alone, is in docs/labels.md."""
    arms = {"queue": (0.2, True), "random": (1.0, False)}
    if len(seeds) > 1:
        arms["uncertain alone"] = (0.2, False)
    found = {
        name: np.array([_learn(data, share, s, diverse=diverse) for s in seeds])
        for name, (share, diverse) in arms.items()
    }
    for name, worth in found.items():
        print(f"{data}, {name}: {worth.mean():.3f} +- {worth.std():.3f}, {worth.round(3)}")  # noqa: T201
    assert found["queue"].mean() > found["random"].mean()
