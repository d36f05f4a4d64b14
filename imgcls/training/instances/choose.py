"""Which instances of a sample get a gradient: the hard ones, and a few at random.

In: a batch of whole samples, the model. Out: the batch with few instances of each. Invariant: the
choice depends on the weights, the sample and the step alone, so a resumed run makes it again and
so does any number of ranks; every sample keeps at least one instance.

A picture of a hundred tiles would cost a hundred forward and backward passes for one label, most of
them for tiles that are right already. So all its tiles go forward once, without a gradient, by the
weights and running statistics as they are; then only those are trained on that matter to the loss:

- where nothing is known of the instances (a label per picture), those that pooling takes its answer
  from: of `max` the one with the least background, of `top3_mean` three. The picture's loss reaches
  these tiles and no other, as it would if all had been kept: the choice changes what a step costs,
  not its gradient (of `max` and `top3_mean`; of `noisy_or` what is left out weighs next to nothing,
  and of `mean` the instances are drawn by chance, all alike);
- where their targets are known (a good picture, or one with boxes), those with the greatest loss,
  and as many that show something: hard negative mining;
- of those of which nothing is known, in the first epochs, one only: see first_guess.py;
- a few by chance, so that batch normalisation sees ordinary tiles as well, and a tile that is
  wrongly believed harmless is looked at again.

Campanella et al., Clinical-grade computational pathology using weakly supervised deep learning on
whole slide images (Nature Medicine 2019), train so on slides with one label each.

Shape legend: B sample, I instance, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from imgcls.training.augment.counter_rng import hash64
from imgcls.training.instances.batch import Batch, Instances
from imgcls.training.instances.cache import KnownInstances
from imgcls.training.instances.first_guess import NO_GUESS
from imgcls.training.train_plan import Recipe

# As many as top3_mean takes.
NUM_HARD: Final = 3
NUM_BY_CHANCE: Final = 3
NUM_KEPT: Final = NUM_HARD + NUM_BY_CHANCE
# Of a sample whose instances are all known, that are looked at in a step; others come another time.
MAX_CANDIDATES: Final = 64
_TINY: Final = 1e-12


def limit_known(found: KnownInstances, chance: Callable[[int], np.ndarray]) -> KnownInstances:
    """Return at most MAX_CANDIDATES instances, where each has a target; those that show something.

    Where only the sample has a label all of its instances stay: any may be the one that shows it.

    Args:
        found: all instances.
        chance: takes a number n, returns n numbers that order them.
    """
    num = len(found.x_ICHW)
    is_known_I = ~np.isnan(found.target_IK[:, 0])
    if num <= MAX_CANDIDATES or not is_known_I.any():
        return found
    order = np.argsort(chance(num), kind="stable")
    # The background is what most of them show.
    values, counts = np.unique(found.target_IK[is_known_I], axis=0, return_counts=True)
    is_usual_I = (found.target_IK == values[counts.argmax()]).all(axis=1)
    wanted = order[is_known_I[order] & ~is_usual_I[order]]
    usual = order[is_usual_I[order]]
    kept = np.concatenate([wanted, usual])[:MAX_CANDIDATES]
    return found.some(np.sort(kept))


def choose_instances(
    batch: Batch,
    probs_of: Callable[[torch.Tensor], np.ndarray],
    recipe: Recipe,
    step: int,
    guesses: Sequence[int] = (),
) -> Batch:
    """Return the batch with at most NUM_KEPT instances of each sample, and its known positives.

    Args:
        batch: its `instances` are all of each sample.
        probs_of: takes uint8 pixels [I,C,H,W], returns probabilities float32 [I,K] by the weights
            as they are.
        recipe: how samples are pooled, and the seed.
        step: of the run, from its first one on.
        guesses: the instance to take of each sample of the split, see first_guess.py.
    """
    instances = batch.instances
    assert instances is not None, "samples of one instance are not chosen from"
    num_samples = len(batch.index_B)
    counts_B = np.bincount(instances.sample_I, minlength=num_samples)
    if counts_B.max() <= NUM_KEPT and not np.isnan(instances.target_IK.numpy()).any():
        return batch
    probs_IK = probs_of(batch.x_BCHW) if recipe.pooling != "mean" else None
    chosen = []
    for sample in range(num_samples):
        rows = instances.rows_of(sample, sample + 1)
        index = int(batch.index_B[sample])
        if guesses and guesses[index] != NO_GUESS:
            # Of a unit an image may be missing by now.
            chosen.append(np.array([min(rows.start + guesses[index], rows.stop - 1)]))
            continue
        chance_I = hash64(recipe.seed, step, index, np.arange(rows.stop - rows.start))
        picked = _choose(
            None if probs_IK is None else probs_IK[rows],
            instances.target_IK[rows].numpy(),
            batch.target_BK[sample].numpy(),
            np.argsort(chance_I, kind="stable"),
            recipe.background,
        )
        chosen.append(rows.start + np.sort(picked))
    kept = np.concatenate(chosen)
    rows_kept = torch.from_numpy(kept)
    return replace(
        batch,
        x_BCHW=batch.x_BCHW[rows_kept],
        draws_BN=None if batch.draws_BN is None else batch.draws_BN[rows_kept],
        instances=Instances(instances.sample_I[kept], instances.target_IK[rows_kept]),
    )


def _choose(
    probs_IK: np.ndarray | None,
    target_IK: np.ndarray,
    target_K: np.ndarray,
    by_chance: np.ndarray,
    background: int | None,
) -> np.ndarray:
    """Return the rows that are trained on, of one sample."""
    is_known_I = ~np.isnan(target_IK[:, 0])
    if not is_known_I.any():
        if probs_IK is None:
            return by_chance[:NUM_KEPT]
        hard = _that_pooling_takes(probs_IK, target_K, background)
        rest = by_chance[~np.isin(by_chance, hard)]
        return np.concatenate([hard, rest[: max(NUM_KEPT - len(hard), 0)]])
    # Of a tile with half a scratch nobody knows whether it shows one: it is left out.
    known = by_chance[is_known_I[by_chance]]
    shown_K = target_IK[:, np.arange(target_IK.shape[1]) != background]
    positive = known[(shown_K[known] > 0.5).any(axis=1)][:NUM_HARD]
    negative = known[~np.isin(known, positive)]
    negative = negative[~(shown_K[negative] > 0.5).any(axis=1)]
    hard = negative[:NUM_HARD]
    if probs_IK is not None:
        loss_I = _loss(probs_IK[negative], target_IK[negative])
        hard = negative[np.argsort(-loss_I, kind="stable")][:NUM_HARD]
    rest = negative[~np.isin(negative, hard)][:NUM_BY_CHANCE]
    return np.concatenate([positive, hard, rest])


def _that_pooling_takes(
    probs_IK: np.ndarray, target_K: np.ndarray, background: int | None
) -> np.ndarray:
    """Return the rows that decide a sample's answer, the loudest first."""
    if background is not None:
        return np.argsort(probs_IK[:, background], kind="stable")[:NUM_HARD]
    # Each class by itself: the instance that speaks loudest for each class that the sample shows,
    # and those that speak loudest for one that it does not show.
    wanted = probs_IK[:, target_K > 0.5].argmax(axis=0)
    others_IK = probs_IK[:, target_K <= 0.5]
    if not others_IK.shape[1]:
        return np.unique(wanted)
    unwanted = np.argsort(-others_IK.max(axis=1), kind="stable")[:NUM_HARD]
    return np.unique(np.concatenate([wanted, unwanted]))


def _loss(probs_IK: np.ndarray, target_IK: np.ndarray) -> np.ndarray:
    """Return how far each instance is from its target, as binary cross-entropy: a rank will do."""
    right_IK = np.where(target_IK > 0.5, probs_IK, 1.0 - probs_IK)
    return np.asarray(-np.log(np.maximum(right_IK, _TINY)).sum(axis=1))
