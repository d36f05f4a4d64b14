"""The worst errors of a split on one sheet: pictures as the network saw them, beside their names.

In: pictures, what they are, and what the model said. Out: PNG bytes. Invariant: the sheet shows
training data, so that it goes into the run's folder and never into a bundle.

Shape legend: C channels, H height, W width, B image, K class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.inert import in_picture
from imgcls.metrics.top_classes import Bools, Doubles
from imgcls.training.canvas import OTHERS, POSITIVE, make_figure, to_png

MAX_SHOWN: Final = 20
_MAX_CROPS, _GAP_PX = 36, 4
_NUM_COLUMNS: Final = 5
_CELL_INCH, _TEXT_INCH, _TITLE_INCH, _MIN_WIDTH_INCH = 2.4, 0.75, 0.7, 6.5
_MAX_NAME: Final = 32  # characters of a file's name
_MAX_CLASS: Final = 18


@dataclass(frozen=True, eq=False)
class WrongImage:
    """An image that the model got wrong."""

    name: str
    x_CHW: npt.NDArray[Any]  # 0..255, as the network saw it
    shows: str
    said: str
    prob: float  # calibrated, of what the model said


def worst_errors(target_BK: Bools, predicted_BK: Bools, probs_BK: Doubles) -> list[int]:
    """Return the rows that are wrong, those first of which the model was surest.

    Args:
        target_BK: What the images show.
        predicted_BK: What the model said.
        probs_BK: Calibrated probabilities.
    """
    is_wrong_BK = target_BK != predicted_BK
    # How far the probability of a wrongly decided class is from what it should be.
    miss_B = np.where(is_wrong_BK, np.abs(target_BK - probs_BK), 0.0).max(axis=1)
    order = np.argsort(-miss_B, kind="stable")
    return [int(row) for row in order if is_wrong_BK[row].any()][:MAX_SHOWN]


def as_seen(x_ICHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the only crop of an image; of several (tiles, frames) all, side by side in a square.

    Args:
        x_ICHW: At least one crop; of more than 36 the first 36 are shown.
    """
    num = min(len(x_ICHW), _MAX_CROPS)
    if num == 1:
        only_CHW: npt.NDArray[Any] = x_ICHW[0]
        return only_CHW
    num_columns = int(np.ceil(np.sqrt(num)))
    _, channels, height, width = x_ICHW.shape
    cell = (height + _GAP_PX, width + _GAP_PX)
    seen: npt.NDArray[Any] = np.full(
        (channels, cell[0] * -(-num // num_columns), cell[1] * num_columns), 255, x_ICHW.dtype
    )
    for number, x_CHW in enumerate(x_ICHW[:num]):
        top, left = number // num_columns * cell[0], number % num_columns * cell[1]
        seen[:, top : top + height, left : left + width] = x_CHW
    return seen


def draw_errors(
    wrong: Sequence[WrongImage], num_wrong: int, num: int, split: str, answered: str = "images"
) -> bytes:
    """Draw the sheet.

    Args:
        wrong: At least one, the worst first.
        num_wrong: Of all that are wrong; more than are shown, perhaps.
        num: Of the split.
        split: Its name.
        answered: What gets an answer: images, or units of several.
    """
    num_columns = min(_NUM_COLUMNS, len(wrong))
    num_rows = -(-len(wrong) // num_columns)
    tallest = max(one.x_CHW.shape[1] / one.x_CHW.shape[2] for one in wrong)
    row_inch = _CELL_INCH * float(np.clip(tallest, 0.3, 2)) + _TEXT_INCH
    width_inch = max(_CELL_INCH * num_columns, _MIN_WIDTH_INCH)
    figure = make_figure(width_inch, row_inch * num_rows + _TITLE_INCH, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, one in zip(axes, wrong, strict=False):
        x_HWC = one.x_CHW.transpose(1, 2, 0).round().astype(np.uint8)
        is_gray = x_HWC.shape[2] == 1
        ax.imshow(x_HWC[..., 0] if is_gray else x_HWC, cmap="gray" if is_gray else None,
                  vmin=0, vmax=255)  # fmt: skip
        ax.set_title(_end_of(one.name), fontsize=8, parse_math=False)
        shows, said = in_picture(one.shows, _MAX_CLASS), in_picture(one.said, _MAX_CLASS)
        lines = (
            (f"is {shows}", OTHERS, "normal"),
            (f"said {said}, {one.prob:.0%}", POSITIVE, "bold"),
        )
        for number, (text, color, weight) in enumerate(lines):
            ax.annotate(
                text,
                (0.5, 0),
                xytext=(0, -4 - 13 * number),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=9,
                color=color,
                fontweight=weight,
                parse_math=False,
            )
    which = "All errors" if num_wrong == len(wrong) else f"The {len(wrong)} worst"
    verb = "is" if num_wrong == 1 else "are"
    title = f"{num_wrong} of {num} {split} {answered} {verb} wrong"
    figure.suptitle(f"{title}\n{which}, as the network saw them, those first where it was surest")
    return to_png(figure)


def _end_of(name: str) -> str:
    """Return the end of a long name: there the files of one folder differ."""
    return in_picture(name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}", _MAX_NAME)
