"""MODEL_CARD.md: what a person should know of a bundle before using it.

In: the facts of a bundle. Out: Markdown. Invariant: every number comes from the bundle, none is
computed here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_MAX_LISTED = 5
_HEADLINE_METRICS = (
    "accuracy",
    "top5_accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "micro_f1",
    "auroc_macro",
    "average_precision_macro",
    "log_loss",
    "ece",
    "brier",
    "num_images",
)
# Shown in sections of their own, or too long for a table.
_SKIPPED_IN_TRAINING = ("counts", "num_images", "leaks", "history", "bad_images")


def model_card(facts: Mapping[str, Any], attachments: Sequence[str] = ()) -> str:
    """Write the card.

    Args:
        facts: What `bundle.json` holds.
        attachments: Names of the files beside it; pictures are shown.
    """
    training, metrics = facts["training"], facts["metrics"]
    sections = [
        f"# {facts['arch']} for {len(facts['class_names'])} classes"
        + (", any number of them per image" if facts["multi_label"] else ""),
        "Trained and stored by imgcls. Every file is listed with its sha256 in SHA256SUMS; "
        "`sha256sum -c SHA256SUMS` checks them.",
        "## Use\n\n"
        "    imgcls score --source SRC --model THIS_FOLDER --output OUT\n"
        "    imgcls evaluate --model THIS_FOLDER --data DATA",
        "## Classes\n\n" + _table(("label", "class"), enumerate(facts["class_names"])),
        "## Data\n\n" + _data(facts),
        "## Metrics\n\n" + _metrics(metrics),
        *_per_class(metrics),
        *_slices(metrics),
        *_calibration(facts.get("calibration"), metrics),
        *(f"![{name}]({name})" for name in attachments if name.endswith(".png")),
        "## Input\n\n" + _table(("setting", "value"), _input(facts)),
        "## Training\n\n"
        + _table(("setting", "value"), _flatten(training, skip=_SKIPPED_IN_TRAINING)),
        f"Created {facts['created_at']}.",
    ]
    return "\n\n".join(sections) + "\n"


def _data(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    lines = [f"Split digest `{facts['split_digest']}`."]
    if "leaks" in training:
        pairs = ", ".join(f"{count} by {kind}" for kind, count in training["leaks"].items())
        lines.append(
            f"**The splits share images, and the model was trained all the same: {pairs}.** "
            "The numbers below are too good."
            if pairs
            else "No group, no image and no near-duplicate of one lies in two splits."
        )
    bad = {split: len(found) for split, found in training.get("bad_images", {}).items()}
    if bad:
        count = ", ".join(f"{number} of {split}" for split, number in bad.items())
        lines.append(f"Images that gave no pixels and were left out: {count}; see bundle.json.")
    text = " ".join(lines)
    counts = training.get("counts")
    if not isinstance(counts, Mapping) or not counts:
        return text
    rows = [
        (name, *(by_class.get(name, 0) for by_class in counts.values()))
        for name in facts["class_names"]
    ]
    total = ("all images", *(training.get("num_images", {}).get(split, "") for split in counts))
    return f"{text}\n\n{_table(('class', *counts), [*rows, total])}"


def _by_split(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of each split; those of one split alone under ""."""
    by_split = {
        name: m for name, m in metrics.items() if isinstance(m, Mapping) and "accuracy" in m
    }
    return by_split or ({"": metrics} if metrics else {})


def _metrics(metrics: Mapping[str, Any]) -> str:
    """Show the headline numbers: of one split, or of each that has an entry in `metrics`."""
    if not metrics:
        return "None were recorded."
    rows = [
        (split, name, _shown(values[name]), _shown(values.get("intervals", {}).get(name, "")))
        for split, values in _by_split(metrics).items()
        for name in _HEADLINE_METRICS
        if name in values
    ]
    units = ", ".join(
        f"{values['intervals']['num_units']} of {split}"
        for split, values in _by_split(metrics).items()
        if "num_units" in values.get("intervals", {})
    )
    drawn = f" Intervals are a bootstrap over groups, or else images: {units}." if units else ""
    return (
        _table(("split", "metric", "value", "95 % interval"), rows)
        + f"\n\nAll metrics are in bundle.json.{drawn}"
    )


def _per_class(metrics: Mapping[str, Any]) -> list[str]:
    rows = []
    for split, values in _by_split(metrics).items():
        intervals = values.get("intervals", {}).get("per_class", {})
        for name, numbers in values.get("per_class", {}).items():
            cells = [
                f"{_shown(numbers[metric])} ({_shown(intervals.get(name, {}).get(metric))})"
                for metric in ("precision", "recall")
            ]
            auroc = _shown(values.get("auroc", {}).get(name))
            rows.append((split, name, *cells, auroc, numbers["support"]))
    header = ("split", "class", "precision", "recall", "AUROC", "images")
    return [f"### Per class\n\n{_table(header, rows)}"] if rows else []


def _slices(metrics: Mapping[str, Any]) -> list[str]:
    header = ("split", "slice", "images", "accuracy", "95 % interval")
    rows = [
        (split, name, row["num_images"], _shown(row["accuracy"]), _shown(row["accuracy_interval"]))
        for split, values in _by_split(metrics).items()
        for name, row in values.get("slices", {}).items()
    ]
    return [f"### Slices\n\n{_table(header, rows)}"] if rows else []


def _calibration(calibration: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> list[str]:
    """Show what was fitted on validation, and what it achieves on each split."""
    if not calibration:
        return []
    text = (
        f"## Calibration\n\nTemperature {_shown(float(calibration['temperature']))} "
        f"({calibration['note']}, {calibration['num_images']} images)."
    )
    measured = {
        split: values["calibrated"]
        for split, values in _by_split(metrics).items()
        if "calibrated" in values
    }
    rows = [
        (split, name, _shown(metrics[split].get(name)), _shown(after[name]))
        for split, after in measured.items()
        for name in ("log_loss", "ece")
    ]
    if rows:
        text += "\n\n" + _table(("split", "metric", "as trained", "calibrated"), rows)
    points = [
        (
            point["threshold_id"],
            _shown(point["threshold"]),
            f"{_shown(point['review_low'])} to {_shown(point['review_high'])}",
            split,
            _with_interval(after["operating_points"][point["threshold_id"]], "recall"),
            _with_interval(after["operating_points"][point["threshold_id"]], "specificity"),
            _shown(after["operating_points"][point["threshold_id"]]["review_fraction"]),
        )
        for point in calibration["operating_points"]
        for split, after in measured.items()
    ]
    if points:
        header = ("operating point", "threshold", "review", "split", "recall", "specificity")
        text += "\n\n" + _table((*header, "to review"), points)
    return [text]


def _with_interval(numbers: Mapping[str, Any], name: str) -> str:
    return f"{_shown(numbers[name])} ({_shown(numbers.get(f'{name}_interval'))})"


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
    if value is None:
        return "–"
    if isinstance(value, list):  # an interval
        return " to ".join(_shown(bound) for bound in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(header: tuple[str, ...], rows: Any) -> str:  # noqa: ANN401  (any iterable of tuples)
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
