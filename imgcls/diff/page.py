"""The page of a comparison: every image that gets another answer, with both heatmaps.

In: two runs and their pairs. Out: OUT/_runs/<second>/pages/diff-<first>.html, a CSV beside it with
all of them. Invariant: a list that is cut short says so, and the CSV never is; the surest
disagreement comes first: by the less sure of the two answers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from imgcls.diff.pairs import Pairs, Side
from imgcls.inert import spreadsheet
from imgcls.pages.kit import Page, Part, render
from imgcls.report.cards import Card, CardList, Picture, card_of, heatmaps_of
from imgcls.report.choose import Key, key_of
from imgcls.report.names import plain_names
from imgcls.report.read import pictures_of
from imgcls.report.tables import Line, Table
from imgcls.storage.objects import put

_MOST_SHOWN: Final = 200
_CSV: Final = (
    *("uri", "member", "frame", "answer_a", "confidence_a", "decision_a", "status_a"),
    *("answer_b", "confidence_b", "decision_b", "status_b", "error_b"),
)

Row = dict[str, Any]


def write_page(
    first: Side,
    second: Side,
    pairs: Pairs,
    lines: Sequence[str],
    by_class: Counter[str],
    by_decision: Counter[str],
) -> str:
    """Write page and CSV; return where the page is."""
    flips = sorted(pairs.rows(pairs.flip_N), key=_surest_first)
    lost = pairs.rows(pairs.lost_N)
    shown = flips[:_MOST_SHOWN], lost[:_MOST_SHOWN]
    keys = {_key(row) for rows in shown for row in rows}
    pictures = [pictures_of(side.run, keys) for side in (first, second)]
    name = f"diff-{first.run.run_id}"
    cards = [_card(row, first, second, pictures) for row in shown[0]]
    parts = [
        Part("found", "What was found", "sentences.html", lines[1:]),
        _numbers(by_class, by_decision),
        Part(
            "flips",
            "Other answers",
            "cards.html",
            CardList("The surest disagreement first.", len(flips), cards, f"{name}.csv"),
        ),
    ]
    if lost:
        cards = [_card(row, first, second, pictures) for row in shown[1]]
        remark = "The first model gave an answer, the second gave none."
        parts.append(
            Part("lost", "No answer any more", "cards.html", CardList(remark, len(lost), cards))
        )
    page = render(
        Page(
            title=f"{first.manifest.model} · {second.manifest.model}",
            above=f"{first.run.run_id} beside {second.run.run_id}",
            headline=lines[0],
            remarks=[f"First: {first.manifest.model}.", f"Second: {second.manifest.model}."],
            parts=parts,
            below=f"Rows: {first.folder} and {second.folder}",
            is_medical=any(row["format_b"] == "dicom" for rows in shown for row in rows),
        )
    )
    put(second.run.page(f"{name}.csv"), _csv([*flips, *lost]), is_private=True)
    uri = second.run.page(f"{name}.html")
    put(uri, page.encode(), is_private=True)
    return uri


def _surest_first(row: Row) -> float:
    return -min(row["confidence_a"] or 0.0, row["confidence_b"] or 0.0)


def _key(row: Row) -> Key:
    return key_of(_side_of(row, "a" if row["uri_a"] is not None else "b"))


def _side_of(row: Row, side: str) -> Row:
    """Return the row of one run, as pages take it."""
    ending = f"_{side}"
    return {
        key.removesuffix(ending): value for key, value in row.items() if key.endswith(ending)
    } | {"labels": None}


def _card(
    row: Row, first: Side, second: Side, pictures: Sequence[dict[tuple[str, Key], Picture]]
) -> Card:
    of_a, of_b = _side_of(row, "a"), _side_of(row, "b")
    key = _key(row)
    found = [
        of_run.get((side.run.run_id, key))
        for side, of_run in zip((first, second), pictures, strict=True)
    ]
    card = card_of(of_b, next(filter(None, found), None), plain_names)
    return replace(
        card,
        answer=f"{_words(of_a)} → {_words(of_b)}",
        probability=min(of_a["confidence"] or 0.0, of_b["confidence"] or 0.0),
        columns={},
        heatmaps=[
            *heatmaps_of(found[0], "first: "),
            *heatmaps_of(found[1], "second: "),
        ],
    )


def _words(row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"]).replace("_", " ")
    answer = f"{row['answer'] or 'no class'} {row['confidence']:.2f}"
    return f"{answer} ({row['decision']})" if row["decision"] else answer


def _numbers(by_class: Counter[str], by_decision: Counter[str]) -> Part:
    tables = [
        Table(title, "from -> to", "images", counts.total(), has_trend=False, has_flagged=False,
              lines=[Line(name, count, (), "") for name, count in counts.most_common(40)])
        for title, counts in (("By class", by_class), ("By decision", by_decision))
        if counts
    ]  # fmt: skip
    remark = "Which answers became which." if tables else "No answer changed."
    return Part("numbers", "Numbers", "tables.html", {"remark": remark, "tables": tables})


def _csv(rows: Sequence[Row]) -> bytes:
    lines: list[list[object]] = [[*_CSV]]
    for row in rows:
        merged = row | {
            name: row[f"{name}_a"] if row[f"{name}_a"] is not None else row[f"{name}_b"]
            for name in ("uri", "member", "frame")
        }
        lines.append([merged.get(name) for name in _CSV])
    return spreadsheet(lines)
