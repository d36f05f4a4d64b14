"""The morning page of one night: sentence, numbers, pictures, model, run.

In: what `choose` found, its pictures, counts of the nights before. Out: HTML. Invariant: what the
page shows is in the published rows, in the manifest or in the bundle; nothing is computed here.

A section is a `Part`: one more is one more entry of `parts`, and a template of its own where none
in pages/templates/parts fits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.errors import ImgclsError
from imgcls.model.bundle_files import FACTS, parse_facts, parse_sums, read_file, read_sums
from imgcls.pages.kit import Page, Part, render
from imgcls.report.cards import Pictures, lists_of
from imgcls.report.choose import Chosen
from imgcls.report.names import Name
from imgcls.report.sentence import sentence_of
from imgcls.report.tables import Counts, numbers_of
from imgcls.runs.published import Manifest
from imgcls.storage.uri import join


def render_night(
    folder: str,
    manifest: Manifest,
    chosen: Chosen,
    pictures: Pictures,
    nights: Sequence[Counts],
    told: Mapping[str, Any],
    name: Name,
) -> str:
    """Return report.html.

    Args:
        folder: where the night is published.
        manifest: of it.
        chosen: what was found in its rows.
        pictures: of the rows that are shown.
        nights: counts of it, the last, and of those before.
        told: what the run told of its work.
        name: how names of objects, and carried values, are shown.
    """
    parts = [
        numbers_of(chosen, nights, name),
        *lists_of(chosen, pictures, name),
        verdict_of(manifest.model_uri),
        Part("run", "The run", "facts.html", _run_facts(manifest, told)),
    ]
    return render(
        Page(
            title=f"{manifest.date} · {manifest.model}",
            above=f"{manifest.date} · run {manifest.run_id}",
            headline=sentence_of(chosen.by_status, chosen.by_decision),
            remarks=_remarks(manifest),
            parts=parts,
            below=f"Rows of this night: {folder}",
            is_medical=chosen.is_medical,
        )
    )


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
