"""What alarms and what does not, on samples made for it: no image is read."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from imgcls.drift.familiar import UNFAMILIAR_SHARE, Familiar
from imgcls.drift.gate import judge
from imgcls.drift.observed import SCHEMA, Observed, Observing, parse_observed, pool
from imgcls.drift.statistics import compare_categories, compare_numbers, effective_size, holm
from imgcls.runs.facts import FACTS_SCHEMA

MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)


def sample(
    count: int,
    seed: int,
    *,
    darker: float = 0.0,
    dark_from: int = 0,
    groups: int = 0,
    spread: float = 20.0,
    cameras: int = 0,
    unlike: int = 0,
    scratched: float = 0.1,
) -> Observed:
    """Images that differ by chance; those from `dark_from` on are darker, scratches are flat."""
    rng = np.random.default_rng(seed)
    unit = rng.integers(0, groups, count) if groups else np.arange(count)
    of_group = rng.normal(0, 15, groups)[unit] if groups else np.zeros(count)
    dark = np.where(np.arange(count) >= dark_from, darker, 0)
    sketch = np.maximum(rng.normal(size=(count, 12)), 0)
    sketch[:unlike] += 6
    class_name = rng.choice(["good", "scratch"], count, p=[1 - scratched, scratched])
    mixed = np.random.default_rng(0).normal(size=(12, 32))
    columns = {
        "uri": [f"{seed}/{n}" for n in range(count)],
        "taken_at": [MIDNIGHT + timedelta(minutes=n) for n in range(count)],
        "unit": [f"{seed}-{n}" for n in unit],
        "status": ["ok"] * count,
        "format": ["png"] * count,
        "width_px": [640] * count,
        "height_px": [480] * count,
        "brightness": rng.normal(120, spread, count) + of_group - dark,
        "contrast": rng.gamma(9, 4, count) - 15 * (class_name == "scratch"),
        "sharpness": rng.gamma(3, 100, count),
        "levels": rng.integers(120, 250, count),
        "bits": [8] * count,
        "class_name": class_name,
        "confidence": rng.beta(9, 2, count),
        "is_repeated": [False] * count,
        "has_picture": [True] * count,
        "sketch": list((sketch @ mixed).astype(np.float16)),
    }
    nothing = [None] * count
    arrays = [pa.array(columns.get(field.name, nothing), field.type) for field in SCHEMA]
    table = pa.table(arrays, schema=SCHEMA)
    if cameras:
        names = pa.array([str(n % cameras) for n in range(count)])
        table = table.append_column("carried:camera", names)
    return Observed(table, count)


def test_a_lamp_that_went_dark_is_told_with_its_time() -> None:
    judged = judge("n", sample(400, 1, darker=41, dark_from=130), sample(1500, 0))
    assert judged.state == "changed"
    first = judged.findings[0]
    assert first.axis == "brightness"
    hour, minute = map(int, first.since.split(":"))
    assert abs(hour * 60 + minute - 130) < 15
    assert f"grey levels darker since {first.since}" in judged.sentence


@pytest.mark.parametrize(
    ("seconds_apart", "since"), [(1.0, r"^$"), (60.0, r"^0\d:\d\d$"), (600.0, r"^2026-11-2\d ")]
)
def test_the_time_is_told_where_it_says_something(seconds_apart: float, since: str) -> None:
    """Not of files that were copied within minutes; with its day where a night took days."""
    night = sample(400, 1, darker=41, dark_from=130)
    times = [MIDNIGHT + timedelta(seconds=seconds_apart * n) for n in range(400)]
    at = night.table.schema.get_field_index("taken_at")
    field = night.table.schema.field(at)
    table = night.table.set_column(at, field, pa.array(times, field.type))
    [first, *_] = judge("n", Observed(table, 400), sample(1500, 0)).findings
    assert re.match(since, first.since)
    assert (f"since {first.since} UTC" in first.sentence) == bool(first.since)


def test_large_nights_do_not_alarm_for_a_difference_too_small_to_matter() -> None:
    """3 grey levels of 20: sure to be there, and nothing that anybody need look at."""
    night, reference = sample(4000, 1, darker=3), sample(4000, 0)
    found = compare_numbers(
        night.numbers("brightness"), night.units(),
        reference.numbers("brightness"), reference.units(),
    )  # fmt: skip
    assert found is not None
    assert found.p < 1e-6
    assert judge("n", night, reference).state == "quiet"


def test_twelve_patients_are_not_three_hundred_images() -> None:
    """Their means spread by 15 grey levels: images taken one by one would alarm."""
    alarms = {True: 0, False: 0}
    for seed in range(30):
        night, reference = (
            sample(300, seed, groups=12, spread=5),
            sample(1500, 99, spread=5, groups=300),
        )
        for by_group in (True, False):
            units = night.units() if by_group else np.arange(300)
            found = compare_numbers(
                night.numbers("brightness"), units,
                reference.numbers("brightness"), reference.units(),
            )  # fmt: skip
            assert found is not None
            alarms[by_group] += found.p < 0.001
    assert alarms[True] == 0
    assert alarms[False] >= 3


@pytest.mark.parametrize(("count", "groups"), [(19, 0), (200, 4)])
def test_a_small_night_accumulates_and_is_judged_with_the_next(count: int, groups: int) -> None:
    small = sample(count, 1, darker=60, groups=groups)
    reference = sample(1500, 0)
    alone = judge("first", small, reference)
    assert alone.state == "accumulates"
    next_night = judge("second", sample(15, 2, darker=60), reference, small=[("first", small)])
    assert (next_night.state, next_night.with_nights) == ("changed", ("first",))


def test_a_large_change_alarms_in_its_own_night_from_20_images_on() -> None:
    judged = judge("n", sample(20, 3, darker=90), sample(1500, 0))
    assert judged.state == "changed"
    assert judged.findings[0].axis == "brightness"


def test_without_anything_to_compare_with_it_says_so() -> None:
    judged = judge("n", sample(100, 1), None)
    assert judged.state == "alone"
    assert "nothing to compare" in judged.sentence


def test_one_camera_is_named_and_all_of_them_are_not_named_one_by_one() -> None:
    reference = sample(1600, 0, cameras=4)
    dark = sample(400, 1, cameras=4)
    values = dark.numbers("brightness").copy()
    values[3::4] -= 60
    at = SCHEMA.get_field_index("brightness")
    table = dark.table.set_column(at, SCHEMA.field(at), pa.array(values, pa.float32()))
    judged = judge("n", Observed(table, 400), reference)
    assert [(f.column, f.group) for f in judged.findings] == [("camera", "3")]
    everywhere = judge("n", sample(400, 1, darker=60, cameras=4), reference)
    assert [(f.axis, f.column) for f in everywhere.findings] == [("brightness", "")]


def test_a_column_of_dicom_is_named_in_words() -> None:
    def of_models(one: Observed) -> Observed:
        names = [*one.table.column_names[:-1], "carried:model_name"]
        return Observed(one.table.rename_columns(names), one.num_images)

    dark, other = sample(400, 1, darker=60, cameras=2), sample(400, 2, cameras=2)
    is_of_one = [one.texts("carried:camera") == "1" for one in (dark, other)]
    night = pool([dark.where(is_of_one[0]), other.where(~is_of_one[1])])
    assert night is not None
    judged = judge("n", of_models(night), of_models(sample(1600, 0, cameras=2)))
    assert judged.sentence.startswith("model name 1: "), judged.sentence


def test_more_scratches_are_told_as_such_and_a_model_that_is_fooled_is_not_believed() -> None:
    reference = sample(1600, 0)
    judged = judge("n", sample(400, 1, scratched=0.6), reference)
    assert [finding.axis for finding in judged.findings] == ["class", "contrast"]
    assert judged.sentence.startswith("the whole night: 6")
    assert "have class scratch" in judged.sentence
    # A dark lamp, of which the model makes scratches.
    fooled = judge("n", sample(400, 1, scratched=0.4, darker=50), reference)
    assert [finding.axis for finding in fooled.findings][:2] == ["brightness", "class"]


def test_what_is_unfamiliar_is_a_stated_share_and_far_away() -> None:
    familiar = Familiar.of(sample(1600, 0).sketches())
    assert familiar is not None
    assert familiar.threshold is not None
    shares = [
        float(np.mean(familiar.distances(sample(500, seed).sketches()) > familiar.threshold))
        for seed in range(1, 11)
    ]
    assert abs(float(np.mean(shares)) - UNFAMILIAR_SHARE) < 0.01
    far = familiar.distances(sample(40, 3, unlike=20).sketches()) > familiar.threshold
    assert far[:20].mean() > 0.8
    assert far[20:].mean() < 0.1
    judged = judge("n", sample(300, 5, unlike=30), sample(1600, 0))
    assert "unfamiliar" in {finding.axis for finding in judged.findings}
    assert {finding.differs_in for finding in judged.findings} == {""}, "in no look"


def test_of_unfamiliar_pictures_it_is_told_in_what_they_differ() -> None:
    """A twentieth of a night moves no distribution far, but is unlike all others."""
    few, usual = sample(20, 5, unlike=20, darker=70), sample(380, 6)
    night = pool([few, usual])
    assert night is not None
    [first, *_] = judge("n", night, sample(1600, 0)).findings
    assert (first.axis, first.differs_in) == ("unfamiliar", "brightness")
    assert re.search(
        r"unlike anything that the model knows \(\d\d grey levels darker\), ", first.sentence
    )


def test_rare_categories_are_tested_exactly() -> None:
    one, two = np.arange(40), np.arange(4000)
    now = np.array(["a"] * 38 + ["b"] * 2, object)
    before = np.array(["a"] * 4000, object)
    found = compare_categories(now, one, before, two)
    assert found is not None
    # Two of two fall to the night, of 40 in 4,040: (40 / 4,040)^2, both sides and both tests.
    assert found.p == pytest.approx(4 * (40 / 4040) ** 2, rel=0.05)
    assert (found.category, found.now, found.before) == ("b", 0.05, 0.0)


def test_holm_holds_the_rate_over_all_tests() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(any(holm(rng.random(50).tolist(), 0.05)) for _ in range(1000))
    assert 25 <= alarms <= 75
    assert holm([0.001, 0.2, 0.012], 0.05) == [True, False, True]
    assert effective_size(np.arange(10.0), np.zeros(10, np.int64)) == 1


def test_a_sample_is_the_same_whatever_the_shards_and_repeats_are_seen() -> None:
    def observe(sizes: list[int]) -> Observed:
        observing, start = Observing(), 0
        for size in sizes:
            numbers = range(start, start + size)
            facts = [
                {"uri": f"s3://b/{n}", "brightness": float(n if n % 10 else 5), "contrast": 1.0,
                 "sharpness": 1.0, "levels": 3, "width_px": 4, "height_px": 4}
                for n in numbers
            ]  # fmt: skip
            rows = pa.table({"status": ["ok"] * size})
            observing.add(rows, pa.Table.from_pylist(facts, schema=FACTS_SCHEMA))
            start += size
        return observing.done()

    whole, parts = observe([30_000]), observe([7_000] * 4 + [2_000])
    assert whole.num_images == parts.num_images == 30_000
    assert len(whole.table) == 4096
    assert whole.table.sort_by("uri").equals(parts.table.sort_by("uri"))
    repeated = whole.table["is_repeated"].to_numpy(zero_copy_only=False)
    assert 0.08 < repeated.mean() < 0.12
    again = parse_observed(whole.to_bytes())
    assert again.table.equals(whole.table)
    with pytest.raises(ValueError, match="not what imgcls observed"):
        parse_observed(b"a page")
