"""Where a model made elsewhere came from, for its card.

In: the facts of a bundle. Out: a section of Markdown. Invariant: an unknown licence is said.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from imgcls.inert import in_markdown


def describe_origin(facts: Mapping[str, Any]) -> list[str]:
    """Say where a model made elsewhere came from, under which licence, and how it was proven."""
    origin = facts.get("origin")
    if not origin:
        return []
    license_text = in_markdown(origin["license"])
    lines = [
        f"Made elsewhere: {in_markdown(origin['kind'])}, `{in_markdown(origin['source'])}`, "
        f"imported {in_markdown(origin['imported_at'])}. Licence of the weights: **{license_text}**"
        + (". Find out before you use it." if license_text == "unknown" else "."),
        f"Its golden pictures were generated ({origin['num_pictures']}; no photograph of anybody), "
        f"and their answers computed by {in_markdown(origin['runtime'])}. Pictures are prepared "
        f"as {in_markdown(origin['preprocessing'])} does: the largest difference of an input was "
        f"{origin['input_difference_of_255']} of 255, and moved a probability by "
        f"{origin['largest_move_of_a_probability']:.2g}. What it is worth was not measured here: "
        "`imgcls evaluate`.",
        *(in_markdown(note) for note in origin["notes"]),
    ]
    if origin["nights_need"]:
        lines.append(f"Scoring needs `pip install '{in_markdown(origin['nights_need'])}'`.")
    if facts.get("is_backbone"):
        lines.append("**It is a backbone: it gives no classes until a head was trained on it.**")
    rows = "\n".join(_rows(origin["files"]))
    return ["## Origin\n\n" + " ".join(lines) + (f"\n\n{rows}" if origin["files"] else "")]


def _rows(files: Mapping[str, str]) -> Iterator[str]:
    yield from ("| file | sha256 |", "| --- | --- |")
    for name, sha256 in files.items():
        yield f"| {in_markdown(name)} | {in_markdown(sha256)} |"
