"""The morning page of one night: sentence, pictures, numbers, run.

In: what `choose` found, pictures, counts of the nights before. Out: report.html, and a CSV of each
list. Invariant: what the page shows is in the published rows; it is written after the manifest, and
what fails here never harms the night.
"""

import csv
import hashlib
import hmac
import io
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import IO, Any, Final

from imgcls.inert import in_csv
from imgcls.pages.charts import Bar, bars
from imgcls.pages.kit import data_uri, link_of, render
from imgcls.report.choose import Chosen, Key, Row, Shown, key_of, probability_of
from imgcls.report.sentence import sentence_of
from imgcls.runs.published import Manifest
from imgcls.schema import ROW_COLUMNS, Status

_THUMBNAIL_PX: Final = 160
_PLACE: Final = ("x_px", "y_px", "w_px", "h_px")
_MAX_TABLE_LINES: Final = 40
_FIRST: Final = (
    *("uri", "member", "frame", "decision", "threshold_id", "calibrated_prob", "class_name"),
    *("labels", "confidence", *_PLACE, "status", "error"),
)
_CSV_IN_MEMORY: Final = 4 << 20

Name = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Card:
    """One row as the page shows it."""

    name: str
    folder: str
    link: str
    picture: str
    picture_px: tuple[int, int]
    size_px: tuple[int, int]
    box: tuple[int, int, int, int] | None
    answer: str
    probability: float | None
    reason: str
    facts: str
    columns: dict[str, str]
    tone: str


