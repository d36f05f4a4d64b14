"""`imgcls calibrate`: a model that moves to another scanner gets thresholds of that site."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgcls import logs
from imgcls.config.models import CalibrateConfig, EvaluateConfig, ImportConfig
from imgcls.config.scoring import NightlyConfig
from imgcls.data.dataset import read_dataset
from imgcls.data.trained_on import TRAINED_ON, write_trained_on
from imgcls.errors import ConfigError
from imgcls.evaluation.calibrate import calibrate
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.png import encode_png
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.importing.driver import import_model
from imgcls.model.registry import promote, register
from imgcls.nightly import nightly
from tests.model.importing.makers import onnx_file

NAMES = ("dark", "light")


def _write_site(folder: Path, num_images: int, seed: int) -> str:
    """Images of a scanner whose light ones are hardly lighter than its dark ones."""
    rng = np.random.default_rng(seed)
    for number in range(num_images):
        is_light = number % 2
        level = rng.normal((70, 110)[is_light], 12)
        noise = rng.integers(0, 40, (9, 11, 3))
        path = folder / NAMES[is_light] / f"{seed}-{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.clip(level + noise, 0, 255).astype(np.uint8)))
    return str(folder)


def _calibrate(model: str, data: str, **flags: Any) -> dict[str, Any]:
    result = calibrate(CalibrateConfig(model, data, device="cpu", num_decoders=1, **flags))
    json.dumps(result, allow_nan=False)
    return result


def test_the_recall_target_is_reached_on_fresh_images_of_the_site(
    registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = _write_site(tmp_path / "site", 240, seed=0)
    logs.configure(result_is_shown=True)
    result = _calibrate(f"{registry}/lamp@v1", site, positive_class="light", target_recall=0.9)
    log = capsys.readouterr().err
    assert not [line for line in result["verdict"]["lines"] if line in log], "shown once"
    assert (result["model"], result["version"]) == (f"{registry}/lamp@v2", 2)
    made, before = read_bundle(result["uri"]), read_bundle(f"{registry}/lamp/v1")
    assert made.network_digest == before.network_digest
    assert all(torch.equal(made.state_dict[name], of) for name, of in before.state_dict.items())
    assert made.training["calibrated_on"]["from_digest"] == before.digest
    [point] = result["operating_points"]
    assert point["recall"] >= 0.9
    fresh = _write_site(tmp_path / "fresh", 240, seed=1)
    again = evaluate(
        EvaluateConfig(model=result["model"], data=fresh, split="all", device="cpu", num_decoders=1)
    )
    found = again["calibrated"]["operating_points"]["light:recall>=0.9"]
    # Both are samples: what was promised with its interval, and what fresh images show with theirs.
    (low, high), (promised_low, promised_high) = found["recall_interval"], point["recall_interval"]
    assert low <= promised_high
    assert high >= promised_low
    assert found["specificity"] > 0.5
    assert result["verdict"]["answer"] == "better"
    assert any("chosen on these very images" in line for line in result["verdict"]["lines"])
    card = Path(result["uri"], "MODEL_CARD.md").read_text()
    assert "light:recall>=0.9 rests on 120 images of the class and 120 others." in card


def test_several_classes_get_thresholds_and_a_test_split_measures_them(
    registry: str, tmp_path: Path
) -> None:
    _write_site(tmp_path / "site" / "val", 80, seed=0)
    site = _write_site(tmp_path / "site" / "test", 60, seed=1)
    result = _calibrate(
        f"{registry}/lamp@v1",
        str(Path(site).parent),
        positive_class="light|dark",
        target_recall=0.8,
        target_specificity=0.7,
        name="lamp-south",
    )
    assert result["model"] == f"{registry}/lamp-south@v1"
    assert [point["threshold_id"] for point in result["operating_points"]] == [
        "light:recall>=0.8",
        "light:specificity>=0.7",
        "dark:recall>=0.8",
        "dark:specificity>=0.7",
    ]
    assert (result["num_fitted"], result["num_measured"]) == (80, 60)
    assert result["verdict"]["split"] == "site test"
    assert not any("very images" in line for line in result["verdict"]["lines"])


def test_what_the_site_cannot_show_is_refused_and_nothing_is_registered(
    registry: str, bundle: Bundle, tmp_path: Path
) -> None:
    site = _write_site(tmp_path / "site", 40, seed=0)
    with pytest.raises(ConfigError, match="needs 60 images of it, and there are 20"):
        _calibrate(f"{registry}/lamp@v1", site, positive_class="light", target_recall=0.95)
    with pytest.raises(ConfigError, match="unknown class 'ligth'"):
        _calibrate(f"{registry}/lamp@v1", site, positive_class="ligth", target_recall=0.5)
    with pytest.raises(ConfigError, match="--registry and --name"):
        _calibrate(f"{registry}/lamp/v1", site, positive_class="light", target_recall=0.5)
    assert not (Path(registry) / "lamp" / "v2").exists()


def test_images_of_the_training_choose_no_threshold(bundle: Bundle, tmp_path: Path) -> None:
    site = _write_site(tmp_path / "site", 120, seed=0)
    shares = {"val_fraction": 0.2, "test_fraction": 0.4, "seed": 7}
    known = read_dataset(site, **shares)  # type: ignore[arg-type]
    trained = replace(bundle, attachments={TRAINED_ON: write_trained_on(known.samples)})
    register(str(tmp_path / "reg"), "lamp", trained)
    result = _calibrate(f"{tmp_path}/reg/lamp@v1", site)
    assert result["num_fitted"] == len(known.of_split("val"))
    assert result["num_measured"] == len(known.of_split("test"))
    assert result["operating_points"] == []


def test_the_night_after_it_scores_nothing_again(registry: str, tmp_path: Path) -> None:
    source = _write_site(tmp_path / "incoming", 20, seed=3)
    promote(f"{registry}/lamp@v1", "production")
    night = NightlyConfig(
        source, f"{registry}/lamp@production", str(tmp_path / "out"), executor="local", device="cpu"
    )
    assert nightly(night)["rows"] == 20
    site = _write_site(tmp_path / "site", 60, seed=0)
    result = _calibrate(f"{registry}/lamp@v1", site, positive_class="light", target_recall=0.8)
    promote(result["model"], "production")
    assert nightly(night).get("rows", 0) == 0


class _Brightness(torch.nn.Module):
    """Tells dark from light by the mean pixel, as if at another scanner's level."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-4.0] * 3, [4.0] * 3]))
            self.head.bias.copy_(torch.tensor([7.0, -7.0]))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.head(x_BCHW.mean(dim=(2, 3)))
        return logits_BK


