"""Prove that this machine makes of encoded files the pixels that the model was proven with.

In: a bundle and a pool of its decoders. Out: nothing. Invariant: decoding and preprocessing are
checked where they will run, in decoder processes, before an image of a run is; a bundle without
golden files, as all were before, is proven from its pixels on alone.
"""

import logging
from typing import Final

import numpy as np

from imgcls.errors import BundleError, UnsupportedImageError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.model.bundle import Bundle
from imgcls.model.bundle_files import GOLDEN_FILES
from imgcls.model.golden_files import unpack_files

# A half that another libjpeg or Pillow rounds the other way, in each of two passes.
ALLOWED_STEPS: Final = 2

_log = logging.getLogger(__name__)


def check_pixels(bundle: Bundle, pool: DecoderPool) -> None:
    """Compare the input that golden files give here with that in the bundle.

    A file whose decoder was changed on purpose since, or is not installed here, is passed over:
    that is said elsewhere.

    Raises:
        BundleError: it differs.
    """
    packed = bundle.attachments.get(GOLDEN_FILES)
    if packed is None:
        return
    files = unpack_files(packed)
    names, moved = list(files), bundle.decode_spec.moved_formats()
    for decoded in pool.decode_many(enumerate(files.values())):
        name = names[decoded.index]
        if decoded.format in moved or isinstance(decoded.error, UnsupportedImageError):
            _log.info("golden file %s is not compared: %s", name, decoded.error or "moved")
            continue
        if decoded.error is not None:
            raise BundleError(f"golden file {name} cannot be decoded here: {decoded.error}")
        expected_CHW = bundle.golden_x_BCHW[decoded.index].numpy().astype(np.float32)
        steps = float(np.abs(expected_CHW - decoded.crops[0].x_CHW).max())
        if not steps <= ALLOWED_STEPS:
            raise BundleError(
                f"golden file {name} does not give the pixels that the model was proven with: they "
                f"differ by up to {steps:.0f} of 255, allowed {ALLOWED_STEPS}. Made with "
                f"{bundle.training.get('versions')}: compare with `imgcls doctor` here"
            )
