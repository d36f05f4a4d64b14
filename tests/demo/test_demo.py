import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from imgcls.config.operations import DemoConfig
from imgcls.demo.demo import demo
from imgcls.errors import ConfigError


def check(result: dict[str, object]) -> None:
    assert float(str(result["accuracy"])) >= 0.97
    assert (result["rows"], result["rows_ok"]) == (600, 597)
    assert result["rows_not_ok"] == {
        "scan-empty.png": "unsupported",
        "scan-page.png": "unsupported",
        "scan-truncated.png": "corrupt",
    }
    assert re.match(r"scanner B: \d+ grey levels brighter, compared with", str(result["held_for"]))
    assert result["rows_released"] == 180
    held_page = Path(str(result["held_page"])).read_text()
    assert f"Was held, and released since: {result['held_for']}" in held_page
    assert held_page.count('alt="second-') == 12
    parts = list(Path(str(result["output"])).glob("*.parquet"))
    assert "600 images: 597 scored, " in Path(str(result["page"])).read_text()
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 600


def test_demo_trains_scores_and_accounts_for_every_file(tmp_path: Path) -> None:
    # The folder of an earlier demo is made again.
    (tmp_path / "demo").mkdir()
    for name in (".imgcls-demo", "stale"):
        (tmp_path / "demo" / name).touch()
    check(demo(DemoConfig(str(tmp_path / "demo"))))
    assert not (tmp_path / "demo" / "stale").exists()


@pytest.mark.slow
@pytest.mark.s3
def test_demo_on_its_own_s3_server_keeps_the_parquet(tmp_path: Path) -> None:
    result = demo(DemoConfig(str(tmp_path / "demo"), s3=True))
    assert str(result["run_output"]).startswith("s3://demo/predictions/date=")
    check(result)


def test_demo_never_empties_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="choose another folder"):
        demo(DemoConfig(str(tmp_path)))
    assert (tmp_path / "thesis.tex").exists()
