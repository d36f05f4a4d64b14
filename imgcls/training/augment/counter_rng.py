"""Random numbers without state: each is a hash of what it is for.

In: a seed and the coordinates of a decision (epoch, sample, column). Out: uniform numbers.
Invariant: a number depends on its coordinates alone, not on who asks, in what order or how often.
So the augmentation of an image is the same on one worker and on eight, and a resumed run needs no
generator's state.

SplitMix64, from Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
"""

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash64(*coordinates: int | np.ndarray) -> np.ndarray:
    """Hash broadcastable integer coordinates into uint64, one SplitMix64 round per coordinate."""
    state = np.zeros(1, np.uint64)
    for coordinate in coordinates:
        word = np.asarray(coordinate).astype(np.uint64)
        state = _mix((state ^ word) + _GOLDEN_GAMMA)
    return state


def uniform(seed: int, epoch: int, index_B: np.ndarray, num_columns: int) -> np.ndarray:
    """Return float32 [B,num_columns] in [0,1) for the samples `index_B` of an epoch."""
    bits = hash64(seed, epoch, index_B[:, None], np.arange(num_columns)[None, :])
    # 24 bits: the most that float32 holds without rounding up to 1.
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of torch's generator for one step of one rank (dropout, stochastic depth)."""
    return int(hash64(seed, step, rank)[0] >> np.uint64(1))


def image_seeds(seed: int, epoch: int, index_B: np.ndarray) -> list[int]:
    """Return a seed of torch's generator for each sample of an epoch."""
    hashes: list[int] = (hash64(seed, epoch, index_B, 2) >> np.uint64(1)).tolist()
    return hashes


def _mix(word: np.ndarray) -> np.ndarray:
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return np.asarray(word ^ (word >> np.uint64(31)))