@dataclass(frozen=True, slots=True)
class Section:
    """A list of rows with a title."""

    name: str
    title: str
    remark: str
    num_all: int
    cards: Sequence[Card]

    @property
    def csv(self) -> str:
        """The file beside the page that has all of the list, where there is one."""
        return f"{self.name}.csv" if self.name in ("positive", "review", "failed") else ""

    @property
    def has_probability(self) -> bool:
        """Whether its rows can be sorted by one."""
        return any(card.probability is not None for card in self.cards)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table of counts, with the nights before."""

    name: str
    count: int
    trend: Sequence[Bar]
    trend_words: str


@dataclass(frozen=True, slots=True)
class Table:
    """Counts by one column."""

    title: str
    head: str
    whole: int
    has_trend: bool
    lines: Sequence[Line]


def plain_names(text: str) -> str:
    """Show a name as it is."""
    return text


def hashed_names() -> Name:
    """Return what replaces names by codes, of a key that nobody keeps: equal ones stay equal."""
    key = secrets.token_bytes(16)
    return lambda text: hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:12]


def sections_of(chosen: Chosen, pictures: dict[Key, bytes], name: Name) -> list[Section]:
    """Return the lists of the page, what matters most first."""
    lists: list[tuple[str, str, str, Shown]] = []
    if chosen.by_decision:
        lists += [
            ("positive", "Positive",
             "The probability reaches the threshold of the class; the surest first.",
             chosen.positive),
            ("review", "To review", "Too close to the threshold to decide; most probable first.",
             chosen.review),
        ]  # fmt: skip
    elif chosen.num_ok:
        lists.append(("unsure", "Least sure", "Where the best class has the lowest probability.",
                      chosen.unsure))  # fmt: skip
    lists += [
        ("failed", "Without an answer", "Each with its reason.", chosen.failed),
        ("sample", "A random sample", "Drawn from all scored images, whatever they were called.",
         chosen.sample),
    ]  # fmt: skip
    sections = []
    for key, title, remark, shown in lists:
        cards = [_card(row, pictures.get(key_of(row)), name) for row in shown.rows()]
        # A sample is not a list that continues behind what is shown.
        num_all = len(cards) if key == "sample" else shown.num_all
        sections.append(Section(key, title, remark, num_all, cards))
    return sections


def _card(row: Row, picture: bytes | None, name: Name) -> Card:
    width, height = row["width_px"] or 0, row["height_px"] or 0
    shrink = _THUMBNAIL_PX / max(width, height, 1)
    folder, _, last = row["uri"].rpartition("/")
    member = row.get("member") or ""
    frame = row.get("frame")
    facts = [f"{width} x {height}" if width else "", row.get("format") or ""]
    facts.append("" if frame is None else f"frame {frame}")
    # The most probable class, which a low threshold need not ask for.
    facts.append(f"most probable: {_top(row)}" if row.get("decision") else "")
    place = tuple(row.get(key) for key in _PLACE)
    decision = row.get("decision")
    is_ok = row["status"] == Status.OK
    return Card(
        name=name(member or last),
        folder=name(row["uri"] if member else folder),
        link=link_of(row["uri"]) if name is plain_names else "",
        picture=data_uri(picture, "image/jpeg") if picture else "",
        picture_px=(max(1, round(width * shrink)), max(1, round(height * shrink))),
        size_px=(width, height),
        box=None if None in place else place,  # type: ignore[arg-type]
        answer=_answer(row) if is_ok else row["status"].replace("_", " "),
        probability=probability_of(row) if is_ok else None,
        reason=row["error"] or "",
        facts=" · ".join(filter(None, facts)),
        columns={
            key: name(str(value)) for key, value in row.items()
            if key not in ROW_COLUMNS and value is not None
        },
        tone=(decision or "") if is_ok else "failed",
    )  # fmt: skip


def _answer(row: Row) -> str:
    """Say what the probability beside it is of: of a decision, the class that it is about."""
    if row.get("decision"):
        about = row["threshold_id"].rpartition(":")[0] or row["threshold_id"]
        return f"{row['decision']}: {about}"
    return _top(row)


def _top(row: Row) -> str:
    labels = row.get("labels")
    return str(row["class_name"]) if labels is None else ", ".join(labels) or "no class"


def tables_of(chosen: Chosen, nights: list[dict[str, Counter[str]]]) -> list[Table]:
    """Return the counts of the night, each with those of the nights before."""
    kinds = [
        ("decision", "By decision", "decision", chosen.by_decision),
        ("class", "By most probable class", "class", chosen.by_class),
        ("status", "By status", "status", chosen.by_status),
    ]
    tables = []
    for key, title, head, counts in kinds:
        if not counts:
            continue
        before = [night[key] for night in nights]
        has_trend = sum(map(bool, before)) > 1
        lines = [
            Line(value.replace("_", " ") if key == "status" else value, count,
                 bars([night[value] for night in before]) if has_trend else (),
                 f"last nights: {', '.join(str(night[value]) for night in before)}")
            for value, count in counts.most_common(_MAX_TABLE_LINES)
        ]  # fmt: skip
        if rest := sum(counts.values()) - sum(line.count for line in lines):
            lines.append(Line(f"{len(counts) - len(lines)} more", rest, (), ""))
        tables.append(Table(title, head, counts.total(), has_trend, lines))
    return tables


def render_report(
    manifest: Manifest,
    output: str,
    chosen: Chosen,
    sections: list[Section],
    nights: list[dict[str, Counter[str]]],
    told: dict[str, Any],
) -> str:
    """Return report.html."""
    remarks = []
    if manifest.num_not_listed:
        remarks.append(
            f"{manifest.num_not_listed:,} folders or files could not be looked at: what they hold "
            "is not among these images."
        )
    if manifest.moved_formats:
        remarks.append(
            "The model was trained by an earlier way of reading these formats: "
            + ", ".join(manifest.moved_formats)
        )
    return render(
        "report.html",
        night={
            "date": manifest.date,
            "run_id": manifest.run_id,
            "model": manifest.model,
            "sentence": sentence_of(chosen.by_status, chosen.by_decision),
            "remarks": remarks,
            "is_medical": chosen.is_medical,
            "output": output,
        },
        sections=sections,
        tables=tables_of(chosen, nights),
        trend_remark=(
            f"The bars are the last {len(nights)} runs of this output, the latest on the right."
            if len(nights) > 1
            else "From the next run on, the runs before stand here too."
        ),
        run_facts=_run_facts(manifest, told),
        version=version("imgcls"),
    )


def _run_facts(manifest: Manifest, told: dict[str, Any]) -> list[tuple[str, str]]:
    nodes = told.get("nodes") or {}
    facts = [
        ("Source", manifest.source),
        ("Model", manifest.model),
        ("Model digest", manifest.model_digest[:16]),
        ("Published", manifest.published_at),
        ("Run", manifest.run_id),
        ("Ways to run", ", ".join(told.get("engines") or ())),
        ("Nodes", ", ".join(nodes) if isinstance(nodes, dict) else ""),
        ("Bottleneck", str(told.get("bottleneck") or "")),
    ]
    return [(key, value) for key, value in facts if value]


class CsvLists:
    """The lists of a page as spreadsheets: what a person needs first, every cell inert.

    Written as rows come, to files that are temporary where they are large.
    """

    def __init__(self, columns: Sequence[str], name: Name) -> None:
        carried = [key for key in columns if key not in ROW_COLUMNS]
        self._columns = [*(key for key in _FIRST if key in columns), *carried]
        self._name = name
        self._files: dict[str, IO[bytes]] = {}

    def add(self, list_name: str, row: Row) -> None:
        """Write a row to the list of this name."""
        if list_name not in self._files:
            self._files[list_name] = tempfile.SpooledTemporaryFile(_CSV_IN_MEMORY)  # noqa: SIM115  (closed by `files`)
            # Excel takes a file for UTF-8 only where it begins so.
            self._files[list_name].write(b"\xef\xbb\xbf" + _csv_line(map(in_csv, self._columns)))
        cells = (_cell(key, row.get(key), self._name) for key in self._columns)
        self._files[list_name].write(_csv_line(cells))

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each list that has rows."""
        for list_name, file in self._files.items():
            file.seek(0)
            with file:
                yield f"{list_name}.csv", file.read()


def _csv_line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(list(cells))
    return text.getvalue().encode()


def _cell(column: str, value: object, name: Name) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    is_name = column in ("uri", "member") or column not in ROW_COLUMNS
    return in_csv(name(text) if is_name else text)
