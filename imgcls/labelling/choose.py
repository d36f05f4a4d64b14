"""Which images of a night a person should look at next.

In: what is known of each image of a night. Out: some of them, each with its reason, and what each
stands for. Invariant: those that are chosen for a reason depend on the rows alone; the others are
drawn from all that are left, by a hash of their names, the same whenever it is asked.

Shape legend: N image, E embedding.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.runs.answers import RANDOM

_LEAST_PER_STRATUM: Final = 2
# Farthest-first looks at so many images, those of the lowest lots: a night may have millions.
_MAX_DIVERSE: Final = 20_000


@dataclass
class Candidates:
    """The images of a night, one entry each.

    Attributes:
        called: What the model made of it: its decision, else its class.
        lot: A number in [0, 1) from its name.
        doubt: How unsure the model is; higher is less sure.
        unfamiliar: How unlike anything in training, nan where it is like it or that is unknown.
        disagreeing: How sure two models are of two answers, nan where they agree.
        embedding_NE: What tells pictures apart; None where the night has none.
    """

    called: Sequence[str]
    lot: npt.NDArray[np.float64]
    doubt: npt.NDArray[np.float64]
    unfamiliar: npt.NDArray[np.float64]
    disagreeing: npt.NDArray[np.float64]
    embedding_NE: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One image of a queue."""

    index: int
    why: str
    stratum: str
    stratum_images: int


@dataclass
class _Queue:
    taken: dict[int, str] = field(default_factory=dict)

    def take(self, index: int, why: str) -> bool:
        if index in self.taken:
            return False
        self.taken[index] = why
        return True


def choose(candidates: Candidates, most: int, random_share: float) -> list[Choice]:
    """Return at most `most` images: the reasons take turns, then some are drawn at random.

    Args:
        candidates: The images of one night that nobody was asked about.
        most: How many.
        random_share: Which part of them is drawn.
    """
    num_images = len(candidates.called)
    most = min(most, num_images)
    num_random = min(most, round(most * random_share))
    queue = _Queue()
    sources = {
        "unfamiliar": _falling(candidates.unfamiliar),
        "disagreeing": _falling(candidates.disagreeing),
        "uncertain": _falling(candidates.doubt),
        "diverse": _diverse(candidates, queue.taken),
    }
    while sources and len(queue.taken) < most - num_random:
        for why in list(sources):
            if len(queue.taken) == most - num_random:
                break
            if not any(queue.take(index, why) for index in sources[why]):
                del sources[why]
    chosen = dict(queue.taken)
    drawn = _draw(candidates, [i for i in range(num_images) if i not in chosen], num_random)
    for index in drawn:
        queue.take(index, RANDOM)
    return _with_strata(candidates, queue.taken)


def _falling(values_N: npt.NDArray[np.float64]) -> Iterator[int]:
    """Yield what has a value, the highest first; of equal ones the first."""
    known = np.flatnonzero(~np.isnan(values_N))
    yield from known[np.argsort(-values_N[known], kind="stable")].tolist()


def _diverse(candidates: Candidates, taken: dict[int, str]) -> Iterator[int]:
    """Yield the image farthest from all that are taken, again and again (k-centre, Gonzalez 1985).

    `taken` is looked at as it grows.
    """
    if candidates.embedding_NE is None:
        return
    known = np.flatnonzero(np.isfinite(candidates.embedding_NE).all(axis=1))
    known = known[np.argsort(candidates.lot[known], kind="stable")][:_MAX_DIVERSE]
    if not len(known):
        return
    x_NE = candidates.embedding_NE[known].astype(np.float64)
    # Without anything taken yet, the first is the one farthest from the middle.
    distance_N = np.square(x_NE - x_NE.mean(axis=0)).sum(axis=1)
    seen = set[int]()
    row_of = {index: row for row, index in enumerate(known.tolist())}
    is_first = True
    while True:
        for index in taken.keys() - seen:
            seen.add(index)
            if index not in row_of:
                continue
            new_N = np.square(x_NE - x_NE[row_of[index]]).sum(axis=1)
            distance_N = new_N if is_first else np.minimum(distance_N, new_N)
            is_first = False
        row = int(distance_N.argmax())
        if distance_N[row] <= 0:
            return  # all are as one that is taken
        yield int(known[row])
        distance_N[row] = 0.0


def _draw(candidates: Candidates, rest: list[int], number: int) -> list[int]:
    """Draw images, of each kind that the model told apart as its share, but a few of each."""
    by_kind: dict[str, list[int]] = {}
    for index in sorted(rest, key=lambda index: candidates.lot[index]):
        by_kind.setdefault(candidates.called[index], []).append(index)
    kinds = sorted(by_kind, key=lambda kind: (-len(by_kind[kind]), kind))
    quota = dict.fromkeys(kinds, 0)
    # Rare kinds get a few first, so that nothing is left of which nobody saw anything.
    for _ in range(_LEAST_PER_STRATUM):
        for kind in kinds:
            quota[kind] += quota[kind] < len(by_kind[kind]) and sum(quota.values()) < number
    while sum(quota.values()) < min(number, len(rest)):
        open_kinds = [kind for kind in kinds if quota[kind] < len(by_kind[kind])]
        least = min(open_kinds, key=lambda kind: (quota[kind] + 1) / len(by_kind[kind]))
        quota[least] += 1
    return [index for kind in kinds for index in by_kind[kind][: quota[kind]]]


def _with_strata(candidates: Candidates, taken: dict[int, str]) -> list[Choice]:
    asked = {index: "chosen" if why != RANDOM else RANDOM for index, why in taken.items()}
    sizes = Counter(
        f"{asked.get(index, RANDOM)}: {called}" for index, called in enumerate(candidates.called)
    )
    return [
        Choice(index, why, name := f"{asked[index]}: {candidates.called[index]}", sizes[name])
        for index, why in taken.items()
    ]
