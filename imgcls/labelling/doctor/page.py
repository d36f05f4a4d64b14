"""The page of the suspects, with their pictures.

In: what was seen and what is suspected. Out: doctor.html. Invariant: a picture is shown at most
once in a list, and at most LIMIT of them; the manifest has all.
"""

from collections.abc import Sequence
from typing import Final

from imgcls.labelling.doctor.look import Looked
from imgcls.labelling.doctor.suspects import POOR, Suspect
from imgcls.pages.kit import Page, Part, data_uri, render
from imgcls.report.cards import Card, CardList

_LIMIT: Final = 200
_LISTS: Final = (
    ("labels", "Labels that may be wrong", ("label",),
     "Models that had not seen the picture call it something else; the surest first."),
    ("conflicts", "One picture, two labels", ("conflict",),
     "Copies that are labelled unlike: one of the two is wrong."),
    ("copies", "There twice", ("duplicate", "near-duplicate"),
     "Copies weigh more in training, and make a test too easy if one is on each side."),
    ("poor", "Pictures that show little", POOR,
     "Hardly anything can be seen in them, or far less than in the others."),
    ("sizes", "Odd sizes", ("size",), "From another camera, or cut by hand?"),
)  # fmt: skip


def render_doctor(
    data: str,
    looked: Looked,
    suspects: Sequence[Suspect],
    overlapping: Sequence[tuple[str, str, int]],
    lines: Sequence[str],
) -> str:
    """Return the page."""
    parts = []
    for key, title, kinds, remark in _LISTS:
        of = [suspect for suspect in suspects if suspect.kind in kinds]
        cards = [_card(looked, suspect) for suspect in of[:_LIMIT]]
        listed = CardList(remark, len(of), cards, csv="labels.csv" if of else "")
        parts.append(Part(key, title, "cards.html", listed))
    pairs = [
        (f"{given} that look like {like}", f"{count} images") for given, like, count in overlapping
    ]
    parts.append(Part("classes", "Classes that overlap", "facts.html", pairs or [("None", "")]))
    return render(
        Page(
            title=f"Labels of {data}",
            above=data,
            headline=lines[0],
            remarks=lines[1:],
            parts=parts,
            below="Nothing was changed. Correct the column label of labels.csv beside this page, "
            "or delete rows, and train from it.",
            is_medical=any(facts.source.modality for facts in looked.facts),
        )
    )


def _card(looked: Looked, suspect: Suspect) -> Card:
    sample = looked.samples[suspect.index]
    width, height = looked.sizes[suspect.index]
    folder, _, name = sample.uri.rpartition("/")
    return Card(
        name=name,
        folder=folder,
        picture=data_uri(looked.thumbnails[suspect.index], "image/jpeg"),
        size_px=(width, height),
        answer=f"{sample.class_name} → {suspect.suggested}"
        if suspect.suggested
        else sample.class_name,
        probability=suspect.probability,
        reason="" if suspect.suggested else suspect.reason,
        facts=f"{width} x {height}",
        columns={"group": sample.group} if sample.group else {},
        tone="review" if suspect.kind in ("label", "conflict") else "",
    )
