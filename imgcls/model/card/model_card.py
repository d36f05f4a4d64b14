"""MODEL_CARD.md: what a person should know of a bundle before using it.

In: the facts of a bundle. Out: Markdown. Invariant: every number comes from the bundle, none is
computed here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from imgcls.inert import in_markdown
from imgcls.metrics.bootstrap import FEW_UNITS
from imgcls.metrics.measures import HEADLINES, about_best
from imgcls.model.card.of_units import calibration_of, describe_units
from imgcls.model.golden_files import about_golden
from imgcls.model.origin import describe_origin

_MAX_LISTED = 5
_IN_TABLE = (*(each.name for each in HEADLINES if each.in_card), "num_images")
# Shown in sections of their own, or too long for a table.
_SKIPPED_IN_TRAINING = (
    "counts",
    "num_images",
    "num_groups",
    "leaks",
    "leak_check",
    "history",
    "bad_images",
    "no_operating_point",
    "golden_miss",
    "sees",
)
_NO_SPREAD = "no spread"
# Jovanovic and Levy 1997, "A look at the rule of three".
_ABOUT_NO_SPREAD = (
    f'"{_NO_SPREAD}": whichever images are drawn again the number is the same, mostly because none '
    "was wrong. That is not certain: where n of n independent images are right, the true share "
    "may still be as low as 1 - 3/n (95 %)."
)
_ABOUT_OTHERS = (
    "The numbers hold for images like these; for those of another site, device or time measure "
    "again: `imgcls evaluate`."
)


def model_card(facts: Mapping[str, Any], attachments: Sequence[str] = ()) -> str:
    """Write the card.

    Args:
        facts: What `bundle.json` holds.
        attachments: Names of the files beside it; pictures are shown.
    """
    training, metrics = facts["training"], facts["metrics"]
    numbers = [
        "## Metrics\n\n" + _metrics(metrics, multi_label=facts["multi_label"]),
        *_per_class(metrics),
        *_slices(metrics),
        *_calibration(facts, metrics),
    ]
    sections = [
        # What a person must know first, then where it comes from, then how far it goes.
        f"# {_name(training)}{in_markdown(facts['arch'])} for {len(facts['class_names'])} classes"
        + (", any number of them per image" if facts["multi_label"] else ""),
        ("Imported" if facts.get("origin") else "Trained") + " and stored by imgcls. Every file is "
        "listed with its sha256 in SHA256SUMS; `sha256sum -c SHA256SUMS` checks them.",
        *describe_origin(facts),
        "## Verdict\n\n" + _verdict(facts.get("verdict")),
        *describe_units(metrics),
        *_golden_miss(training),
        *_pictures(attachments),
        "## Data\n\n" + _data(facts),
        "## Limits\n\n" + _limits(facts, attachments, numbers),
        *numbers,
        "## Use\n\n"
        "    imgcls score --source SRC --model THIS_FOLDER --output OUT\n"
        "    imgcls evaluate --model THIS_FOLDER --data DATA",
        "## Classes\n\n" + _table(("label", "class"), enumerate(facts["class_names"])),
        "## Input\n\n"
        + _sees(training.get("sees", ""))
        + _table(("setting", "value"), _input(facts)),
        "## Configuration\n\n"
        + _table(("setting", "value"), _flatten(training, skip=_SKIPPED_IN_TRAINING)),
        f"Created {facts['created_at']}. imgcls is not a medical device.",
    ]
    return "\n\n".join(sections) + "\n"


def _pictures(attachments: Sequence[str]) -> list[str]:
    shown = [f"![{name}]({name})" for name in attachments if name.endswith(".png")]
    return ["\n\n".join(["## Pictures", *shown])] if shown else []


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    """Show what a person must know first: the answer in bold, then a line for each finding."""
    if not verdict:
        return (
            "None was passed: this model was made before there were any, or elsewhere. Whether it "
            "is better than guessing is not known; `imgcls evaluate` measures it."
        )
    first, *lines = verdict["lines"]
    items = [
        f"{'  ' if line.startswith(' ') else ''}- {in_markdown(line.strip())}" for line in lines
    ]
    return "\n\n".join([f"**{in_markdown(first)}**", *(["\n".join(items)] if items else [])])


def _limits(facts: Mapping[str, Any], attachments: Sequence[str], numbers: Sequence[str]) -> str:
    """Say how far the numbers go."""
    by_split = _by_split(facts["metrics"])
    limits = [_ABOUT_OTHERS]
    if "val" in by_split:
        limits.append(
            "val chose the epoch that was kept and the calibration, so its own numbers are a "
            "little too good; test decided nothing."
        )
    for values in by_split.values():
        if folds := values.get("folds"):
            limits.append(
                f"**The model in this bundle was itself not measured.** The numbers are of "
                f"{len(folds)} models, each trained without the fold that measures it ("
                + "; ".join(
                    f"{fold['fold']}: accuracy {_shown(fold['accuracy'])}" for fold in folds
                )
                + "); then this one was trained on all. The same images chose the thresholds."
            )
    intervals = {split: values.get("intervals", {}) for split, values in by_split.items()}
    if any(of_split.get("num_units", FEW_UNITS) < FEW_UNITS for of_split in intervals.values()):
        limits.append(
            f"With fewer than {FEW_UNITS} groups such intervals are too narrow: of 10 groups they "
            "hold the truth in 85 %, not 95."
        )
    limits += [
        f"**No intervals of {split or 'these numbers'}: {in_markdown(reason)}.**"
        for split, of_split in intervals.items()
        if (reason := of_split.get("no_interval_because"))
    ]
    if any(_NO_SPREAD in section for section in numbers):
        limits.append(_ABOUT_NO_SPREAD)
    limits.append(about_golden(attachments))
    return "\n".join(f"- {limit}" for limit in limits)


def _golden_miss(training: Mapping[str, Any]) -> list[str]:
    """Warn of a model that its own training's GPU computes wrongly, or another way."""
    if "golden_miss" not in training:
        return []
    return [
        "**Where it was trained this model does not give its golden answers: the CPU measured.** "
        f"{in_markdown(training['golden_miss'])} Score it with `--device cpu` or on another GPU."
    ]


