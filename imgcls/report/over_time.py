"""How good the model was, week by week, by the labels that came back.

In: an output with queues and answers. Out: sensitivity and specificity of each period on all that
was scored in it, with 95 % intervals. Invariant: an image that was chosen for its doubt stands for
itself alone, one that was drawn at random for its share of the night; so the numbers are those of
the nights, not of the queue.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from typing import Any, Final, Literal

from imgcls.errors import ConfigError, SourceError
from imgcls.metrics.sampled import Stratum, estimate
from imgcls.metrics.threshold_report import positive_class_of
from imgcls.pages.kit import Part
from imgcls.runs.answers import RANDOM, Row, read_answers, read_queues

Period = Literal["day", "week", "month"]

_NEGATIVE: Final = "negative"
_WEEKS_SHOWN: Final = 8


def measure_over_time(output: str, period: Period, positive_class: str = "") -> dict[str, Any]:
    """Return the numbers of each period, the oldest first.

    Args:
        output: Whose queues were answered.
        period: How long one is.
        positive_class: The class to find; default the one that decisions are about. An image that
            is left to a person (review) counts as found.

    Raises:
        SourceError: there are no answers.
        ConfigError: no class to find is known, or several are.
    """
    asked, answers = read_queues(output), read_answers(output)
    if not answers:
        raise SourceError(
            f"{output} has no answers: `imgcls queue` asks, `imgcls labels` takes them back"
        )
    wanted = positive_class or _only_class(asked.values())
    by_period: defaultdict[str, list[Row]] = defaultdict(list)
    for row in asked.values():
        if row["stratum"]:
            by_period[_name(row["date"], period)].append(row)
    return {
        "period": period,
        "positive_class": wanted,
        "periods": [
            {"name": name, "num_asked": len(rows), **estimate(_strata(rows, answers, wanted))}
            for name, rows in sorted(by_period.items())
        ],
    }


def weeks_of(output: str) -> list[Part]:
    """Return the section of a page about the labels that came back; none where there are none."""
    try:
        result = measure_over_time(output, "week")
    except SourceError:
        return []
    except ConfigError as error:  # a model without thresholds: the page cannot know what to find
        return [Part("answers", "By the labels that came back", "sentences.html", [str(error)])]
    lines = describe(result)[-_WEEKS_SHOWN:]
    head = (
        f"To find: {result['positive_class']}. On all images of a week, from those that people "
        "looked at; in brackets, where the number lies with 95 % certainty."
    )
    return [Part("answers", "By the labels that came back", "sentences.html", [head, *lines])]


def describe(result: dict[str, Any]) -> list[str]:
    """Return a line for each period."""
    lines = []
    for row in result["periods"]:
        shown = [
            f"{name} {row[name]:.3f} ({row[f'{name}_interval'][0]:.3f} to "
            f"{row[f'{name}_interval'][1]:.3f})"
            if row[name] is not None and row[f"{name}_interval"]
            else f"{name} unknown"
            for name in ("sensitivity", "specificity")
        ]
        lines.append(
            f"{row['name']}: {', '.join(shown)}, from {row['num_answered']} answers on "
            f"{row['num_images']} images"
        )
    return lines


def _only_class(rows: Iterable[Row]) -> str:
    classes = {positive_class_of(row["threshold_id"]) for row in rows if row["threshold_id"]}
    if len(classes) == 1:
        return classes.pop()
    raise ConfigError(
        "--positive-class: say which class is to be found; the model "
        + (f"decides about {', '.join(sorted(classes))}" if classes else "has no thresholds")
    )


def _name(day: str, period: Period) -> str:
    """Return 2026-11-25, 2026-W48 (ISO 8601) or 2026-11."""
    if period == "month":
        return day[:7]
    if period == "day":
        return day
    try:
        year, week, _ = date.fromisoformat(day).isocalendar()
    except ValueError:
        return day  # a night that was named otherwise is a period by itself
    return f"{year}-W{week:02d}"


def _strata(rows: Iterable[Row], answers: dict[str, Row], wanted: str) -> list[Stratum]:
    alike: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        alike[row["run_id"], row["stratum"]].append(row)
    strata = []
    for of in alike.values():
        answered = [answers[row["id"]] for row in of if row["id"] in answers]
        strata.append(
            Stratum(
                is_chosen=of[0]["why"] != RANDOM,
                is_called_positive=_is_called(of[0], wanted),
                num_images=of[0]["stratum_images"],
                num_answered=len(answered),
                num_positive=sum(row["label"] == wanted for row in answered),
                num_groups=len({row["group"] or row["id"] for row in answered}),
            )
        )
    return strata


def _is_called(row: Row, wanted: str) -> bool:
    if row["decision"] and positive_class_of(row["threshold_id"]) == wanted:
        return bool(row["decision"] != _NEGATIVE)
    return bool(row["class_name"] == wanted)
