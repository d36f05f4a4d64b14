"""The page of a night by units: a study, a part, by the image that decided."""

from pathlib import Path

from imgcls.config.scoring import ReportConfig, ScoreConfig
from imgcls.model.registry import register
from imgcls.report.make import report
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from tests.report.browser import opened
from tests.scoring.tiny import image_bytes, make_bundle


def test_units_have_a_page_of_their_own(tmp_path: Path) -> None:
    source, output = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    for unit in range(5):
        for image in range(3):
            data = image_bytes(3 * unit + image)
            is_cut = (unit, image) == (4, 2)
            (source / f"part{unit}_{image}.jpg").write_bytes(data[:200] if is_cut else data)
    register(str(tmp_path / "registry"), "m", make_bundle())
    result = score(
        ScoreConfig(
            str(source), str(tmp_path / "registry" / "m@v1"), output, executor="local",
            num_decoders=1, unit="name:part([0-9]+)", run_id="night",
        )
    )  # fmt: skip
    page = Run(output, "night").page("units.html")
    assert Path(result["page"]).exists()
    assert Path(page).exists(), "made by the night itself"
    with opened(page) as shown:
        assert shown.complaints == []
        sentence = shown.page.inner_text("h1")
        assert sentence.startswith("5 units: 4 with every image scored, 1 incomplete")
        cards = shown.page.locator("#sample-list li").all_inner_texts()
        pictures = shown.page.locator("#sample-list img").count()
        counted = shown.page.locator("#numbers th.number").first.inner_text()
        sample = shown.page.inner_text("#sample .remark")
    assert counted == "units"
    assert "all scored units" in sample
    assert len(cards) == pictures == 5
    whole = next(text for text in cards if text.startswith("3\n"))
    assert "3 of 3 images" in whole
    assert "part3_" in whole
    assert "2 of 3 images" in next(text for text in cards if text.startswith("4\n"))
    both = report(ReportConfig(output, last=3, unit=True))["page"]
    with opened(both) as shown:
        assert shown.complaints == []
        assert shown.page.inner_text("h1") == sentence
