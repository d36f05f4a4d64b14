"""Measure some things in turn, and lay them out beside their limits.

In: Sides. Out: images/s, and a table of them. Invariant: a ratio is taken between medians of the
same run, whose sides were measured in turn: what else the machine does meets all of them alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from imgcls.progress import Progress


@dataclass(frozen=True)
class Side:
    """One thing to measure: a function that works through `num_images`, and its limits' names.

    `num_cores` says how many cores it can use, None for all: what uses one of two cores could be
    done twice at once, so as a limit it counts twice.
    """

    name: str
    num_images: int
    run: Callable[[], object]
    limits: tuple[str, ...] = ()
    num_cores: int | None = None


def measure(sides: list[Side], repeats: int) -> dict[str, list[float]]:
    """Return images/s of every side, `repeats` times each, measured in turn.

    A round before them is thrown away: it starts processes and fills caches.
    """
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    with Progress("measuring", (repeats + 1) * len(sides), "measurements") as progress:
        for number in range(repeats + 1):
            # Back and forth, so that no side always comes behind the same one.
            for side in _in_turn(sides, number):
                start_s = time.perf_counter()
                side.run()
                seconds = time.perf_counter() - start_s
                if number:
                    rates[side.name].append(side.num_images / seconds)
                progress.advance(1, side.name)
    return rates


def _in_turn(sides: list[Side], number: int) -> Iterator[Side]:
    return iter(sides) if number % 2 else reversed(sides)


def tabulate(
    sides: list[Side], rates: dict[str, list[float]], num_cpus: int
) -> list[dict[str, Any]]:
    """Return a row per side: median images/s, per core, the tightest limit and the ratio to it."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    num_cores = {side.name: side.num_cores or num_cpus for side in sides}
    rows = []
    for side in sides:
        rate = medians[side.name]
        row: dict[str, Any] = {
            "stage": side.name,
            "images_per_s": round(rate, 1),
            "images_per_s_per_core": round(rate / num_cores[side.name], 1),
            "limit": None,
            "limit_images_per_s": None,
            "ratio": None,
            "measured_images_per_s": [round(value, 1) for value in rates[side.name]],
        }
        limits = {
            name: medians[name] * num_cores[side.name] / num_cores[name] for name in side.limits
        }
        if limits:
            tightest = min(limits, key=lambda name: limits[name])
            row["limit"] = tightest
            row["limit_images_per_s"] = round(limits[tightest], 1)
            row["ratio"] = round(rate / limits[tightest], 3)
        rows.append(row)
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as lines of text."""
    line = "{:<34} {:>9} {:>9} {:>9} {:>6}  {}\n"
    text = line.format("stage", "images/s", "per core", "limit", "ratio", "limited by")
    for row in rows:
        text += line.format(
            row["stage"],
            row["images_per_s"],
            row["images_per_s_per_core"],
            row["limit_images_per_s"] or "-",
            "-" if row["ratio"] is None else row["ratio"],
            row["limit"] or "-",
        )
    return text
