"""MODEL_CARD.md: what a person should know of a bundle before using it.

In: the facts of a bundle. Out: Markdown. Invariant: every number comes from the bundle, none is
computed here.
"""

from collections.abc import Mapping
from typing import Any

_MAX_LISTED = 5
_HEADLINE_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc_macro",
    "ece",
    "brier",
    "num_images",
)


def model_card(facts: Mapping[str, Any]) -> str:
    """Write the card of the facts that `bundle.json` holds."""
    training = facts["training"]
    sections = [
        f"# {facts['arch']} for {len(facts['class_names'])} classes",
        "Trained and stored by imgcls. Every file is listed with its sha256 in SHA256SUMS; "
        "`sha256sum -c SHA256SUMS` checks them.",
        "## Use\n\n"
        "    imgcls score --source SRC --model THIS_FOLDER --output OUT\n"
        "    imgcls evaluate --model THIS_FOLDER --data DATA",
        "## Classes\n\n" + _table(("label", "class"), enumerate(facts["class_names"])),
        "## Data\n\n" + _data(facts),
        "## Metrics\n\n" + _metrics(facts["metrics"]),
        "## Input\n\n" + _table(("setting", "value"), _input(facts)),
        "## Training\n\n" + _table(("setting", "value"), _flatten(training, skip=("counts",))),
        f"Created {facts['created_at']}.",
    ]
    return "\n\n".join(sections) + "\n"


def _data(facts: Mapping[str, Any]) -> str:
    counts = facts["training"].get("counts")
    lines = f"Split digest `{facts['split_digest']}`."
    if not isinstance(counts, Mapping) or not counts:
        return lines
    rows = [
        (split, name, count)
        for split, by_class in counts.items()
        for name, count in (by_class.items() if isinstance(by_class, Mapping) else [("", by_class)])
    ]
    return f"{lines}\n\n{_table(('split', 'class', 'images'), rows)}"


def _metrics(metrics: Mapping[str, Any]) -> str:
    """Show the headline numbers: of one split, or of each that has an entry in `metrics`."""
    if not metrics:
        return "None were recorded."
    by_split = {
        name: m for name, m in metrics.items() if isinstance(m, Mapping) and "accuracy" in m
    }
    rows = [
        (split, name, _shown(values[name]), _shown(values.get("intervals", {}).get(name, "")))
        for split, values in (by_split or {"": metrics}).items()
        for name in _HEADLINE_METRICS
        if name in values
    ]
    return (
        _table(("split", "metric", "value", "95 % interval"), rows)
        + "\n\nAll metrics are in bundle.json."
    )


def _input(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    specs = {"decode": facts["decode_spec"], "preprocess": facts["preprocess_spec"]}
    return _flatten(specs, skip=())


def _flatten(values: Mapping[str, Any], skip: tuple[str, ...]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name in skip:
            continue
        if isinstance(value, Mapping):
            rows += [(f"{name}.{inner}", shown) for inner, shown in _flatten(value, skip)]
        else:
            is_long = isinstance(value, list) and len(value) > _MAX_LISTED
            rows.append((name, f"{len(value)} entries, see bundle.json" if is_long else value))
    return rows


def _shown(value: Any) -> str:  # noqa: ANN401  (a JSON value)
    if isinstance(value, list):  # an interval
        return " to ".join(_shown(bound) for bound in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(header: tuple[str, ...], rows: Any) -> str:  # noqa: ANN401  (any iterable of tuples)
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
