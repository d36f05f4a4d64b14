"""A few training images beside what the network gets of them: RUN/inputs.png.

In: a TrainPlan. Out: PNG bytes. Invariants: the right-hand pictures are the very pixels that the
network gets, before normalisation; the sheet shows training data, so that it lies in the run's
folder, and in a bundle only if that was asked for.
"""

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.data.dataset import Sample
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.placement import Box, place
from imgcls.image.fit.seen import measure_seen
from imgcls.image.spec import PreprocessSpec
from imgcls.inert import in_picture
from imgcls.sources.located import in_reading_order, request_for
from imgcls.sources.read import get_images
from imgcls.storage.objects import put
from imgcls.storage.uri import join
from imgcls.training.canvas import make_figure, to_png
from imgcls.training.train_plan import TrainPlan

INPUTS: Final = "inputs.png"
MAX_SHOWN: Final = 6
_SOURCE_PX: Final = 480
_ROW_INCH, _WIDTH_INCH, _TITLE_INCH = 2.2, 9.5, 0.9
_MAX_NAME: Final = 40  # characters of a file's name
_SHADE: Final = 0.65  # of what the network does not get
_Pixels = npt.NDArray[np.float64]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InputPair:
    """An image and what the network gets of it."""

    name: str
    source_HWC: _Pixels  # 0..255, made smaller for the sheet
    size_px: tuple[int, int]  # width and height of the file
    box: Box | None  # what the network gets of it, in pixels of source_HWC; None: all
    x_CHW: _Pixels  # 0..255


def write_inputs(plan: TrainPlan, pool: DecoderPool) -> None:
    """Draw the sheet, and write it into the run's folder, unless no image gives pixels.

    Args:
        plan: the training's plan.
        pool: decodes as the plan wants it.

    Raises:
        StorageError: the folder cannot be written to, or no image can be read.
    """
    pairs = read_pairs(plan, pool)
    if not pairs:
        return
    put(join(plan.run_uri, INPUTS), draw_inputs(pairs, plan.preprocess_spec))
    log.info("some images beside what the model sees: %s", join(plan.run_uri, INPUTS))


def draw_inputs(pairs: list[InputPair], spec: PreprocessSpec) -> bytes:
    """Draw pairs, one below the other: the file on the left, the input on the right."""
    figure = make_figure(_WIDTH_INCH, _ROW_INCH * len(pairs) + _TITLE_INCH, layout="constrained")
    what = "one tile of each" if spec.fit == "tiles" else "all that the model gets of each"
    pale = "" if all(pair.box is None for pair in pairs) else "; what is pale is not in it"
    figure.suptitle(f"Left: training images. Right: {what}, pixel by pixel{pale}.", fontsize=12)
    axes = figure.subplots(len(pairs), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), pair in zip(axes, pairs, strict=True):
        _show(left, _shaded(pair))
        _show(right, pair.x_CHW.transpose(1, 2, 0))
        for side, title in zip((left, right), titles_of(pair), strict=True):
            side.set_title(title, fontsize=9, parse_math=False)
    return to_png(figure)


def titles_of(pair: InputPair) -> tuple[str, str]:
    """Return what stands above the two pictures; sizes are width x height, as people say them."""
    _, input_height_px, input_width_px = pair.x_CHW.shape
    sizes = pair.size_px, (input_width_px, input_height_px)
    source, seen = (f"{width_px} x {height_px} pixels" for width_px, height_px in sizes)
    return f"{in_picture(pair.name, _MAX_NAME)}, {source}", seen


def _show(ax, image_HWC: _Pixels) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - Axes
    ax.set_xticks([])
    ax.set_yticks([])
    is_gray = image_HWC.shape[2] == 1
    shown = np.clip(image_HWC / 255, 0, 1)
    ax.imshow(shown[..., 0] if is_gray else shown, cmap="gray", vmin=0, vmax=1,
              interpolation="nearest")  # fmt: skip


def _shaded(pair: InputPair) -> _Pixels:
    """Return the source, paler where the network does not get it."""
    if pair.box is None:
        return pair.source_HWC
    left, top, right, bottom = (round(edge) for edge in pair.box)
    shaded = pair.source_HWC * (1 - _SHADE) + 255 * _SHADE
    shaded[top:bottom, left:right] = pair.source_HWC[top:bottom, left:right]
    return shaded


def read_pairs(plan: TrainPlan, pool: DecoderPool) -> list[InputPair]:
    """Read the first images of each class in turn, and decode each twice: whole, and as input."""
    samples = _choose(plan)
    requests = in_reading_order(request_for(n, sample) for n, sample in enumerate(samples))
    files = [(n, d) for n, d in get_images(requests, gives_unreadable=True) if isinstance(d, bytes)]
    spec, channels = plan.preprocess_spec, plan.decode_spec.num_channels
    whole_spec = PreprocessSpec(
        _SOURCE_PX, _SOURCE_PX, fit="pad", resize="longest", crop_place="top_left",
        mean=(0.0,), std=(1.0,), channels=channels,
    )  # fmt: skip
    with DecoderPool(plan.decode_spec, whole_spec, 1) as other:
        whole = {one.index: one.crops[0] for one in other.decode_many(files) if one.crops}
    crops = {one.index: one.crops for one in pool.decode_many(files) if one.crops}
    pairs = []
    for number in sorted(whole.keys() & crops.keys()):
        source, crop = whole[number], crops[number][len(crops[number]) // 2]
        width_px, height_px = source.size_px
        at = place(width_px, height_px, whole_spec)
        source_HWC = source.x_CHW.transpose(1, 2, 0)[: at.height_px, : at.width_px]
        box = crop.place and (*crop.place[:2], *np.add(crop.place[:2], crop.place[2:]).tolist())
        if box is None and spec.fit != "tiles":
            is_whole = measure_seen([source.size_px], spec).smallest_fraction >= 1
            box = None if is_whole else place(width_px, height_px, spec).box
        scale = at.width_px / width_px
        pairs.append(
            InputPair(
                name=samples[number].uri.rpartition("/")[2],
                source_HWC=source_HWC.astype(np.float64),
                size_px=(width_px, height_px),
                box=None if box is None else tuple(edge * scale for edge in box),
                x_CHW=crop.x_CHW.astype(np.float64),
            )
        )
    return pairs


def _choose(plan: TrainPlan) -> list[Sample]:
    """Return up to MAX_SHOWN training images, of each class in turn."""
    by_class: dict[tuple[int, ...], list[Sample]] = {}
    for sample in plan.splits["train"]:
        of_class = by_class.setdefault(tuple(sample.labels), [])
        if len(of_class) < MAX_SHOWN:
            of_class.append(sample)
    rounds = range(MAX_SHOWN)
    in_turn = [of[n] for n in rounds for of in by_class.values() if n < len(of)]
    return in_turn[:MAX_SHOWN]
