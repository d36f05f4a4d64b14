"""card.html: the model card as a page for people, with its pictures.

In: the text of MODEL_CARD.md, and the files beside it. Out: HTML. Invariant: it says what the text
says, in the same order; HTML in it is text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markdown_it import MarkdownIt
from markupsafe import Markup

from imgcls.pages.kit import Page, Part, data_uri, render

PICTURES: Final = "Pictures"
# Those that show images of DATA: whoever has them was asked for by --pictures-in-bundle.
_OF_DATA: Final = ("inputs.png", "worst_errors.png")
_CAPTIONS: Final = {
    "confusion.png": "What was taken for what",
    "curves.png": "Training, epoch by epoch",
    "inputs.png": "Training images as the model sees them",
    "reliability.png": "How far probabilities can be taken at their word",
    "roc.png": "What is found for how many false alarms",
    "scores.png": "Probabilities of images with and without the class",
    "worst_errors.png": "The worst errors",
}
_SECTION: Final = re.compile(r"^## (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, for the template pictures.html."""

    uri: str
    caption: str


def card_page(text: str, facts: Mapping[str, Any], attachments: Mapping[str, bytes]) -> str:
    """Return card.html.

    Args:
        text: of MODEL_CARD.md.
        facts: what bundle.json holds.
        attachments: files of the bundle; PNGs are shown.
    """
    head, *rest = _SECTION.split(text)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    title, _, about = head.strip().removeprefix("# ").partition("\n")
    verdict = (facts.get("verdict") or {}).get("lines") or ()
    pictures = [
        Picture(data_uri(data, "image/png"), _CAPTIONS.get(name, name))
        for name, data in sorted(attachments.items(), key=lambda item: _rank(item[0]))
        if name.endswith(".png")
    ]
    parts = [_part(name, body, pictures, verdict) for name, body in sections.items()]
    return render(
        Page(
            title=f"{_plain(title)}: model card",
            above=_plain(title),
            headline=verdict[0] if verdict else "Not known whether it is better than guessing",
            remarks=[_plain(line) for line in about.split("\n\n") if line.strip()],
            parts=parts,
            below=f"Created {facts['created_at']}.",
            is_medical="dicom" in str(facts["training"].get("sees", "")).lower()
            or any(name in attachments for name in _OF_DATA),
        )
    )


def _part(name: str, body: str, pictures: Sequence[Picture], verdict: Sequence[str]) -> Part:
    anchor = re.sub(r"[^a-z]+", "-", name.lower())
    if name == PICTURES:
        return Part(anchor, name, "pictures.html", pictures)
    if anchor == "verdict" and verdict:
        return Part(anchor, name, "sentences.html", verdict[1:])
    return Part(anchor, name, "prose.html", _to_html(body))


def _to_html(text: str) -> Markup:
    # Without HTML, each name in the text is escaped: what comes out is Markdown's own.
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return Markup(parser.render(text))  # noqa: S704


def _plain(text: str) -> str:
    """Return a line of Markdown as a reader sees it."""
    return _to_html(text).striptags()


def _rank(name: str) -> tuple[int, str]:
    order = ["scores.png", "roc.png", "confusion.png", "reliability.png", "curves.png"]
    return (order.index(name) if name in order else len(order)), name
