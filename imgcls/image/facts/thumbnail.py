"""Small pictures of images, for people: from what was decoded anyway.

In: a crop, or a decoded image. Out: JPEG bytes without metadata. Invariant: no image is read or
decoded for its thumbnail, and it shows the whole picture as displayed, by its own window.

To encode one takes a tenth of the time that a small photograph takes in all, so only those that
somebody will look at are encoded. Where the model sees the whole picture, that is the thumbnail's
source, and the others cost nothing; else the decoder picks pixels from each image beforehand.
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


def pick_picture(image_HWC: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pick pixels of a whole image: uint8 [h,w,C], sides up to MAX_PICTURE_PX."""
    height, width, _ = image_HWC.shape
    step = max(1, round(max(height, width) / _PICKED_PX))
    if max(-(-height // step), -(-width // step)) > MAX_PICTURE_PX:
        step += 1
    start = step // 2 if min(height, width) > step else 0
    # Whole pixels are copied at a time, not their channels.
    pixel = np.dtype((np.void, image_HWC.shape[2] * image_HWC.itemsize))
    some_HW = np.ascontiguousarray(image_HWC).view(pixel)[start::step, start::step, 0]
    some_HW = np.ascontiguousarray(some_HW)
    some_HWC = some_HW.view(image_HWC.dtype).reshape(*some_HW.shape, image_HWC.shape[2])
    return _to_uint8(some_HWC)


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
