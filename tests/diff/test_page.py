"""The page of a comparison in a real browser: both heatmaps beside the picture, and no request."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imgcls.config.models import DiffConfig
from imgcls.diff.driver import diff
from imgcls.image.facts.overlay import Patch, draw_overlay
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import FACTS_SCHEMA, read_facts
from imgcls.runs.run import Run
from imgcls.storage.objects import put
from tests.report.browser import opened
from tests.report.nights import parquet, publish_night, row_of


def explain(output: str, run_id: str, peak: tuple[int, int]) -> None:
    """Lay a heatmap over every picture of a run, its peak in one of 4 x 16 cells."""
    heat_hw = np.zeros((4, 16), np.float32)
    heat_hw[peak] = 1.0
    patch = Patch(heat_hw, (160, 40), (0, 0, 160, 40), (0.0, 0.0, 1600.0, 400.0))
    overlay = draw_overlay([patch], (1600, 400))
    assert overlay is not None
    assert overlay.peak_px == (peak[1] * 100 + 50, peak[0] * 100 + 50)
    run = Run(output, run_id)
    [commit] = read_commits(run)
    facts = read_facts(run, commit).to_pylist()
    for row in facts:
        if row["thumbnail"]:
            row |= {"heatmap": overlay.png, "heatmap_class": "dent"}
    table = pa.Table.from_pylist(facts, schema=FACTS_SCHEMA)
    put(run.file(commit.facts), parquet(table), is_private=True)


@pytest.mark.parametrize("width", [1280, 390])
def test_both_heatmaps_are_shown_and_nothing_is_asked_for(tmp_path: Path, width: int) -> None:
    output = str(tmp_path)
    before = [row_of(number) for number in range(60)]
    after = [
        row | {"class_name": "dent"} if row["status"] == "ok" and number % 9 == 0 else row
        for number, row in enumerate(before)
    ]
    publish_night(output, before, run_id="old", day=1)
    publish_night(output, after, run_id="new", day=2)
    explain(output, "old", (1, 3))
    explain(output, "new", (2, 12))
    found = diff(DiffConfig("old", "new", output))
    with opened(found["page"], width=width) as shown:
        assert shown.complaints == []
        others = [url for url in shown.requests[1:] if not url.startswith("data:image/")]
        assert others == []
        cards = shown.page.locator("#flips-list li")
        assert cards.count() == found["num_flips"] > 0
        captions = cards.first.locator("figcaption").all_inner_texts()
        assert captions == ["first: speaks for dent", "second: speaks for dent"]
        sizes = cards.first.locator("img").evaluate_all(
            "all => all.map(e => [e.naturalWidth, e.getBoundingClientRect().width])"
        )
        # The picture three times, two of them below a heatmap.
        assert len(sizes) == 5
        assert all(natural > 100 and wide > 50 for natural, wide in sizes)
        overlay = cards.first.locator("figure img").nth(1)
        assert overlay.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"
        overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not shown.page.evaluate(overflow), "it scrolls sideways"
        reached, expected = shown.walk()
        assert reached == expected
    with opened(found["page"], width=width, bypass_csp=True) as shown:
        assert shown.serious_findings() == []
