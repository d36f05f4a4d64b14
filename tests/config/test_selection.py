from datetime import UTC, datetime, timedelta

import pytest

from imgcls.config.selection import Selection
from imgcls.config.source_options import ListingOptions
from imgcls.errors import ConfigError

_NOW = datetime(2026, 11, 22, 6, tzinfo=UTC)


def _left_out_by(path: str, age: timedelta | None = None, **flags: object) -> str:
    selection = Selection.of(ListingOptions(**flags), _NOW)  # type: ignore[arg-type]  (mixed flags)
    return selection.left_out_by(path, None if age is None else _NOW - age)


@pytest.mark.parametrize(
    ("path", "flags", "flag"),
    [
        ("a/x.jpg", {"include": ("*.jpg",)}, ""),
        ("a/x.JPG", {"include": ("*.jpg",)}, "--include"),
        ("a/x.JPG", {"include": ("*.jpg",), "ignore_case": True}, ""),
        ("a/x.png", {"include": ("*.jpg", "*.png")}, ""),
        ("a/x.jpeg", {"include": ("*.{jpg,jpeg}",)}, ""),
        ("line1/a/x.png", {"include": ("line1/**",)}, ""),
        ("b/line1/x.png", {"include": ("line1/**",)}, "--include"),
        ("a/thumbs/x.png", {"exclude": ("**/thumbs/**",)}, "--exclude"),
        ("x.png", {"include": ("*.png",), "exclude": ("x.*",)}, "--exclude"),
        ("cam[1]/x.png", {"include": ("cam[[]1]/*",)}, ""),
        ("day=1/camera=3/x.png", {"where": ("camera=3",)}, ""),
        ("day=1/camera=4/x.png", {"where": ("camera=3,4", "day=1")}, ""),
        ("day=2/camera=4/x.png", {"where": ("camera=3,4", "day=1")}, "--where"),
        ("camera=30/x.png", {"where": ("camera=3",)}, "--where"),
        ("camera=3", {"where": ("camera=3",)}, "--where"),
    ],
)
def test_flags_say_which_images_are_meant(path: str, flags: dict[str, object], flag: str) -> None:
    assert _left_out_by(path, **flags) == flag


@pytest.mark.parametrize(
    ("since", "hours", "is_meant"),
    [
        ("24h", 23, True), ("24h", 25, False), ("2d", 47, True),
        ("2026-11-22", 5, True), ("2026-11-22", 7, False),
        ("2026-11-22T06:00+02:00", 1, True), ("2026-11-22T06:00+02:00", 3, False),
    ],
)  # fmt: skip
def test_since_is_an_age_a_day_or_a_moment(since: str, hours: int, is_meant: bool) -> None:
    found = _left_out_by("x", timedelta(hours=hours), since=since)
    assert found == ("" if is_meant else "--since")
    # What has no time is meant: it is better read once too often.
    assert _left_out_by("x", None, since=since) == ""


@pytest.mark.parametrize(
    "flags",
    [
        {"since": "yesterday"},
        {"where": ("camera",)},
        {"include": ("*.{jpg",)},
        {"since": "2026-13-01"},
    ],
)
def test_flags_that_mean_nothing_are_refused(flags: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"write|not closed"):
        Selection.of(ListingOptions(**flags))  # type: ignore[arg-type]  (mixed flags)
