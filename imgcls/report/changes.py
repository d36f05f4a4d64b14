"""What of a page says that pictures have changed, and the page of a night that is held for it.

In: drift.json of a run, and its thumbnails. Out: a part of a page, or held.html. Invariant: what is
shown is what the gate found; nothing is computed here.
"""

from imgcls.drift.record import Finding, Judged, Picture
from imgcls.pages.kit import Page, Part, data_uri, render
from imgcls.report.cards import Card, CardList, Pictures
from imgcls.report.choose import Key
from imgcls.report.names import Name, plain_names
from imgcls.report.read import pictures_of
from imgcls.runs.held import HELD_PAGE, command_of
from imgcls.runs.run import Run
from imgcls.storage.objects import exists, put


def keys_of(judged: Judged | None) -> set[Key]:
    """Return the names of the pictures that drive a change."""
    return set() if judged is None else {_key(one) for one in judged.pictures}


def changes_of(run: Run, judged: Judged | None, pictures: Pictures, name: Name) -> list[Part]:
    """Return the part that says what changed; none where nobody looked."""
    if judged is None:
        return []
    lines = [judged.sentence[:1].upper() + judged.sentence[1:] + "."]
    lines += [f"  {_told(finding)}" for finding in judged.findings]
    if exists(run.released):
        lines.append("  The night was held for a person to look at it, and then released.")
    lines += [f"  Known since a night that was released: {f.sentence}" for f in judged.accepted]
    if name is not plain_names:
        # Values of carried columns are in the sentences.
        lines = [_without_names(judged)]
    parts = [Part("changes", "Whether pictures have changed", "sentences.html", lines)]
    if judged.pictures:
        cards = [_card(run, one, judged, pictures, name) for one in judged.pictures]
        remark = "The pictures that show it most, each with the change that it shows."
        shown = CardList(remark, len(cards), cards)
        parts.append(Part("changed", "Pictures that show it", "cards.html", shown))
    return parts


def write_held_page(run: Run, date: str, judged: Judged) -> str:
    """Write the page of a run that is about to be held, or was released; return where it is."""
    pictures = pictures_of(run, keys_of(judged))
    if exists(run.released):
        now = "Was held, and released since"
        remarks = ["The night is published: its own page is report.html, beside this one."]
    else:
        now = "Held, and not published"
        remarks = [
            f"If these pictures are as they should be, publish them: {command_of('release', run)}",
            "If they are not, take them back, and the next night scores them again: "
            + command_of("rollback", run),
        ]
    page = Page(
        title=f"{date} · held",
        above=f"{date} · run {run.run_id}",
        headline=f"{now}: {judged.sentence}",
        remarks=remarks,
        parts=changes_of(run, judged, pictures, plain_names),
        is_medical=judged.is_medical,
    )
    put(run.page(HELD_PAGE), render(page).encode(), is_private=True)
    return run.page(HELD_PAGE)


def _without_names(judged: Judged) -> str:
    number = len(judged.findings)
    return f"{number} changes" if number else "No change that matters."


def _told(finding: Finding) -> str:
    told = f"{finding.sentence}: {finding.num_images:,} pictures"
    if finding.interval is not None:
        low, high = finding.interval
        told += f"; the mean moved by {low:+.3g} to {high:+.3g} (95 % interval)"
    return told


def _key(one: Picture) -> Key:
    return one.uri, one.member or "", -1 if one.frame is None else one.frame


def _card(run: Run, one: Picture, judged: Judged, pictures: Pictures, name: Name) -> Card:
    found = pictures.get((run.run_id, _key(one)))
    width, height = one.width_px or 0, one.height_px or 0
    folder, _, last = one.uri.rpartition("/")
    about = judged.findings[one.shows].sentence if one.shows < len(judged.findings) else ""
    return Card(
        name=name(one.member or last),
        folder=name(one.uri if one.member else folder),
        picture=data_uri(found.thumbnail, "image/jpeg") if found else "",
        size_px=(width, height),
        reason=about if name is plain_names else "",
        facts=f"{width} x {height}" if width else "",
    )
