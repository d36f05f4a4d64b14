"""A picture that is too large names the flag that lets it in, whatever its format."""

import io

import pytest
from PIL import Image

from imgcls.errors import ImageTooLargeError
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_too_large_names_the_flag_and_the_flag_lets_it_in(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (60, 50)).save(out, kind)
    with pytest.raises(
        ImageTooLargeError, match=r"60 x 50 pixels, .* allows 2999; .* --max-pixels"
    ):
        decode(out.getvalue(), DecodeSpec(max_pixels=2999))
    [image] = decode(out.getvalue(), DecodeSpec(max_pixels=3000))
    assert image.image_HWC.shape == (50, 60, 3)
