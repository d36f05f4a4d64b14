"""What about labelled images a person should look at again.

In: what was seen of them, and out-of-fold probabilities. Out: suspects, each with its reason.
Invariant: nothing is decided: a suspect is an image and a reason, the surest first of each kind.

Wrong labels are found by confident learning (Northcutt, Jiang, Chuang 2021), by its own library,
cleanlab. Shape legend: N image, K class.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.data.leaks import find_near_duplicates
from imgcls.errors import ConfigError
from imgcls.labelling.doctor.look import Looked

POOR: Final = ("dark", "bright", "flat", "blurred")
# Greys of 0..255, as people can hardly tell anything in them.
_DARK: Final = 12.0
_BRIGHT: Final = 243.0
_FLAT: Final = 4.0
# Robust standard deviations from the middle of all: few of a thousand normal values lie beyond.
_FAR: Final = 4.0
_LEAST_FOR_SPREAD: Final = 20
# A picture is of another size if so few are like it and so many are alike.
_RARE_SIZE, _USUAL_SIZE = 0.02, 0.8
_MAD_TO_SD: Final = 1.4826


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image, and why a person should look at it.

    Attributes:
        index: Of the image among those looked at.
        kind: label, conflict, duplicate, near-duplicate, dark, bright, flat, blurred or size.
        reason: In words.
        suggested: Another class that it may be of, "" where there is none.
        probability: Of its own label, out of fold; None for the other kinds.
        other: The other image of a pair.
    """

    index: int
    kind: str
    reason: str
    suggested: str = ""
    probability: float | None = None
    other: int | None = None


def find_label_issues(
    label_N: npt.NDArray[np.int64], probs_NK: npt.NDArray[np.float64], names: Sequence[str]
) -> list[Suspect]:
    """Return the images whose label is probably wrong, the surest first.

    Args:
        label_N: As given.
        probs_NK: Out of fold: of models that have not seen the image.
        names: Of the classes.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    filters, _ = _cleanlab()
    # How many there are is what confident learning estimates; which, the least probable labels.
    count = int(filters.find_label_issues(label_N, probs_NK, n_jobs=1).sum())
    own_N = probs_NK[np.arange(len(label_N)), label_N]
    suspects = []
    for index in np.argsort(own_N, kind="stable")[:count].tolist():
        others_K = probs_NK[index].copy()
        others_K[label_N[index]] = -1.0
        suggested = names[int(others_K.argmax())]
        reason = f"labelled {names[label_N[index]]}, looks like {suggested}"
        suspects.append(Suspect(index, "label", reason, suggested, float(own_N[index])))
    return suspects


def overlapping_classes(
    label_N: npt.NDArray[np.int64], probs_NK: npt.NDArray[np.float64], names: Sequence[str]
) -> list[tuple[str, str, int]]:
    """Return pairs of classes and how many images of the first look like the second.

    The confident joint: an image counts where its probability of another class is above what the
    images of that class have of it on average.
    """
    _, counts = _cleanlab()
    joint_KK = np.asarray(counts.compute_confident_joint(label_N, probs_NK, calibrate=False))
    pairs = [
        (names[given], names[like], int(joint_KK[given, like]))
        for given in range(len(names))
        for like in range(len(names))
        if given != like and joint_KK[given, like] > 0
    ]
    return sorted(pairs, key=lambda pair: -pair[2])


def find_duplicates(looked: Looked) -> list[Suspect]:
    """Return copies: equal bytes, and pictures that look the same; of unlike labels first."""
    samples = [replace(sample, split=str(i)) for i, sample in enumerate(looked.samples)]
    index_of = {sample.uri: index for index, sample in enumerate(samples)}
    first: dict[str, int] = {}
    suspects = []
    for index, digest in enumerate(looked.digests):
        if digest in first:
            suspects.append(_pair(looked, index, first[digest], "duplicate", "the same bytes as"))
        first.setdefault(digest, index)
    for leak in find_near_duplicates(samples, looked.prints):
        one, other = index_of[leak.uri], index_of[leak.other_uri]
        if looked.digests[one] != looked.digests[other]:
            suspects.append(_pair(looked, one, other, "near-duplicate", "looks the same as"))
    return sorted(suspects, key=lambda suspect: suspect.kind != "conflict")


def _pair(looked: Looked, index: int, other: int, kind: str, words: str) -> Suspect:
    one, two = looked.samples[index], looked.samples[other]
    reason = f"{words} {two.key}"
    if one.class_name != two.class_name:
        reason += f", which is labelled {two.class_name}"
        kind = "conflict"
    return Suspect(index, kind, reason, other=other)


def find_poor_pictures(looked: Looked) -> list[Suspect]:
    """Return pictures that show little: dark, white, flat, blurred beside the others, odd sizes."""
    suspects = [*_poor_greys(looked), *_odd_sizes(looked)]
    return sorted(suspects, key=lambda suspect: suspect.kind)


def _poor_greys(looked: Looked) -> Iterator[Suspect]:
    looks = [facts.looks for facts in looked.facts]
    low_N = _far_below(np.log1p([look.sharpness for look in looks]))
    for index, look in enumerate(looks):
        if look.contrast < _FLAT:
            yield Suspect(index, "flat", f"hardly any contrast: {look.contrast:.1f} of 255 greys")
        elif look.brightness < _DARK:
            yield Suspect(index, "dark", f"nearly black: {look.brightness:.0f} of 255 greys")
        elif look.brightness > _BRIGHT:
            yield Suspect(index, "bright", f"nearly white: {look.brightness:.0f} of 255 greys")
        elif low_N[index]:
            yield Suspect(index, "blurred", "far less sharp than the others")


def _odd_sizes(looked: Looked) -> Iterator[Suspect]:
    sizes = Counter(looked.sizes)
    if not sizes:
        return
    usual, count = sizes.most_common(1)[0]
    if count < _USUAL_SIZE * len(looked.sizes):
        log_ratio_N = np.log([width / height for width, height in looked.sizes])
        is_odd_N = _far_below(log_ratio_N) | _far_below(-log_ratio_N)
        words = "of another shape than the others"
    else:
        most = _RARE_SIZE * len(looked.sizes) + 1
        is_odd_N = np.array([size != usual and sizes[size] < most for size in looked.sizes])
        words = f"where nearly all are {usual[0]} x {usual[1]}"
    for index in np.flatnonzero(is_odd_N).tolist():
        width, height = looked.sizes[index]
        yield Suspect(index, "size", f"{width} x {height} pixels, {words}")


def _far_below(values_N: Any) -> npt.NDArray[np.bool_]:  # noqa: ANN401  (what numpy takes)
    """Tell which values lie far below the middle of all, by the median absolute deviation."""
    values_N = np.asarray(values_N, np.float64)
    if len(values_N) < _LEAST_FOR_SPREAD:
        return np.zeros(len(values_N), bool)
    middle = np.median(values_N)
    spread = _MAD_TO_SD * np.median(np.abs(values_N - middle))
    # Where most are equal the spread is nothing: then a tenth counts as far.
    return np.asarray(values_N < middle - max(_FAR * spread, 0.1))


def _cleanlab() -> tuple[Any, Any]:
    try:
        from cleanlab import count, filter  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "wrong labels are found by cleanlab, which is not installed: pip install "
            '"imgcls[labels]"'
        ) from error
    return filter, count
