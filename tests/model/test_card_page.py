"""card.html: what MODEL_CARD.md says, with its pictures, in a real browser."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imgcls.image.png import encode_png
from imgcls.model.bundle import read_bundle, write_bundle
from tests.report.browser import opened
from tests.scoring.tiny import make_bundle

HOSTILE = '</td><script>document.title="owned"</script>![x](http://e.example/x.png)'


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    verdict = {"answer": "better", "lines": ["Verdict: better than guessing.", "Found: 9 of 10."]}
    bundle = make_bundle(num_classes=2)
    training = {"config": {"name": HOSTILE, "data": "/x"}, "counts": {"test": {HOSTILE: 3}}}
    picture = encode_png(np.full((40, 60), 128, np.uint8))
    bundle = replace(bundle, verdict=verdict, training=training, attachments={"roc.png": picture})
    write_bundle(bundle, str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def test_the_card_has_the_verdict_first_then_pictures_and_its_configuration_last(
    stored: Path,
) -> None:
    for width in (1280, 390):
        with opened(str(stored / "card.html"), width=width) as shown:
            assert shown.complaints == []
            assert all(url.startswith(("file:", "data:image/png")) for url in shown.requests)
            assert shown.page.inner_text("h1") == "Verdict: better than guessing."
            titles = shown.page.locator("h2").all_inner_texts()
            assert titles[:4] == ["Verdict", "Pictures", "Data", "Limits"]
            assert titles[-1] == "Configuration"
            assert shown.page.locator("figure img").count() == 1
            assert shown.page.evaluate("document.images[0].naturalWidth") > 0
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not shown.page.evaluate(wide)
            assert HOSTILE in shown.page.inner_text("body")
            assert shown.page.locator("script").count() == 1
    with opened(str(stored / "card.html"), bypass_csp=True) as shown:
        assert shown.serious_findings() == []


def test_the_page_is_of_the_bundle_and_made_again_with_it(stored: Path, tmp_path: Path) -> None:
    assert "card.html" in (stored / "SHA256SUMS").read_text()
    bundle = read_bundle(str(stored))
    assert "card.html" not in bundle.attachments
    write_bundle(replace(bundle, verdict=None), str(tmp_path / "again"))
    assert "Not known whether" in (tmp_path / "again" / "card.html").read_text()


def test_markdown_and_page_have_the_same_sections(stored: Path) -> None:
    text = (stored / "MODEL_CARD.md").read_text()
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    with opened(str(stored / "card.html")) as shown:
        assert shown.page.locator("h2").all_inner_texts() == titles
