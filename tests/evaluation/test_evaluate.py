from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import ScoreConfig
from imgcls.data.dataset import read_dataset
from imgcls.data.trained_on import TRAINED_ON, write_trained_on
from imgcls.errors import AccessDeniedError, ConfigError, SourceError
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.png import encode_png
from imgcls.inference.backends import kinds
from imgcls.inference.backends.network import Network
from imgcls.metrics.calibration import fit_calibration
from imgcls.metrics.measures import one_hot
from imgcls.model.bundle import Bundle, write_bundle
from imgcls.scoring.driver import score
from imgcls.storage import objects
from tests.evaluation.shades import (
    IMAGE_PX,
    NAMES,
    row_of,
    run_evaluate,
    shade,
)
from tests.kit.modes import refuse_reads


def test_a_model_is_measured_by_the_backend_that_scores_here(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing depends on the run's length: with so few images only if told to fold for them."""
    monkeypatch.setattr(kinds, "_MIN_IMAGES_TO_FOLD", 1)
    night = score(ScoreConfig(str(data), model, str(tmp_path / "out"), executor="local"))
    found = run_evaluate(model=model, data=str(data), split="all")
    assert [found["backend"]] == night["engines"] == ["folded fp32 on cpu"]
    assert found["precision"] == "fp32"
    with pytest.raises(ConfigError, match="--precision tf32: cpu has no such arithmetic"):
        run_evaluate(model=model, data=str(data), split="all", precision="tf32")


def test_model_is_measured_on_the_test_split_of_its_training(model: str, data: Path) -> None:
    result = run_evaluate(model=model, data=str(data), split="test", batch_size=4)
    split = read_dataset(str(data), val_fraction=0.2, test_fraction=0.4, seed=7)
    assert result["num_rows"] == result["num_ok"] == len(split.of_split("test"))
    assert result["split_digest"] == split.split_digest
    assert not result["same_split_as_training"]
    assert result["accuracy"] == result["accuracy_all"] == 1.0
    assert result["auroc_macro"] == 1.0
    assert result["intervals"]["accuracy"] == pytest.approx([0.806, 1.0], abs=1e-3)  # of 16
    assert result["intervals"]["num_units"] == result["num_ok"]


def test_all_of_a_new_folder_is_measured_where_nobody_names_a_split(
    bundle: Bundle, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = read_dataset(str(data), val_fraction=0.2, test_fraction=0.4, seed=7)
    trained_on = {TRAINED_ON: write_trained_on(known.samples)}
    write_bundle(replace(bundle, attachments=trained_on), str(tmp_path / "knows"))
    for number in range(40):
        objects.put(f"{tmp_path}/new/{NAMES[number % 2]}/x{number}.png", shade(number % 2 == 1, 9))
    result = run_evaluate(model=str(tmp_path / "knows"), data=str(tmp_path / "new"))
    assert (result["num_rows"], result["split"]) == (40, "all")
    caplog.clear()
    data.rename(tmp_path / "moved")
    result = run_evaluate(model=str(tmp_path / "knows"), data=str(tmp_path / "moved"))
    assert (result["num_rows"], result["split"]) == (len(known.of_split("test")), "test")
    assert "of 40 images" in caplog.text


def test_labels_of_images_that_were_moved_are_found_by_their_ends(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish("r", row_of("s3://b/in/1/a.png", "dark"), row_of("s3://b/in/2/a.png", "light"))
    (tmp_path / "l.csv").write_text("uri,label\nin/1/a.png,dark\nin/2/a.png,light\n")
    labels = str(tmp_path / "l.csv")
    with pytest.raises(ConfigError, match=r"/in/1/a\.png.*'s3://b/in/1/a.png'.*--match-by suffix"):
        run_evaluate(predictions=output, labels=labels)
    result = run_evaluate(predictions=output, labels=labels, match_by="suffix")
    assert (result["num_ok"], result["accuracy"], result["num_labels_without_row"]) == (2, 1.0, 0)


def test_labels_that_contradict_each_other_are_refused(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish("r", row_of("s3://b/a.png", "dark"))
    (tmp_path / "l.csv").write_text("uri,label\ns3://b/a.png,dark\ns3://b/a.png,light\n")
    with pytest.raises(SourceError, match=r"a\.png is listed twice, with label 'dark' and 'light'"):
        run_evaluate(predictions=output, labels=str(tmp_path / "l.csv"))


def test_unreadable_images_count_as_wrong_and_are_named(model: str, data: Path) -> None:
    (data / "dark" / "page.png").write_bytes(b"<html>no image</html>")
    (data / "light" / "cut.png").write_bytes(shade(True, 1)[:60])
    result = run_evaluate(model=model, data=str(data), split="all")
    assert (result["num_rows"], result["num_ok"], result["accuracy"]) == (42, 40, 1.0)
    assert result["accuracy_all"] == pytest.approx(40 / 42)
    assert result["statuses"] == {"corrupt": 1, "ok": 40, "unsupported": 1}
    named = {entry["uri"].rpartition("/")[2]: entry["status"] for entry in result["not_ok"]}
    assert named == {"page.png": "unsupported", "cut.png": "corrupt"}


def test_one_image_that_may_not_be_read_counts_by_name_and_all_of_them_end_it(
    model: str, data: Path
) -> None:
    refuse_reads(data / "light" / "refused.png")
    result = run_evaluate(model=model, data=str(data), split="all")
    assert result["statuses"] == {"ok": 40, "unreadable": 1}
    assert result["accuracy_all"] == pytest.approx(40 / 41)
    [named] = result["not_ok"]
    assert (named["uri"], named["status"]) == (str(data / "light/refused.png"), "unreadable")
    for path in data.rglob("*.png"):
        refuse_reads(path)
    with pytest.raises(AccessDeniedError, match="images in a row could not be read"):
        run_evaluate(model=model, data=str(data), split="all")


def test_an_image_that_the_model_fails_on_counts_as_wrong_and_is_named(
    model: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "light" / "white.png").write_bytes(
        encode_png(np.full((IMAGE_PX, IMAGE_PX, 3), 255, np.uint8))
    )
    real = Network.forward

    def forward(self: Network, x_BCHW: torch.Tensor) -> torch.Tensor:
        if len(x_BCHW) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (x_BCHW.flatten(1) == 255).all(dim=1).any():
            raise ValueError("too bright to look at")
        return real(self, x_BCHW)

    monkeypatch.setattr(Network, "forward", forward)
    result = run_evaluate(model=model, data=str(data), split="all")
    assert (result["num_rows"], result["num_ok"], result["accuracy"]) == (41, 40, 1.0)
    assert result["statuses"] == {"model_error": 1, "ok": 40}
    [named] = result["not_ok"]
    assert named["uri"].endswith("white.png")
    assert "too bright to look at" in named["error"]


def test_slices_and_groups_come_from_the_manifest(model: str, data: Path, tmp_path: Path) -> None:
    # Scanner y has its labels swapped; a patient has four images.
    lines = [
        f"data/{NAMES[n % 2]}/{n:02}.png,{NAMES[(n % 2) ^ (n >= 20)]},p{n // 4},{'xy'[n >= 20]}"
        for n in range(40)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label,group,scanner", *lines]))
    config = EvaluateConfig(
        model=model, data=str(tmp_path / "m.csv"), split="all", device="cpu", num_decoders=1
    )
    result = evaluate(replace(config, slice_by="scanner"))
    assert {name: row["accuracy"] for name, row in result["slices"].items()} == {"x": 1, "y": 0}
    assert result["intervals"]["num_units"] == 10
    with pytest.raises(SourceError, match="no column 'site'"):
        evaluate(replace(config, slice_by="site"))


def test_calibration_of_the_bundle_is_measured_too(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    probs_BK = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    fitted = fit_calibration(
        probs_BK,
        one_hot(np.array([0, 1, 1]), 2),
        bundle.class_names,
        targets=[("light", "recall", 0.5)],
    )
    write_bundle(replace(bundle, calibration=fitted.to_dict()), str(tmp_path / "calibrated"))
    result = run_evaluate(model=str(tmp_path / "calibrated"), data=str(data), split="all")
    point = result["calibrated"]["operating_points"]["light:recall>=0.5"]
    assert (point["recall"], point["specificity"]) == (1.0, 1.0)
    assert point["review_fraction"] == 0.0
    assert result["calibrated"]["ece"] == pytest.approx(0, abs=0.01)


def test_wrong_labels_lower_the_accuracy(model: str, data: Path, tmp_path: Path) -> None:
    lines = [f"data/{NAMES[n % 2]}/{n:02}.png,{NAMES[(n % 2) ^ (n < 4)]}" for n in range(40)]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *lines, "data/gone.png,dark"]))
    result = run_evaluate(model=model, data=str(tmp_path / "m.csv"), split="all")
    assert result["accuracy"] == pytest.approx(36 / 40)
    assert result["confusion_matrix"] == [[18, 2], [2, 18]]
    assert result["statuses"] == {"missing": 1, "ok": 40}


def test_unusable_flags_and_data_are_refused(model: str, data: Path, tmp_path: Path) -> None:
    for flags in ({}, {"model": model}, {"model": model, "data": "d", "predictions": "p"}):
        with pytest.raises(ConfigError, match="--model REF --data DATA, or --predictions"):
            run_evaluate(**flags)
    (tmp_path / "m.csv").write_text("uri,label\na.png,drak\nb.png,lihgt\n")
    with pytest.raises(ConfigError, match="does not know: 'drak', 'lihgt'"):
        run_evaluate(model=model, data=str(tmp_path / "m.csv"), split="all")
    lines = ["a.png,dark,train", "b.png,light,train", "c.png,light,val"]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label,split", *lines]))
    with pytest.raises(ConfigError, match="no images in split 'test'"):
        run_evaluate(model=model, data=str(tmp_path / "m.csv"))
    (tmp_path / "m.csv").write_text("uri,label\na.png,dark\n")
    with pytest.raises(ConfigError, match=r"none of 1 labelled images.*missing"):
        run_evaluate(model=model, data=str(tmp_path / "m.csv"), split="all")
