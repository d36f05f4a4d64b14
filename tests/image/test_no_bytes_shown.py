"""A list of images may name any file of this machine: no error shows what is in it."""

import pickle

import pytest

from imgcls.errors import CorruptImageError, DecodeError
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec

SECRET = b"hush-hush"


@pytest.mark.parametrize(
    "before",
    [b"", b"\x00\x01\x02", b"root:", b"P1 ", b"P5 ", b"P6\n", b"Pf\n", b"GIF89a", b"II*\x00", b"BM",
     b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x20", b"\xff\xd8\xff",
     b"RIFF\x00\x00\x00\x00WEBP",
     b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"<?xml ", b"{", b"\x1f\x8b",
     b"PK\x03\x04",
     bytes(128) + b"DICM"],
)  # fmt: skip
def test_no_error_shows_bytes_of_a_file(before: bytes) -> None:
    data = before + (SECRET + b" ") * 20
    with pytest.raises(DecodeError) as caught:
        decode(data, DecodeSpec())
    message = str(caught.value)
    for shown in ("hush", SECRET[:4].hex(" "), SECRET[:4].hex(), "sh-h"):
        assert shown not in message


def test_quoted_bytes_are_left_out_of_any_such_error_and_it_survives_pickling() -> None:
    error = CorruptImageError("""PNM: bad b'se\\'cret' and b"also" and b'cut""")
    assert str(error) == "PNM: bad (its bytes) and (its bytes) and (its bytes)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  (our own)
