"""The proof of an import: our decoding, preprocessing and network beside the foreign ones.

In: Foreign and its specs. Out: golden inputs and probabilities, and how far the two differ.
Invariants: no bundle comes of a model whose input we make differently by more than 1 of 255
anywhere; the golden probabilities are the foreign runtime's, so that every night is proven against
it.

Shape legend: B pictures, C channels, H, W height and width, K classes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from imgcls.errors import BundleError, ConfigError
from imgcls.image.crops import decode_one
from imgcls.image.preprocess import normalize
from imgcls.image.spec import Arithmetic, CropPlace, DecodeSpec, PreprocessSpec
from imgcls.model.bundle import GOLDEN_TOLERANCE, to_probs
from imgcls.model.importing.foreign import Foreign

# Of a pixel's 0..255; a little above 1, for numbers that were rounded on the way.
MAX_INPUT_DIFFERENCE: Final = 1.01
_NOTHING: Final = 0.01


@dataclass(frozen=True, eq=False)
class Proof:
    """What came of the comparison."""

    preprocess_spec: PreprocessSpec
    x_BCHW: Tensor
    """uint8, ours."""
    probs_BK: Tensor
    """float32, the foreign runtime's."""
    input_difference: float
    """Largest difference of the inputs, of 255; 0 where no foreign preprocessing is defined."""
    moved: float
    """How far the foreign probabilities move between the two preprocessings."""


def prove(foreign: Foreign, decode_spec: DecodeSpec, pictures: Sequence[bytes]) -> Proof:
    """Compare what we make of pictures with what the foreign library does.

    Raises:
        ConfigError: inputs differ by more than 1 of 255, or the model's output is not finite.
    """
    spec, x_BCHW, difference = foreign.preprocess_spec, None, 0.0
    reference_BCHW = None
    if foreign.prepare is not None:
        reference_BCHW = torch.stack([foreign.prepare(_decoded(data)) for data in pictures])
        spec, x_BCHW, difference = _nearest(spec, decode_spec, pictures, reference_BCHW)
    else:
        x_BCHW = ours(pictures, decode_spec, spec)
    # A backbone's outputs lie on no scale of their own: a sigmoid of each is what is compared.
    is_multi_label = foreign.multi_label or foreign.is_backbone
    probs_BK = to_probs(foreign.run(normalize(x_BCHW, spec)), multi_label=is_multi_label)
    moved = 0.0
    if reference_BCHW is not None:
        foreign_BK = to_probs(foreign.run(reference_BCHW), multi_label=is_multi_label)
        moved = float((foreign_BK - probs_BK).abs().max())
        if moved <= GOLDEN_TOLERANCE / 2:
            probs_BK = foreign_BK  # through their preprocessing and their runtime
    if not probs_BK.isfinite().all():
        raise ConfigError(
            "the model's output is not finite for pictures of usual brightness: are these weights "
            "whole, and is the input's range right?"
        )
    return Proof(spec, x_BCHW, probs_BK, difference, moved)


def ours(pictures: Sequence[bytes], decode_spec: DecodeSpec, spec: PreprocessSpec) -> Tensor:
    """Return uint8 [B,C,H,W], as scoring makes it."""
    crops = [decode_one(data, decode_spec, spec)[0].x_CHW for data in pictures]
    return torch.from_numpy(np.stack(crops))


def input_difference(x_BCHW: Tensor, spec: PreprocessSpec, reference_BCHW: Tensor) -> float:
    """Return the largest difference of two inputs, in units of a pixel's 0..255.

    Args:
        x_BCHW: uint8, ours.
        spec: the normalisation.
        reference_BCHW: float32, normalised by the foreign library.
    """
    if x_BCHW.shape != reference_BCHW.shape:
        return float("inf")
    low, high = spec.input_range
    std_C11 = torch.tensor(spec.std).view(-1, 1, 1)
    apart_BCHW = (normalize(x_BCHW, spec) - reference_BCHW).abs() * std_C11 / (high - low) * 255
    return float(apart_BCHW.max())


def _nearest(
    spec: PreprocessSpec,
    decode_spec: DecodeSpec,
    pictures: Sequence[bytes],
    reference_BCHW: Tensor,
) -> tuple[PreprocessSpec, Tensor, float]:
    """Return the spec that gives the foreign input.

    Only what no configuration says is tried out, for versions of one library differ in it: how a
    middle is rounded, and whether Pillow or torch resizes.
    """
    best: tuple[PreprocessSpec, Tensor, float] | None = None
    for candidate in _candidates(spec):
        x_BCHW = ours(pictures, decode_spec, candidate)
        difference = input_difference(x_BCHW, candidate, reference_BCHW)
        if best is None or difference < best[2]:
            best = candidate, x_BCHW, difference
        if difference <= _NOTHING:
            break
    assert best is not None, "the spec itself is a candidate"
    if not best[2] <= MAX_INPUT_DIFFERENCE:
        raise ConfigError(
            f"the input that imgcls makes differs from the model's own preprocessing by "
            f"{best[2]:.1f} of 255, allowed is 1: this preprocessing cannot be expressed ({spec})"
        )
    return best


def _candidates(spec: PreprocessSpec) -> Iterator[PreprocessSpec]:
    is_whole = spec.fit == "stretch" and spec.crop_fraction == 1
    others = () if is_whole else get_args(CropPlace)
    for crop_place in dict.fromkeys((spec.crop_place, *others)):
        for arithmetic in dict.fromkeys((spec.arithmetic, *get_args(Arithmetic))):
            try:
                yield replace(spec, crop_place=crop_place, arithmetic=arithmetic)
            except BundleError:  # torch has not all filters of Pillow
                continue


def _decoded(data: bytes) -> npt.NDArray[np.uint8]:
    """Return the picture as Pillow decodes it, uint8 [H,W,C]: what foreign libraries start from."""
    with Image.open(io.BytesIO(data)) as image:
        array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]
