"""The lists of rows of a page, with their pictures.

In: what `choose` found, and pictures. Out: parts of a page. Invariant: what a card shows is in the
published row; its picture is what the run left of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from imgcls.pages.kit import Part, data_uri, link_of
from imgcls.report.choose import (
    PLACE,
    Chosen,
    Key,
    Row,
    Shown,
    carried_by,
    has_answer,
    key_of,
    probability_of,
)
from imgcls.report.names import Name, plain_names

WITH_CSV: Final = ("positive", "review", "failed")
_THUMBNAIL_PX: Final = 160


@dataclass(frozen=True, slots=True)
class Picture:
    """What a run left of an image, to look at."""

    thumbnail: bytes
    """JPEG."""
    heatmap: bytes | None = None
    """PNG to lay over it, where there is one."""
    heatmap_class: str = ""
    """The class for which what it marks speaks."""


Pictures = Mapping[tuple[str, Key], Picture]
"""By run and row."""


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A heatmap as the page shows it, over the picture once more."""

    overlay: str
    caption: str


@dataclass(frozen=True, slots=True)
class Card:
    """One row as the page shows it."""

    name: str
    folder: str
    picture: str
    size_px: tuple[int, int]
    """Width and height of the image; 0, 0 where they are not known."""
    facts: str
    link: str = ""
    box: tuple[int, int, int, int] | None = None
    answer: str = ""
    probability: float | None = None
    reason: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    tone: str = ""
    heatmaps: Sequence[Heatmap] = ()

    @property
    def picture_px(self) -> tuple[int, int]:
        """Width and height of its picture."""
        width, height = self.size_px
        shrink = _THUMBNAIL_PX / max(width, height, 1)
        return max(1, round(width * shrink)), max(1, round(height * shrink))


@dataclass(frozen=True, slots=True)
class CardList:
    """A list of rows, for the template cards.html."""

    remark: str
    num_all: int
    """Also behind its title, where the page begins."""
    cards: Sequence[Card]
    csv: str = ""
    """The file beside the page that has all of the list, where there is one."""

    @property
    def has_probability(self) -> bool:
        """Whether its rows can be sorted by one."""
        return any(card.probability is not None for card in self.cards)


def picture_key(row: Row) -> tuple[str, Key]:
    """Return what names the picture of a row, of whichever run."""
    return row["run_id"], key_of(row)


def picture_keys(row: Row) -> list[tuple[str, Key]]:
    """Return what may name the picture of a row; a unit's may be of an earlier run."""
    of_unit = [(run_id, key_of(row)) for run_id in row.get("runs") or ()]
    return of_unit or [picture_key(row)]


def lists_of(
    chosen: Chosen,
    pictures: Pictures,
    name: Name,
    dates: Mapping[str, str],
    of: str = "images",
    prefix: str = "",
) -> list[Part]:
    """Return the lists of a page, what matters most first.

    Args:
        chosen: what is shown.
        pictures: of it.
        name: how names of objects, and carried values, are shown.
        dates: of runs, where a page shows several.
        of: what the rows are.
        prefix: of the names of the files beside the page.
    """
    lists: list[tuple[str, str, str, Shown]] = []
    if chosen.by_decision:
        lists += [
            ("positive", "Positive",
             "The probability reaches the threshold of the class; the surest first.",
             chosen.positive),
            ("review", "To review", "Too close to the threshold to decide; most probable first.",
             chosen.review),
        ]  # fmt: skip
    elif chosen.unsure.num_all:
        lists.append(("unsure", "Least sure", "Where the best class has the lowest probability.",
                      chosen.unsure))  # fmt: skip
    lists += [
        ("failed", "Without an answer", "Each with its reason.", chosen.failed),
        ("sample", "A random sample", f"Drawn from all scored {of}, whatever they were called.",
         chosen.sample),
    ]  # fmt: skip
    parts = []
    for key, title, remark, shown in lists:
        cards = [card_of(row, picture_of(row, pictures), name, dates) for row in shown.rows()]
        # A sample is not a list that continues behind what is shown.
        num_all = len(cards) if key == "sample" else shown.num_all
        csv = f"{prefix}{key}.csv" if key in WITH_CSV and cards else ""
        parts.append(Part(key, title, "cards.html", CardList(remark, num_all, cards, csv)))
    return parts


def heatmaps_of(picture: Picture | None, whose: str = "") -> list[Heatmap]:
    """Return what a card shows of the heatmap of an image, nothing where there is none."""
    if picture is None or picture.heatmap is None:
        return []
    caption = f"{whose}speaks for {picture.heatmap_class}"
    return [Heatmap(data_uri(picture.heatmap, "image/png"), caption)]


def picture_of(row: Row, pictures: Pictures) -> Picture | None:
    """Return the picture of a row, where there is one."""
    return next((pictures[key] for key in picture_keys(row) if key in pictures), None)


def card_of(
    row: Row, picture: Picture | None, name: Name, dates: Mapping[str, str] = MappingProxyType({})
) -> Card:
    """Return a row as the page shows it; `dates` are those of runs, where a page shows several."""
    width, height = row["width_px"] or 0, row["height_px"] or 0
    uri, member = row["uri"] or "", row.get("member") or ""
    folder, _, last = uri.rpartition("/")
    image, where = name(member or last), name(uri if member else folder)
    frame = row.get("frame")
    facts = [dates.get(row["run_id"], ""), f"{width} x {height}" if width else ""]
    facts += [row.get("format") or "", _of_unit(row)]
    facts.append("" if frame is None else f"frame {frame}")
    # The most probable class, which a low threshold need not ask for.
    facts.append(f"most probable: {_top(row)}" if row.get("decision") else "")
    place = tuple(row.get(key) for key in PLACE)
    decision = row.get("decision")
    is_ok, unit = has_answer(row), row.get("unit")
    if unit is not None and "num_images" in row:
        image, where = name(unit), name(uri)
    return Card(
        name=image,
        folder=where,
        link=link_of(uri) if name is plain_names else "",
        picture=data_uri(picture.thumbnail, "image/jpeg") if picture else "",
        size_px=(width, height),
        box=None if None in place else place,  # type: ignore[arg-type]
        answer=_answer(row) if is_ok else row["status"].replace("_", " "),
        probability=probability_of(row) if is_ok else None,
        reason="" if is_ok and row["status"] == "ok" else row["error"] or "",
        facts=" · ".join(filter(None, facts)),
        columns=({} if unit is None else {"unit": name(unit)})
        | {key: name(str(row[key])) for key in carried_by(row) if row[key] is not None},
        tone=(decision or "") if is_ok else "failed",
        heatmaps=heatmaps_of(picture),
    )  # fmt: skip


def _of_unit(row: Row) -> str:
    """Say how many images of a unit gave its answer."""
    if "num_images" not in row:
        return ""
    count = row["num_images"]
    return f"{row['num_ok']} of {count} image{'' if count == 1 else 's'}"


def _answer(row: Row) -> str:
    """Say what the probability beside it is of: of a decision, the class that it is about."""
    if row.get("decision"):
        about = row["threshold_id"].rpartition(":")[0] or row["threshold_id"]
        return f"{row['decision']}: {about}"
    return _top(row)


def _top(row: Row) -> str:
    labels = row.get("labels")
    return str(row["class_name"]) if labels is None else ", ".join(labels) or "no class"
