"""The result of a job on stdout: one JSON object, or, on a terminal, words.

In: the result as plain values. Out: lines. Invariant: the last line of stdout is JSON wherever
stdout is not a terminal; a program never needs to read the words.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from imgcls.inert import in_log

_MAX_ITEMS: Final = 6
# Where a table of names and values begins its values.
_MIN_WIDTH: Final = 10


class Out:
    """Where the result of a command goes, and in which form.

    Args:
        tells: names of values that a terminal shows beside `lines`; None for all that are short.
        as_json: asked for, on a terminal too.
    """

    def __init__(self, tells: Sequence[str] | None = None, *, as_json: bool = False) -> None:
        self._tells = tells
        self._is_for_people = sys.stdout.isatty() and not as_json

    @property
    def is_shown_below_the_log(self) -> bool:
        """Whether the same terminal shows the log, and below it the result."""
        return self._is_for_people and sys.stderr.isatty()

    def show(self, result: dict[str, Any]) -> None:
        """Print the result."""
        if not self._is_for_people:
            sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
        for line in lines_of(result, self._tells) if self._is_for_people else ():
            sys.stdout.write(f"{in_log(line)}\n")
        sys.stdout.flush()

    def show_failure(self, result: dict[str, Any]) -> None:
        """Print why a job failed; on a terminal the last line of the log has said it."""
        if not self.is_shown_below_the_log:
            self.show(result)


def lines_of(result: Mapping[str, Any], tells: Sequence[str] | None = None) -> Iterator[str]:
    """Yield a result as a person reads it: its sentences, then names and values.

    Args:
        result: plain values; `lines`, or those of its `verdict`, are sentences.
        tells: which of the others; None for all that are short.
    """
    verdict = result.get("verdict")
    of_verdict = verdict.get("lines") if isinstance(verdict, Mapping) else None
    lines = result.get("lines") or of_verdict or ()
    if lines or tells:
        yield ""
    yield from lines
    hidden = {"lines", "exit_code"} | ({"verdict"} if of_verdict else set())
    names = [name for name in result if name not in hidden]
    if tells is not None:
        names = [name for name in tells if name in result]
    shown = {name: text for name in names if (text := _in_words(name, result[name]))}
    if lines and shown:
        yield ""
    width = max([_MIN_WIDTH, *map(len, map(_title, shown))])
    for name, text in shown.items():
        yield f"{_title(name):<{width}}  {text}"


def _title(name: str) -> str:
    return {"elapsed_s": "took", "total_s": "took"}.get(name, name.replace("_", " "))


def _in_words(name: str, value: Any) -> str:  # noqa: ANN401  (a JSON value)
    """Return a value in a line; "" for one that says nothing, or too much for a line."""
    match value:
        case None | "" | []:
            return ""
        case dict() if not value:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float() if name.endswith("_s"):
            return _duration(value)
        case float():
            return f"{value:.4g}"
        case str():
            return value
        case list():
            is_short = len(value) <= _MAX_ITEMS and all(isinstance(each, str) for each in value)
            return ", ".join(value) if is_short else f"{len(value):,} (--json shows them)"
        case dict() if all(isinstance(each, int | float | str) for each in value.values()):
            pairs = [
                f"{key.replace('_', ' ')} {_in_words(key, each)}" for key, each in value.items()
            ]
            left = len(pairs) - _MAX_ITEMS
            return ", ".join(pairs[:_MAX_ITEMS]) + (f", and {left} more" if left > 0 else "")
    return "--json shows it"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
