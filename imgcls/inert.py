"""Names that strangers gave, made inert: one function per medium in which they are shown.

In: names of classes, files, patients, and whatever else comes from data, stores or other programs.
Out: text that shows them and does nothing. Invariant: what is written for programs (JSON, YAML,
Parquet) goes through their own libraries, which quote; what a person looks at goes through here.

    a terminal, a log          in_log       no escape codes, no line of its own, no turned direction
    Markdown                   in_markdown  no tags, links, pictures, headings, formulas
    CSV, for a spreadsheet     in_csv       no formulas; `from_csv` gives the name back
    a picture of matplotlib    in_picture   no formulas, one line
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

# Controls, unseen formats (zero-width, turned direction), separators of lines, surrogates.
_ACTIVE_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_PLAIN = re.compile(r"[\x20-\x7e\xa1-\xac\xae-\u05ff]*")
_MARKDOWN = re.compile(r"[\\`*\[\]|~$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)\.|:(?=//)")
_LINE_START = re.compile(r"^(\s*)([#+-](?=[\s#+-]|$)|[=>]|\d+(?=[.)](?:\s|$)))")
_ENTITY = re.compile(r"&(?=[#A-Za-z])")
_FORMULA_START = ("=", "+", "-", "@", "\t", "\r")
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def in_log(text: str) -> str:
    r"""Return text on one line, with `\x1b` for what a terminal would obey."""
    if _PLAIN.fullmatch(text):  # nearly always; the rest is slow
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _ACTIVE_CATEGORIES else c for c in text)


def in_log_lines(text: str) -> str:
    """Return text of several lines, such as a traceback or another program's log."""
    return "\n".join(map(in_log, text.replace("\r\n", "\n").split("\n")))


def in_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, within a line or a cell."""
    safe = _ENTITY.sub("&amp;", in_log(text)).replace("<", "&lt;")
    safe = _MARKDOWN.sub(lambda match: "\\" + match[0], safe)
    return _LINE_START.sub(r"\1\\\2", safe)


def in_csv(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: `'=1+1` for `=1+1`.

    A text without anything active stays as it is.
    """
    is_active = text.startswith(_FORMULA_START) or in_log(text) != text
    if not is_active and from_csv(text) == text:
        return text
    escaped = in_log(text.replace("\\", "\\\\"))
    return f"'{escaped}"


def spreadsheet(rows: Iterable[Iterable[object]]) -> bytes:
    """Return a CSV for Excel: every cell inert, numbers of six digits, nothing for None."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([
            "" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else in_csv(str(cell))
            for cell in row
        ])  # fmt: skip
    # Excel takes a file for UTF-8 only where it begins so.
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def from_csv(cell: str) -> str:
    """Return the text of a cell that `in_csv` made; any other cell as it is."""
    if not cell.startswith("'"):
        return cell
    text = _ESCAPED.sub(_unescape, cell[1:])
    return text if in_csv(text) == cell else cell


def in_picture(text: str, max_chars: int) -> str:
    """Return text of one line that fits; draw it with parse_math=False."""
    safe = in_log(text)
    return safe if len(safe) <= max_chars else f"{safe[: max_chars - 1]}…"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescape(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    return chr(int(digits, 16)) if digits else "\\"