def _name(training: Mapping[str, Any]) -> str:
    config = training.get("config")
    name = config.get("name") if isinstance(config, Mapping) else None
    return f"{in_markdown(str(name))}: " if name else ""


def _data(facts: Mapping[str, Any]) -> str:
    training = facts["training"]
    lines = [f"Split digest `{facts['split_digest']}`.", *_leaks(training)]
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


def _leaks(training: Mapping[str, Any]) -> list[str]:
    """Say what the splits share, how far that is known, and whether there were groups at all."""
    if "leaks" not in training:
        return []
    if sum(number > 0 for number in training.get("num_images", {}).values()) == 1:
        return ["There is one split only: nothing was compared."]
    check = training.get("leak_check", {})
    because = "; ".join(check.get("incomplete_because", ()))
    pairs = ", ".join(f"{count} by {kind}" for kind, count in training["leaks"].items())
    lines = []
    if pairs:
        lines.append(
            f"**The splits share images, and the model was trained all the same: {pairs}.** "
            "The numbers below are too good."
        )
    else:
        what = "No image" if training.get("num_groups") == 0 else "No group, no image"
        was = "was found in two splits" if because else "of one lies in two splits"
        lines.append(f"{what} and no near-duplicate {was}.")
    if because:
        lines.append(
            f"**Leak check: incomplete, because {because}.** There may be more pairs than were "
            "found, and then the numbers below are too good."
        )
    elif check:
        lines.append("Leak check: complete.")
    if training.get("num_groups") == 0:
        lines.append(
            "No groups were given: whether images of one patient, lot or camera lie in two splits "
            "is not known. Where they do, the numbers below are too good."
        )
    elif "num_groups" in training:
        lines.append(f"Groups: {training['num_groups']}.")
    return lines


