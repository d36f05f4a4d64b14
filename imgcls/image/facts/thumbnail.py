"""Small pictures of images, for people: from what was decoded anyway.

In: a crop, or a decoded image. Out: JPEG bytes without metadata. Invariant: no image is read or
decoded for its thumbnail, and it shows the whole picture as displayed, by its own window.

To encode one takes a tenth of the time that a small photograph takes in all, so only those that
somebody will look at are encoded. Where the model sees the whole picture, that is the thumbnail's
source, and the others cost nothing; else the decoder makes a small picture of each beforehand: each
of its pixels is the mean of as many of the source's as can be had beside the price of decoding.
"""

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.image.fit.placement import place
from imgcls.image.spec import DecodeSpec, PreprocessSpec

THUMBNAIL_PX: Final = 160
"""Long side."""
# What is picked from an image that has no other use costs as much as its pixels.
_PICKED_PX: Final = 128
# A step that is rounded to whole pixels leaves at most this of it.
MAX_PICTURE_PX: Final = _PICKED_PX * 3 // 2
# To pick the pixels of a small picture once takes about a fiftieth of the time that decoding so
# many pixels of the source takes.
_PIXELS_PER_PICK: Final = 90_000
_FEWEST_PICKS: Final = 2
_MOST_PICKS: Final = 16
# Where an image costs a network hundred times that of one crop. Their sums fit into 16 bits.
_PICKS_OF_MANY: Final = 64
# Places in a square that fill it evenly, however many are taken: Roberts 2018, "R2". The first is
# its middle.
_EVENLY: Final[list[tuple[float, float]]] = [
    ((0.5 + n * 0.7548776662466927) % 1.0, (0.5 + n * 0.5698402909980532) % 1.0)
    for n in range(_PICKS_OF_MANY)
]
# Below this side a model's input is too coarse to look at.
_MIN_INPUT_PX: Final = 96
_JPEG_QUALITY: Final = 80


def needs_picture(decode_spec: DecodeSpec, preprocess_spec: PreprocessSpec) -> bool:
    """Tell whether a model's input is not a picture of the whole image."""
    is_whole = preprocess_spec.fit in ("stretch", "pad") and preprocess_spec.crop_fraction == 1
    is_small = min(preprocess_spec.height_px, preprocess_spec.width_px) < _MIN_INPUT_PX
    is_pooled = decode_spec.frames == "pool"  # then crops are given up for their answers
    is_in_color = decode_spec.dicom_window == "lung_soft_bone"
    return not is_whole or is_small or is_pooled or is_in_color


def count_picks(source_pixels: int, *, has_many_crops: bool) -> int:
    """Return of how many samples a pixel of a small picture may be the mean, for its price.

    Args:
        source_pixels: That were decoded, before any scaling of a JPEG.
        has_many_crops: Each goes through the network.
    """
    if has_many_crops:
        return _PICKS_OF_MANY
    fitting = min(_MOST_PICKS, max(_FEWEST_PICKS, source_pixels // _PIXELS_PER_PICK))
    return 1 << (fitting.bit_length() - 1)


def shrink(
    image_HWC: npt.NDArray[Any], num_picks: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a small picture of a whole image, and single pixels of it, which keep its noise.

    Args:
        image_HWC: [H,W,C] 0..255.
        num_picks: samples that a pixel is the mean of, a power of two; all where fewer cover it.

    Returns:
        Both uint8 [h,w,C], sides up to MAX_PICTURE_PX: means, and the pixels in the middle of each.
    """
    height, width, num_channels = image_HWC.shape
    step = max(1, round(max(height, width) / _PICKED_PX))
    if max(-(-height // step), -(-width // step)) > MAX_PICTURE_PX:
        step += 1
    start = step // 2 if min(height, width) > step else 0
    # Whole pixels are copied at a time, not their channels.
    pixel = np.dtype((np.void, num_channels * image_HWC.itemsize))
    pixel_HW = np.ascontiguousarray(image_HWC).view(pixel)[:, :, 0]
    rows, columns = len(pixel_HW[start::step]), len(pixel_HW[0, start::step])

    def pick(y: int, x: int) -> npt.NDArray[Any]:
        y, x = min(y, height - 1 - (rows - 1) * step), min(x, width - 1 - (columns - 1) * step)
        some_HW = np.ascontiguousarray(pixel_HW[y::step, x::step][:rows, :columns])
        return some_HW.view(image_HWC.dtype).reshape(rows, columns, num_channels)

    middle_HWC = pick(start, start)
    if step == 1:
        return _to_uint8(middle_HWC), _to_uint8(middle_HWC)
    if num_picks >= step * step:
        places = [divmod(number, step) for number in range(step * step)]
    else:
        places = [(int(step * y), int(step * x)) for y, x in _EVENLY[:num_picks]]
    is_uint8 = image_HWC.dtype == np.uint8
    first_HWC = middle_HWC if places[0] == (start, start) else pick(*places[0])
    sum_HWC: npt.NDArray[Any] = first_HWC.astype(np.uint16 if is_uint8 else np.float32)
    for y, x in places[1:]:
        sum_HWC += pick(y, x)
    if is_uint8:
        sum_HWC += len(places) // 2
        # To shift is four times as fast as to divide.
        is_power = len(places) == num_picks
        sum_HWC = sum_HWC >> (num_picks.bit_length() - 1) if is_power else sum_HWC // len(places)
        return sum_HWC.astype(np.uint8), middle_HWC
    return _to_uint8(sum_HWC / len(places)), _to_uint8(middle_HWC)


def encode_thumbnail(
    x_CHW: npt.NDArray[Any],
    picture_HWC: npt.NDArray[np.uint8] | None,
    size: tuple[int, int],
    spec: PreprocessSpec,
) -> bytes:
    """Return a JPEG, grey or RGB, whose long side is about THUMBNAIL_PX.

    Args:
        x_CHW: what the model saw, uint8 or float32 0..255.
        picture_HWC: a small picture; None: what the model saw is one.
        size: width and height of the source as displayed.
        spec: how the source became `x_CHW`.
    """
    if picture_HWC is None:
        where = place(*size, spec)
        rows = slice(where.top_px, where.top_px + where.height_px)
        columns = slice(where.left_px, where.left_px + where.width_px)
        picture_HWC = _to_uint8(x_CHW[:, rows, columns].transpose(1, 2, 0))
    is_gray = picture_HWC.shape[2] == 1 or _is_gray(picture_HWC)
    pixels = picture_HWC[:, :, 0] if is_gray else picture_HWC
    image = Image.fromarray(np.ascontiguousarray(pixels))
    shrink = min(1.0, THUMBNAIL_PX / max(size))
    wanted = max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _is_gray(picture_HWC: npt.NDArray[np.uint8]) -> bool:
    red, green, blue = (picture_HWC[:, :, c] for c in range(3))
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _to_uint8(image_HWC: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if image_HWC.dtype == np.uint8:
        return image_HWC
    rounded: npt.NDArray[np.uint8] = np.clip(np.rint(image_HWC), 0, 255).astype(np.uint8)
    return rounded
