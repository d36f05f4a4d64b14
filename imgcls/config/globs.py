"""Patterns for names: `*` within a folder, `**` across folders, `?`, `[ab]`, `[!ab]`, `{a,b}`.

In: a pattern. Out: a regular expression, or where the pattern begins. Invariant: every other sign
means itself; a sign in brackets means itself as well, so `[[]` is a bracket.
"""

import re
from functools import lru_cache

from imgcls.errors import ConfigError

_MAGIC = re.compile(r"[*?\[{]")
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]")
_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_MAX_ALTERNATIVES = 1000


def is_glob(text: str) -> bool:
    """Tell whether a source is a pattern: only one with a `*` is, as folders hold other signs."""
    return "*" in text


def literal_start(pattern: str) -> str:
    """Return the part of a pattern before its first sign that has a meaning."""
    match = _MAGIC.search(pattern)
    return pattern[: match.start()] if match else pattern


@lru_cache
def glob_to_regex(glob: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """Translate a pattern of keys: `**/` is any folders or none, `*` stops at `/`.

    Raises:
        ConfigError: a brace or a bracket that is not closed, or too many alternatives.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else re.NOFLAG)
    return re.compile("|".join(map(_translate, expand(glob))), flags)


def expand(pattern: str) -> list[str]:
    """Return the patterns that one with `{a,b}` stands for.

    Raises:
        ConfigError: a brace that is not closed, or more than a thousand of them.
    """
    found, left = list[str](), [pattern]
    while left:
        head = left.pop()
        opening = _first_brace(head)
        if opening < 0:
            found.append(head)
            continue
        parts, end = _alternatives(head, opening, pattern)
        left += [f"{head[:opening]}{part}{head[end + 1 :]}" for part in reversed(parts)]
        if len(left) + len(found) > _MAX_ALTERNATIVES:
            raise ConfigError(f"{pattern!r} stands for more than {_MAX_ALTERNATIVES} patterns")
    return found


def _first_brace(pattern: str) -> int:
    """Return the place of the first `{` outside of brackets, -1 for none."""
    for match in re.finditer(r"\[!?\]?[^\]]*\]|\{", pattern):
        if match[0] == "{":
            return match.start()
    return -1


def _alternatives(text: str, opening: int, pattern: str) -> tuple[list[str], int]:
    depth, start, parts = 0, opening + 1, list[str]()
    for place in range(opening, len(text)):
        sign = text[place]
        depth += (sign == "{") - (sign == "}")
        if (sign == "," and depth == 1) or (sign == "}" and depth == 0):
            parts.append(text[start:place])
            start = place + 1
        if depth == 0:
            return parts, place
    raise ConfigError(f"{pattern!r}: '{{' is not closed; write [{{] for the sign itself")


def _translate(pattern: str) -> str:
    out, last = list[str](), 0
    for match in _TOKENS.finditer(pattern):
        out.append(re.escape(pattern[last : match.start()]))
        last = match.end()
        token = match[0]
        out.append(_MEANING.get(token) or _class(token))
    return "".join((*out, re.escape(pattern[last:])))


def _class(token: str) -> str:
    """Translate `[ab]`; a `/` is never meant by it."""
    is_not, signs = token[1] == "!", token[1:-1].removeprefix("!")
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", signs)
    return f"(?!/)[{'^' if is_not else ''}{escaped}]"