def _by_split(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of each split; those of one split alone under ""."""
    by_split = {
        name: m for name, m in metrics.items() if isinstance(m, Mapping) and "accuracy" in m
    }
    return by_split or ({"": metrics} if metrics else {})


def _metrics(metrics: Mapping[str, Any], *, multi_label: bool) -> str:
    """Show the headline numbers: of one split, or of each that has an entry in `metrics`."""
    if not metrics:
        return "None were recorded."
    rows = [
        (
            split,
            # Of two classes there is one AUROC: that of either is the other's.
            "auroc" if name == "auroc_macro" and _is_of_two(values) else name,
            _shown(values[name]),
            _interval(values.get("intervals", {}).get(name, "")),
        )
        for split, values in _by_split(metrics).items()
        for name in _IN_TABLE
        if name in values
    ]
    units = ", ".join(
        f"{values['intervals']['num_units']} of {split}"
        for split, values in _by_split(metrics).items()
        if "num_units" in values.get("intervals", {})
    )
    notes = [about_best()]
    if multi_label:
        notes.append("accuracy is the share of images with every class right.")
    notes.append("All metrics are in bundle.json.")
    if units:
        notes.append(f"Intervals are a bootstrap over groups, or else images: {units}.")
    return _table(("split", "metric", "value", "95 % interval"), rows) + "\n\n" + " ".join(notes)


def _is_of_two(values: Mapping[str, Any]) -> bool:
    """Say whether a split was measured with two classes that exclude each other."""
    return len(values.get("confusion_matrix", ())) == 2


def _per_class(metrics: Mapping[str, Any]) -> list[str]:
    is_of_two = any(map(_is_of_two, _by_split(metrics).values()))
    rows = []
    for split, values in _by_split(metrics).items():
        intervals = values.get("intervals", {}).get("per_class", {})
        for name, numbers in values.get("per_class", {}).items():
            cells = [
                f"{_shown(numbers[metric])} ({_interval(intervals.get(name, {}).get(metric))})"
                for metric in ("precision", "recall")
            ]
            auroc = [] if is_of_two else [_shown(values.get("auroc", {}).get(name))]
            rows.append((split, name, *cells, *auroc, numbers["support"]))
    area = () if is_of_two else ("AUROC",)
    header = ("split", "class", "precision", "recall", *area, "images")
    return [f"### Per class\n\n{_table(header, rows)}"] if rows else []


def _slices(metrics: Mapping[str, Any]) -> list[str]:
    header = ("split", "slice", "images", "accuracy", "95 % interval")
    rows = [
        (
            split,
            name,
            row["num_images"],
            _shown(row["accuracy"]),
            _interval(row["accuracy_interval"]),
        )
        for split, values in _by_split(metrics).items()
        for name, row in values.get("slices", {}).items()
    ]
    return [f"### Slices\n\n{_table(header, rows)}"] if rows else []


def _calibration(facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """Show what was fitted on validation, and what it achieves on each split."""
    calibration, missing = calibration_of(facts), facts["training"].get("no_operating_point")
    without = f"**{in_markdown(missing[0].upper() + missing[1:])}.**" if missing else ""
    if not calibration:
        return [f"## Calibration\n\n{without}"] if without else []
    text = (
        f"## Calibration\n\nTemperature {_shown(float(calibration['temperature']))} "
        f"({in_markdown(calibration['note'])}, {calibration['num_images']} images)."
    )
    measured = {
        split: values["calibrated"]
        for split, values in _by_split(metrics).items()
        if "calibrated" in values
    }
    rows = [
        (split, name, _shown(_as_trained(metrics, calibration, split, name)), _shown(after[name]))
        for split, after in measured.items()
        for name in ("log_loss", "ece")
    ]
    if rows:
        text += "\n\n" + _table(("split", "metric", "as trained", "calibrated"), rows)
    points = [
        (
            point["threshold_id"],
            _threshold(point["threshold"]),
            f"{_threshold(point['review_low'])} to {_threshold(point['review_high'])}",
            split,
            _with_interval(after["operating_points"][point["threshold_id"]], "recall"),
            _with_interval(after["operating_points"][point["threshold_id"]], "specificity"),
            f"{100 * after['operating_points'][point['threshold_id']]['review_fraction']:.1f} %",
        )
        for point in calibration["operating_points"]
        for split, after in measured.items()
    ]
    if points:
        header = ("operating point", "threshold", "review band", "split", "recall", "specificity")
        text += "\n\n" + _table((*header, "to review"), points)
        text += (
            "\n\nA calibrated probability from the upper end of the review band on is positive, "
            "one below its lower end negative, between them a person decides. The thresholds were "
            "chosen on val: what to expect of new images is in the rows of test."
        )
        for point in calibration["operating_points"]:
            text += (
                f" {in_markdown(point['threshold_id'])} rests on {point['num_positive']} images of "
                f"the class and {point['num_negative']} others."
            )
    return [f"{text}\n\n{without}" if without else text]


def _as_trained(
    metrics: Mapping[str, Any], calibration: Mapping[str, Any], split: str, name: str
) -> Any:  # noqa: ANN401  (a JSON value)
    """Return a number before calibration; of several labels it is known of validation alone."""
    before = metrics[split].get(name)
    return calibration.get(f"{name}_before") if before is None and split == "val" else before


def _with_interval(numbers: Mapping[str, Any], name: str) -> str:
    return f"{_shown(numbers[name])} ({_interval(numbers.get(f'{name}_interval'))})"


def _threshold(value: float) -> str:
    # Of a rare class they lie close to 0, where four decimals say nothing.
    return f"{value:.4g}"


def _sees(sees: str) -> str:
    return f"{in_markdown(sees[:1].upper() + sees[1:])}.\n\n" if sees else ""


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
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _interval(bounds: Any) -> str:  # noqa: ANN401  (a JSON value: a pair, or none)
    if not isinstance(bounds, list):
        return _shown(bounds)
    low, high = (_shown(bound) for bound in bounds)
    return f"{low} to {high}" if bounds[0] != bounds[1] else _NO_SPREAD


def _table(header: tuple[str, ...], rows: Any) -> str:  # noqa: ANN401  (any iterable of tuples)
    lines = ["| " + " | ".join(map(_cell, line)) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


def _cell(value: object) -> str:
    return in_markdown(str(value))
