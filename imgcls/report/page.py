"""The morning page of one night: sentence, numbers, pictures, model, run.

In: what `choose` found, its pictures, counts of the nights before. Out: HTML. Invariant: what the
page shows is in the published rows, in the manifest or in the bundle; nothing is computed here.

A section is a `Part`: one more is one more entry of `parts`, and a template of its own where none
in pages/templates/parts fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.errors import ImgclsError
from imgcls.model.bundle_files import FACTS, parse_facts, parse_sums, read_file, read_sums
from imgcls.pages.kit import Page, Part, render
from imgcls.report.cards import Pictures, lists_of
from imgcls.report.choose import Chosen
from imgcls.report.names import Name
from imgcls.report.over_time import weeks_of
from imgcls.report.read import Night, report_of
from imgcls.report.sentence import sentence_of, sentence_of_units
from imgcls.report.tables import Counts, numbers_of
from imgcls.runs.published import Manifest
from imgcls.schema import Status
from imgcls.storage.uri import join


def render_night(
    night: Night,
    chosen: Chosen,
    pictures: Pictures,
    counts: Sequence[Counts],
    name: Name,
    changes: Sequence[Part] = (),
) -> str:
    """Return the page of a night.

    Args:
        night: the night.
        chosen: what was found in its rows.
        pictures: of the rows that are shown.
        counts: of it, the last, and of the nights before.
        name: how names of objects, and carried values, are shown.
        changes: what says whether its pictures have changed.
    """
    # With pictures where something changed: that comes before everything else.
    has_changed = len(changes) > 1
    manifest, describe = night.manifest, sentence_of_units if night.by_unit else sentence_of
    parts = [
        *(changes if has_changed else ()),
        numbers_of(chosen, counts, name, night.counted),
        *lists_of(chosen, pictures, name, {}, night.counted, "unit-" if night.by_unit else ""),
        *(() if has_changed else changes),
        *weeks_of(night.output),
        verdict_of(manifest.model_uri),
        Part("run", "The run", "facts.html", _run_facts(manifest, report_of(night.run))),
    ]
    return render(
        Page(
            title=f"{manifest.date} · {manifest.model}",
            above=f"{manifest.date} · run {manifest.run_id}",
            headline=describe(chosen.by_status, chosen.by_decision),
            remarks=_remarks(manifest),
            parts=parts,
            below=f"Rows of this night: {night.folder}",
            is_medical=chosen.is_medical or manifest.unit.startswith("dicom:"),
        )
    )


def render_nights(
    nights: Sequence[Night],
    chosen: Chosen,
    pictures: Pictures,
    counts: Sequence[Counts],
    name: Name,
) -> str:
    """Return one page of several nights, the latest last; the arguments are as above."""
    first, last = nights[0].manifest, nights[-1].manifest
    by_unit = nights[-1].by_unit
    describe = sentence_of_units if by_unit else sentence_of
    dates = {night.manifest.run_id: night.manifest.date for night in nights}
    prefix = "nights-unit-" if by_unit else "nights-"
    parts = [
        Part("nights", "Nights", "nights.html", _lines_of(nights, counts)),
        numbers_of(chosen, counts, name, nights[-1].counted),
        *lists_of(chosen, pictures, name, dates, nights[-1].counted, prefix),
        *weeks_of(nights[-1].output),
        verdict_of(last.model_uri),
    ]
    return render(
        Page(
            title=f"{first.date} to {last.date} · {last.model}",
            above=f"{first.date} to {last.date} · {len(nights)} runs together",
            headline=describe(chosen.by_status, chosen.by_decision),
            remarks=["An image that several runs scored is counted once for each."],
            parts=parts,
            below=f"Rows of these nights: {nights[-1].output}",
            is_medical=chosen.is_medical or last.unit.startswith("dicom:"),
        )
    )


@dataclass(frozen=True, slots=True)
class NightLine:
    """One night among several, for the template nights.html; None where it is not known."""

    date: str
    run_id: str
    model: str
    num_images: int
    num_ok: int
    num_positive: int | None
    num_review: int | None


def _lines_of(nights: Sequence[Night], counts: Sequence[Counts]) -> list[NightLine]:
    lines = []
    for night, counted in zip(nights, counts, strict=True):
        decisions = counted.get("decision")
        status, manifest = counted["status"], night.manifest
        lines.append(
            NightLine(
                manifest.date,
                manifest.run_id,
                manifest.model_uri.rpartition("/")[2],
                status.total(),
                status[Status.OK],
                decisions["positive"] if decisions else None,
                decisions["review"] if decisions else None,
            )
        )
    return lines[::-1]


def verdict_of(model_uri: str) -> Part:
    """Return what the card of a model says of it first."""
    lines: Sequence[str]
    try:
        sums = parse_sums(read_sums(model_uri), model_uri)
        facts = parse_facts(read_file(model_uri, FACTS, sums[FACTS]), join(model_uri, FACTS))
        lines = (facts["verdict"] or {}).get("lines") or [
            "Whether this model is better than guessing is not known: it was made before there "
            "were verdicts, or elsewhere. `imgcls evaluate` measures it."
        ]
    except ImgclsError as error:
        lines = [f"The model's card could not be read: {error}"]
    return Part("model", "The model", "sentences.html", lines)


def _remarks(manifest: Manifest) -> list[str]:
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
    return remarks


def _run_facts(manifest: Manifest, told: Mapping[str, Any]) -> list[tuple[str, str]]:
    nodes = told.get("nodes") or []
    rates = [
        f"{node['node']}: {node['images']:,} images, {node['images_per_s']:.1f} a second"
        for node in nodes
        if isinstance(node, dict) and {"node", "images", "images_per_s"} <= set(node)
    ]
    versions = (manifest.decoders or {}).get("versions") or {}
    facts = [
        ("Source", manifest.source),
        ("Model", manifest.model),
        ("Model digest", manifest.model_digest[:16]),
        ("Spec digest", manifest.spec_digest[:16]),
        ("Published", f"{manifest.published_at[:16].replace('T', ' ')} UTC"),
        ("Run", manifest.run_id),
        ("Ways to run", ", ".join(told.get("engines") or ())),
        ("Nodes", "; ".join(rates)),
        ("Bottleneck", str(told.get("bottleneck") or "")),
        ("Decoders", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]
    return [(key, value) for key, value in facts if value]