def test_imported_model_gets_thresholds_that_fresh_images_confirm_and_keeps_its_nights(
    tmp_path: Path,
) -> None:
    registry, names = str(tmp_path / "reg"), tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    path = onnx_file(tmp_path / "net.onnx", _Brightness(), (2, 3, 16, 16))
    flags = {"fit": "stretch", "input_range": "0:1", "mean": "0", "std": "1"}
    import_model(ImportConfig(str(path), registry, "lamp", classes=str(names), **flags))
    source = _write_site(tmp_path / "incoming", 20, seed=3)
    promote(f"{registry}/lamp@v1", "production")
    night = NightlyConfig(
        source, f"{registry}/lamp@production", str(tmp_path / "out"), executor="local"
    )
    assert nightly(night)["rows"] == 20
    site = _write_site(tmp_path / "site", 240, seed=0)
    result = _calibrate(f"{registry}/lamp@v1", site, positive_class="light|dark", target_recall=0.9)
    fresh = _write_site(tmp_path / "fresh", 1200, seed=1)
    again = evaluate(
        EvaluateConfig(model=result["model"], data=fresh, split="all", device="cpu", num_decoders=1)
    )
    assert again["accuracy"] < 0.7, "without thresholds of this site it calls nearly all dark"
    assert len(result["operating_points"]) == 2
    for point in result["operating_points"]:
        found = again["calibrated"]["operating_points"][point["threshold_id"]]
        promised_low, promised_high = point["recall_interval"]
        assert promised_low <= found["recall"] <= promised_high
        assert promised_low <= 0.9 <= promised_high
        assert found["specificity"] > 0.9
    promote(result["model"], "production")
    assert nightly(night)["rows"] == 0, "only thresholds are new"
