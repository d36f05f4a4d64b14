"""Which of the images of a place are meant: --include, --exclude, --where, --since.

In: the flags, and the path and time of an object. Out: "" for one that is meant, else the flag that
leaves it out. Invariant: an object is judged by its path below the root and its time alone, so that
`plan`, `score`, `nightly` and `train` leave out the same ones.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from imgcls.config.globs import glob_to_regex
from imgcls.config.source_options import ListingOptions
from imgcls.errors import ConfigError

_AGE = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KEY_VALUES = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Selection:
    """What the flags ask for. A pattern without "/" is of the name, any other of the whole path."""

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    where: tuple[tuple[str, frozenset[str]], ...] = ()
    since: datetime | None = None

    @staticmethod
    def of(options: ListingOptions, now: datetime | None = None) -> "Selection":
        """Read the flags.

        Raises:
            ConfigError: a pattern, a time or a condition that means nothing.
        """
        ignore = options.ignore_case

        def compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
            whole = [p.removeprefix("/") if "/" in p else f"**/{p}" for p in patterns if p]
            return tuple(glob_to_regex(p, ignore_case=ignore) for p in whole)

        return Selection(
            compiled(options.include),
            compiled(options.exclude),
            tuple(_condition(text) for text in options.where),
            _moment(options.since, now or datetime.now(UTC)) if options.since else None,
        )

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return not (self.include or self.exclude or self.where or self.since)

    def left_out_by(self, path: str, changed_at: datetime | None = None) -> str:
        """Return the flag that leaves an object out, "" where none does.

        Args:
            path: Its name below the root.
            changed_at: When it was written; None where that is not known: then it is meant.
        """
        if self.include and not any(pattern.fullmatch(path) for pattern in self.include):
            return "--include"
        if any(pattern.fullmatch(path) for pattern in self.exclude):
            return "--exclude"
        folders = path.split("/")[:-1] if self.where else []
        for key, values in self.where:
            found = [folder.partition("=")[2] for folder in folders if folder.startswith(f"{key}=")]
            if not found or found[-1] not in values:
                return "--where"
        if self.since and changed_at is not None and changed_at < self.since:
            return "--since"
        return ""

    def leaves_out_folder(self, path: str) -> bool:
        """Return whether --exclude leaves out whatever may lie in a folder; it ends in "/"."""
        return any(pattern.fullmatch(f"{path}x") for pattern in self.exclude)


@dataclass
class LeftOutByFlags:
    """How many objects each flag left out, and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, flag: str, uri: str) -> None:
        """Count one."""
        self.counts[flag] += 1
        self.examples.setdefault(flag, uri)

    def merge(self, other: "LeftOutByFlags") -> None:
        """Count those of another one, too."""
        self.counts += other.counts
        self.examples = other.examples | self.examples

    def lines(self) -> list[str]:
        """Return a sentence for each flag."""
        return [
            f"{count} objects are left out by {flag}, such as {self.examples[flag]}"
            for flag, count in sorted(self.counts.items())
        ]


def _condition(text: str) -> tuple[str, frozenset[str]]:
    match = _KEY_VALUES.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--where {text}: write KEY=VALUE or KEY=A,B for folders that are called so, as in "
            "camera=3"
        )
    return match[1], frozenset(match[2].split(","))


def _moment(text: str, now: datetime) -> datetime:
    """Return the time that --since means: an age, a day or a moment (UTC where it says no zone)."""
    if age := _AGE.fullmatch(text):
        return now - timedelta(seconds=int(age[1]) * _SECONDS[age[2]])
    try:
        if len(text) == len("2026-11-22"):
            return datetime.combine(date.fromisoformat(text), time(), UTC)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since {text}: write an age such as 24h or 7d, a day such as 2026-11-22, or a "
            "moment such as 2026-11-22T18:00+01:00"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
