"""The text of a table, whatever program wrote it.

In: bytes. Out: text, and the separator that its first line may name. Invariant: what is guessed is
said, with words to see whether the guess is right; bytes that are not text are refused.
"""

import codecs
import logging
import re

from imgcls.errors import SourceError

_BOMS = (
    # The longer ones first: UTF-32 begins like UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NUM_LOOKED_AT = 4096
# Of ASCII in UTF-16 every other byte is zero.
_MIN_ZEROS = 0.7
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SHOWN = re.compile(r"[^\s,;\"|]*[^\x00-\x7f][^\s,;\"|]*")
# What Excel writes as a first line, and reads itself.
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")

_log = logging.getLogger(__name__)


def decode_text(data: bytes, table: str, *, may_be_latin: bool = True) -> str:
    """Return the text of a table: UTF-8, UTF-16 or UTF-32, or Latin-1 as Windows writes it.

    Args:
        data: Its bytes.
        table: Its URI, for messages.
        may_be_latin: Text that is not Unicode is Windows-1252; JSON never is.

    Raises:
        SourceError: it is not text.
        UnicodeDecodeError: it is not what its first bytes promise.
    """
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "")
    if not encoding:
        encoding = _guess_utf16(data[:_NUM_LOOKED_AT])
        if encoding:
            _log.info("%s: read as UTF-16", table)
    if encoding:
        return data.decode(encoding)
    try:
        return data.decode()
    except UnicodeDecodeError:
        if not may_be_latin or _NOT_TEXT.search(data):
            raise
    text = _decode_latin(data)
    shown = _SHOWN.search(text)
    _log.warning(
        "%s is not UTF-8: read as Latin-1 (Windows-1252), so that it has %r; if that is not what "
        "it says, save it as UTF-8",
        table, shown[0] if shown else "",
    )  # fmt: skip
    return text


def cut_separator_line(text: str) -> tuple[str, str]:
    """Return the text without Excel's line "sep=;", and that separator, "" for none."""
    match = _SEPARATOR_LINE.match(text)
    return (text[match.end() :], match[1]) if match else (text, "")


def refuse_workbook(uri: str) -> None:
    """Refuse a file of Excel's own format.

    Raises:
        SourceError: it is one.
    """
    if uri.lower().endswith((".xlsx", ".xls", ".xlsm", ".ods")):
        raise SourceError(
            f"{uri} is a workbook: save the sheet as CSV (Excel: 'CSV UTF-8'), and give that"
        )


def _guess_utf16(head: bytes) -> str:
    half = len(head) // 2
    if half < 2:
        return ""
    if head[1::2].count(0) >= _MIN_ZEROS * half:
        return "utf-16-le"
    return "utf-16-be" if head[::2].count(0) >= _MIN_ZEROS * half else ""


def _decode_latin(data: bytes) -> str:
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # five bytes mean nothing to Windows
