"""A few elements of a DICOM header, by name, from the first bytes of a file.

In: the first bytes of a file. Out: the values of the elements asked for, or word that more bytes
are needed. Invariant: nothing is read as a value but what was asked for, and a value that the bytes
do not hold whole is not returned.

Needs the extra `dicom`.
"""

import io
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from imgcls.errors import ConfigError
from imgcls.image.formats.dicom.bare import is_bare_dicom, with_preamble

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Value = str | int | float | None

_PREAMBLE_BYTES: Final = 128
_META_GROUP: Final = 0x0002
_PIXELS_GROUP: Final = 0x7FE0
_CHARACTER_SET: Final = 0x00080005
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES: Final = 16 << 20
_WHOLE_NUMBERS: Final = ("IS", "SL", "SS", "SV", "UL", "US", "UV")
_NUMBERS: Final = ("DS", "FD", "FL")
_TEXTS: Final = (
    *("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"),
)


class NeedsMoreError(Exception):
    """The bytes end before the elements that were asked for."""


def find_tag(text: str) -> tuple[str, int]:
    """Return keyword and number of an element, from "PatientID", "0010,0020" or "00100020".

    Raises:
        ConfigError: no such element, or one that is neither text nor a number.
    """
    from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
    from pydicom.tag import Tag

    number = tag_for_keyword(text)
    if number is None:
        try:
            number = int(text.strip("()").replace(",", ""), 16)
        except ValueError:
            raise ConfigError(
                f"{text!r} is not a DICOM element: write a keyword such as PatientID, or its "
                "number, as in 0010,0020"
            ) from None
    keyword = keyword_for_tag(number)
    if not keyword:
        raise ConfigError(f"{text!r} is not an element of the DICOM dictionary")
    if dictionary_VR(Tag(number)) not in (*_WHOLE_NUMBERS, *_NUMBERS, *_TEXTS):
        raise ConfigError(f"dicom:{keyword} is neither text nor a number: choose another element")
    return keyword, int(number)


def is_dicom(data: bytes) -> bool:
    """Tell whether the first bytes of a file are those of DICOM."""
    return data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM" or is_bare_dicom(data)


def read_elements(data: bytes, tags: Mapping[str, int], *, is_whole: bool) -> dict[str, Value]:
    """Return elements of a header, by the names in `tags`; None for one that is absent or empty.

    Args:
        data: The first bytes of a file that `is_dicom`.
        tags: The number of each element, by a name for it.
        is_whole: There are no more bytes.

    Raises:
        NeedsMoreError: there are more bytes, and they are needed.
        ValueError: the header cannot be read; the reason says nothing of what is in it.
    """
    file = _Watched(with_preamble(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values
            dataset = _read(file, sorted(tags.values()), is_whole=is_whole)
            found = {name: _value(dataset, number) for name, number in tags.items()}
    # One file's header, of whatever bytes; the error may quote what is in it.
    except Exception as error:  # noqa: BLE001  (see above)
        if not is_whole:
            raise NeedsMoreError from None
        raise ValueError(f"its header cannot be read ({type(error).__name__})") from None
    if file.ran_out and not is_whole:
        raise NeedsMoreError
    return found


def _read(file: "_Watched", numbers: Sequence[int], *, is_whole: bool) -> "Dataset":
    from pydicom.filereader import dcmread, read_dataset, read_partial
    from pydicom.tag import BaseTag, Tag

    wanted: list[BaseTag | int] = [Tag(number) for number in (_CHARACTER_SET, *numbers)]

    def is_behind(tag: Any, _vr: Any, _length: Any) -> bool:  # noqa: ANN401  (pydicom's)
        return int(tag) > numbers[-1] or int(tag) >> 16 >= _PIXELS_GROUP

    head = file.getbuffer()[:1024].tobytes()
    if _DEFLATED.encode() not in head:
        return read_partial(file, is_behind, force=True, specific_tags=wanted)
    # pydicom would inflate all of it at once, however much that is.
    meta = dcmread(io.BytesIO(head), force=True, stop_before_pixels=True, specific_tags=[])
    length = 144 + int(meta.file_meta.FileMetaInformationGroupLength)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = _Watched(
        inflater.decompress(file.getbuffer()[length:].tobytes(), _MAX_INFLATED_BYTES)
    )
    dataset = read_dataset(
        inflated, is_implicit_VR=False, is_little_endian=True, stop_when=is_behind,
        specific_tags=wanted,
    )  # fmt: skip
    file.ran_out = inflated.ran_out and not is_whole
    dataset.file_meta = meta.file_meta
    return dataset


def _value(dataset: "Dataset", number: int) -> Value:
    from pydicom.multival import MultiValue

    place = dataset.file_meta if number >> 16 == _META_GROUP else dataset
    if number not in place:
        return None
    element = place[number]
    value = element.value
    if isinstance(value, MultiValue | list):
        return "\\".join(str(part).strip() for part in value).strip("\0 ") or None
    if value is None or value == "":
        return None
    if element.VR in _WHOLE_NUMBERS:
        return int(value)
    if element.VR in _NUMBERS:
        return float(value)
    return str(value).strip("\0 \t\r\n") or None


class _Watched(io.BytesIO):
    """Bytes that note whether somebody wanted more than there are."""

    ran_out = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and size > len(data):
            self.ran_out = True
        return data
