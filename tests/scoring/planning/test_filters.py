"""Filters narrow a listing alike for plan, score, nightly and train, and lose nothing after it."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig
from imgcls.config.source_options import ListingOptions, SourceOptions
from imgcls.data.dataset import read_dataset
from imgcls.errors import ConfigError, SourceError
from imgcls.nightly import nightly
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.planning.listing import list_source
from imgcls.storage.objects import ObjectInfo, put
from tests.kit.modes import let_nobody_in
from tests.scoring.nights import leave_unfinished, make_night, rows_by_run


def _names(source: Path | str, **flags: object) -> list[str]:
    options = ListingOptions(**flags)  # type: ignore[arg-type]  (mixed flags)
    found = list_source(str(source), options)
    return sorted(e.uri.rpartition("/")[2] for e in found if isinstance(e, ObjectInfo))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("camera=3/a.jpg", "camera=3/b.JPG", "camera=4/c.jpg", "small/d.jpg", "e.txt"):
        put(str(tmp_path / "in" / name), b"x")
    os.utime(tmp_path / "in" / "camera=4" / "c.jpg", (10**6, 10**6))
    return tmp_path / "in"


def test_a_prefix_a_glob_and_a_manifest_are_narrowed_alike(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    everything = {"include": ("*.jpg",), "ignore_case": True, "exclude": ("small/**",)}
    assert _names(source, **everything) == ["a.jpg", "b.JPG", "c.jpg"]
    assert "1 objects are left out by --exclude, such as" in caplog.text
    assert "1 objects are left out by --include, such as" in caplog.text
    assert _names(source, **everything, since="7d") == ["a.jpg", "b.JPG"]
    assert _names(source, where=("camera=3",)) == ["a.jpg", "b.JPG"]
    assert _names(f"{source}/**/*.[jJ]*", where=("camera=3",)) == ["a.jpg", "b.JPG"]
    assert _names(f"{source}/camera=*/?.{{jpg,JPG}}") == ["a.jpg", "b.JPG", "c.jpg"]
    assert "2 objects are left out by the pattern" in caplog.text
    lines = "\n".join(str(path.relative_to(source)) for path in source.rglob("*.*"))
    put(f"{source}/list.csv", f"uri\n{lines}\n".encode())
    assert _names(f"{source}/list.csv", **everything, since="7d") == ["a.jpg", "b.JPG"]


def test_several_sources_are_one_listing_and_nothing_is_doubled(source: Path) -> None:
    also = (f"{source}/camera=4", f"{source}/camera=3/*.jpg")
    assert _names(f"{source}/small", also=also) == ["a.jpg", "c.jpg", "d.jpg"]
    assert len(_names(source, also=also)) == 5
    assert SourceOptions(source="in", also=("x/../y",)).sources[1].endswith("/y")


def test_a_closed_folder_that_is_excluded_is_not_missed(tmp_path: Path) -> None:
    data = let_nobody_in(tmp_path) / "data"
    for name in ["lot-1/a.png", "private/a.png"]:
        put(str(data / name), b"x")
    (data / "private").chmod(0)
    try:
        found = list(list_source(str(data), ListingOptions(exclude=("private/**",))))
    finally:
        (data / "private").chmod(0o700)
    assert [entry.uri for entry in found] == [f"{data}/lot-1/a.png"]


def test_a_narrow_night_leaves_the_rest_to_the_next_one(tmp_path: Path) -> None:
    night = make_night(tmp_path, num_images=9)
    names = sorted(
        p.relative_to(night.source).as_posix() for p in Path(night.source).rglob("*.png")
    )
    narrow = replace(night, include=(names[0], names[1]))
    assert show_plan_counts(narrow) == {"new": 2, "changed": 0, "failed_before": 0, "unchanged": 0}
    assert nightly(narrow)["rows"] == 2
    # Nothing of it is new by itself, and nothing outside of it was seen.
    assert nightly(narrow)["rows"] == 0
    second = nightly(night)
    assert second["difference"] == {"new": 7, "changed": 0, "failed_before": 0, "unchanged": 2}
    rows = [name for names in rows_by_run(night).values() for name in names]
    assert sorted(rows) == names


def show_plan_counts(night: NightlyConfig) -> dict[str, int]:
    from imgcls.config.scoring import PlanConfig

    plan = show_plan(PlanConfig(**vars(night)))
    return {name: plan[name] for name in ("new", "changed", "failed_before", "unchanged")}


def test_an_unfinished_night_of_another_filter_is_not_continued(tmp_path: Path) -> None:
    night = make_night(tmp_path, num_images=9)
    leave_unfinished(night)
    narrow = replace(night, include=("*0.png",))
    assert (nightly(narrow)["rows"], list(rows_by_run(night))) == (1, ["nightly-2026-11-22-2"])
    assert nightly(night)["difference"]["unchanged"] == 1


def test_a_run_is_resumed_with_the_filter_it_was_planned_with(tmp_path: Path) -> None:
    night = make_night(tmp_path, num_images=5)
    config = _score_config(night)
    assert score(replace(config, run_id="r", include=("*1.png",)))["rows"] == 1
    with pytest.raises(ConfigError, match="planned with other flags of what is meant"):
        score(replace(config, run_id="r"))
    assert Run(config.output, "r").plan


def _score_config(night: NightlyConfig):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from imgcls.config.scoring import ScoreConfig

    names = {name for name in vars(night) if name in ScoreConfig.__dataclass_fields__}
    return ScoreConfig(**{name: getattr(night, name) for name in names})


def test_training_takes_the_same_flags(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(12):
            put(str(tmp_path / "one" / name / f"camera={number % 2}" / f"{number}.png"), b"x")
            put(str(tmp_path / "two" / name / f"{number}.png"), b"x")
        put(str(tmp_path / "one" / name / "small" / "0.png"), b"x")

    def read(**flags: object) -> int:
        options = ListingOptions(**flags)  # type: ignore[arg-type]  (mixed flags)
        shares = {"val_fraction": 0.2, "test_fraction": 0.2}
        return len(read_dataset(str(tmp_path / "one"), **shares, seed=0, options=options).samples)

    assert read() == 26
    assert read(exclude=("**/small/**",)) == 24
    assert read(where=("camera=1",)) == 12
    assert read(exclude=("**/small/**",), also=(str(tmp_path / "two"),)) == 48
    with pytest.raises(SourceError, match=r"no images under .*: 26 objects are left out by --incl"):
        read(include=("*.tif",))
