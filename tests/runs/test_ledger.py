"""Which published rows are done, and which this imgcls would make otherwise."""

import hashlib
import io
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from imgcls.config.scoring import NightlyConfig, PlanConfig, VerifyConfig
from imgcls.data.class_names import ClassNames
from imgcls.errors import BudgetExceededError, ImgclsError
from imgcls.image.formats.abilities import LEARNT, NEEDED, abilities_here, grown, shared
from imgcls.image.versions import DECODER_VERSIONS
from imgcls.metrics.calibration import Calibration, OperatingPoint
from imgcls.model.bundle import Bundle, make_golden
from imgcls.model.registry import promote, register
from imgcls.nightly import nightly
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import put
from tests.scoring.tiny import image_bytes, make_bundle, published_rows, write_images

UNREAD = "unsupported"
PHOTOSHOP = b"8BPS\x00\x01" + bytes(200)
ZIP = b"PK\x05\x06" + bytes(18)


def tiff_bytes(number: int) -> bytes:
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.fixture
def night(model_ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NightlyConfig:
    """Three PNGs, two TIFFs (one without suffix), a Photoshop file, a zip, unknown bytes."""
    monkeypatch.setitem(NEEDED, "heif", "not_installed")
    # As if nothing had been learnt since 27535e0: each test says what is.
    for family in list(LEARNT):
        monkeypatch.delitem(LEARNT, family)
    files = {f"{number}.png": image_bytes(number) for number in range(3)}
    files |= {"4.tif": tiff_bytes(4), "5": tiff_bytes(5)}
    files |= {"6.psd": PHOTOSHOP, "7.zip": ZIP, "8.dat": bytes(99)}
    for name, data in files.items():
        put(str(tmp_path / "bucket" / name), data)
    return NightlyConfig(
        str(tmp_path / "bucket"), model_ref, str(tmp_path / "out"), executor="local", num_decoders=1
    )


def names_scored(config: NightlyConfig, run_id: str) -> list[str]:
    [folder] = Path(config.output).glob(f"date=*/run={run_id}")
    parts = [pq.read_table(path) for path in sorted(folder.glob("part-*"))]
    return [uri.rpartition("/")[2] for part in parts for uri in part["uri"].to_pylist()]


def as_27535e0(output: str) -> None:
    """Take from the published runs what commit 27535e0 did not write."""
    for path in Path(output).glob("date=*/run=*/_manifest.json"):
        manifest = json.loads(path.read_text())
        for name in ("decoders", "moved_formats", "not_an_image"):
            del manifest[name]
        for part in manifest["parts"]:
            file = path.with_name(part["path"])
            table = pq.read_table(file).drop_columns(["format"])
            status = pc.replace_substring(table["status"].cast("string"), "not_an_image", UNREAD)
            position = table.schema.get_field_index("status")
            field = table.schema.field("status")
            pq.write_table(table.set_column(position, field, status.dictionary_encode()), file)
            part["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            part["size_bytes"] = file.stat().st_size
        path.write_text(json.dumps(manifest))


def test_a_first_night_tells_formats_kinds_and_decoders(night: NightlyConfig) -> None:
    result = nightly(night)
    assert result["status_counts"] == {"not_an_image": 1, "ok": 5, "unsupported": 2}
    assert result["not_an_image"] == {"a zip archive": 1}
    assert result["moved_formats"] == []
    rows = {
        row["uri"].rpartition("/")[2]: row["format"]
        for row in published_rows(night.output).to_pylist()
    }
    assert [rows[name] for name in ("0.png", "4.tif", "5", "6.psd", "7.zip", "8.dat")] == [
        "png", "tiff", "tiff", "psd", "zip", None,
    ]  # fmt: skip
    [path] = Path(night.output).glob("date=*/run=*/_manifest.json")
    assert json.loads(path.read_text())["decoders"]["reads"] == abilities_here()
    assert nightly(night)["rows"] == 0


def test_only_rows_of_formats_whose_pixels_moved_are_scored_again(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly(night)
    monkeypatch.setitem(DECODER_VERSIONS, "tiff", DECODER_VERSIONS["tiff"] + 1)
    plan = show_plan(PlanConfig(night.source, night.model, night.output))
    assert (plan["to_score"], plan["changed"], plan["unchanged"]) == (2, 2, 3)
    assert plan["rescored_formats"] == ["tiff"]
    result = nightly(night)
    assert names_scored(night, result["run_id"]) == ["4.tif", "5"]
    assert result["moved_formats"] == result["rescored_formats"] == ["tiff"]
    assert result["planned_again"] == {"pixels_moved": 2, "failed_before": 0}
    assert nightly(night)["rows"] == 0


def test_rows_without_a_format_are_told_by_suffix_and_others_stay_and_are_counted(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly(night)
    as_27535e0(night.output)
    monkeypatch.setitem(DECODER_VERSIONS, "tiff", DECODER_VERSIONS["tiff"] + 1)
    result = nightly(night)
    assert names_scored(night, result["run_id"]) == ["4.tif"]
    assert result["rows_of_unknown_format"] == 1
    assert result["planned_again"] == {"pixels_moved": 1, "failed_before": 0}
    assert nightly(night)["rows"] == 0


def test_an_upgrade_scores_only_what_is_read_since(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.heic", "b.tif", "c.png"):
        put(f"{night.source}/{name}", bytes(99))
    nightly(NightlyConfig(**{**vars(night), "max_failed_fraction": 1.0}))
    as_27535e0(night.output)
    # 4.tif is told by its name; pixels of TIFF have moved since.
    plan = show_plan(PlanConfig(night.source, night.model, night.output))
    assert (plan["changed"], plan["failed_before"], plan["unchanged"]) == (1, 6, 4)
    monkeypatch.setitem(LEARNT, "tiff", ("LERC inside",))
    assert names_scored(night, nightly(night)["run_id"]) == ["4.tif", "b.tif"]
    monkeypatch.setitem(NEEDED, "heif", "json")
    # What no name tells may be of the new family too.
    assert names_scored(night, nightly(night)["run_id"]) == [
        "6.psd", "7.zip", "8.dat", "a.heic", "b.tif",
    ]  # fmt: skip
    assert nightly(night)["rows"] == 0


def test_what_could_not_be_read_is_tried_again_when_more_of_its_format_is_read(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly(night)
    monkeypatch.setitem(DECODER_VERSIONS, "psd", 1)
    result = nightly(night)
    # What no content tells may be of the new family too.
    assert names_scored(night, result["run_id"]) == ["6.psd", "8.dat"]
    assert result["planned_again"] == {"pixels_moved": 0, "failed_before": 2}
    assert nightly(night)["rows"] == 0


def test_many_that_fail_again_do_not_end_a_night_and_new_ones_do(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        put(f"{night.source}/a{number}.psd", PHOTOSHOP + bytes([number]))
    with pytest.raises(BudgetExceededError, match=r"32 of 37 images failed"):
        nightly(night)
    nightly(NightlyConfig(**{**vars(night), "max_failed_fraction": 1.0}))
    monkeypatch.setitem(DECODER_VERSIONS, "psd", 1)
    put(f"{night.source}/new.png", image_bytes(77))
    result = nightly(night)
    assert result["status_counts"] == {"ok": 1, "unsupported": 32}
    for number in range(3):
        put(f"{night.source}/b{number}.psd", PHOTOSHOP + bytes([99, number]))
    with pytest.raises(BudgetExceededError, match=r"3 of 3 images failed"):
        nightly(night)


def test_of_several_machines_only_what_all_read_counts() -> None:
    one = {"tiff": ["lzw", "read"], "heif": ["read"], "unknown": ["heif", "tiff"]}
    other = {"tiff": ["read"], "unknown": ["tiff"]}
    weakest = shared([one, other, one])
    assert weakest == {"tiff": ["read"], "unknown": ["tiff"]}
    assert grown("heif", weakest, one)
    assert grown("tiff", weakest, one)
    assert grown(None, weakest, one)
    assert not grown("heif", one, weakest)
    assert not grown("zip", weakest, one)


POINT = OperatingPoint(
    "class-1:recall>=0.9", "class-1", "recall", 0.9, 0.4, 0.4, 0.4, 0.0, 0.9, [0.8, 1.0], 0.9,
    [0.8, 1.0], 10, 10,
)  # fmt: skip


def decided_at(threshold: float) -> Bundle:
    """One network, with a threshold of its own."""
    point = replace(POINT, threshold=threshold, review_low=threshold, review_high=threshold)
    calibration = Calibration(1.0, "", 20, 0.5, 0.5, 0.1, 0.1, (point,))
    return replace(make_bundle(), calibration=calibration.to_dict())


@pytest.fixture
def moving(tmp_path: Path) -> NightlyConfig:
    """Nine images, and a model in production that moves to other thresholds."""
    registry = str(tmp_path / "registry")
    register(registry, "tiny", decided_at(0.4))
    promote(f"{registry}/tiny@v1", "production")
    write_images(str(tmp_path / "bucket"), 9)
    source, output = str(tmp_path / "bucket"), str(tmp_path / "out")
    return NightlyConfig(source, f"{registry}/tiny@production", output, executor="local")


def move_to(config: NightlyConfig, bundle: Bundle) -> None:
    registry = config.model.partition("/tiny@")[0]
    model = register(registry, "tiny", bundle)
    promote(f"{registry}/tiny@v{model.version}", "production")


def as_without_network_digest(output: str) -> None:
    """Take from the published runs what versions of before did not write."""
    for path in Path(output).glob("date=*/run=*/_manifest.json"):
        manifest = json.loads(path.read_text())
        for name in ("network_digest", "calibration_digest"):
            del manifest[name]
        path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("is_old", [False, True])
def test_a_version_with_other_thresholds_scores_nothing_again_and_says_how_many_rows_are_older(
    moving: NightlyConfig, is_old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="imgcls")
    logging.getLogger("imgcls").propagate = True
    assert nightly(moving)["rows"] == 9
    if is_old:
        as_without_network_digest(moving.output)
    move_to(moving, decided_at(0.7))
    put(f"{moving.source}/new.png", image_bytes(500))
    plan = show_plan(PlanConfig(moving.source, moving.model, moving.output))
    assert (plan["to_score"], plan["unchanged"], plan["older_thresholds"]) == (1, 9, 9)
    assert "9 published images were decided by older thresholds of this model" in caplog.text
    night = nightly(moving)
    assert (night["rows"], night["older_thresholds"]) == (1, 9)
    verify(VerifyConfig(moving.output))
    again = show_plan(PlanConfig(moving.source, moving.model, moving.output))
    assert (again["to_score"], again["older_thresholds"]) == (0, 9)
    move_to(moving, decided_at(0.4))
    back = show_plan(PlanConfig(moving.source, moving.model, moving.output))
    assert (back["to_score"], back["older_thresholds"]) == (0, 1), "the night of v2 is the odd one"


@pytest.mark.parametrize("change", ["weights", "classes", "pooling", "preprocessing"])
def test_whatever_decides_a_probability_makes_another_network(
    moving: NightlyConfig, change: str
) -> None:
    nightly(moving)
    bundle = decided_at(0.4)
    changed = {
        "weights": replace(decided_at(0.4), state_dict=_moved(bundle)),
        "classes": replace(
            bundle, class_names=ClassNames(tuple(f"class-{n}" for n in (0, 1, 9, 3, 4, 5, 6)))
        ),
        "pooling": replace(bundle, pooling="max"),
        "preprocessing": replace(
            bundle, preprocess_spec=replace(bundle.preprocess_spec, mean=(0.5, 0.5, 0.5))
        ),
    }[change]
    golden_BK = make_golden(changed.to_model(), changed.golden_x_BCHW, changed.preprocess_spec)
    move_to(moving, replace(changed, golden_probs_BK=golden_BK))
    plan = show_plan(PlanConfig(moving.source, moving.model, moving.output))
    assert (plan["to_score"], plan["older_thresholds"]) == (9, 0)


def _moved(bundle: Bundle) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in bundle.state_dict.items()}
    state["classifier.4.bias"][0] += 1e-6
    return state


def test_of_a_published_model_that_is_gone_nothing_is_assumed(moving: NightlyConfig) -> None:
    nightly(moving)
    as_without_network_digest(moving.output)
    move_to(moving, decided_at(0.7))
    shutil.rmtree(Path(moving.model.partition("@")[0], "v1"))
    assert show_plan(PlanConfig(moving.source, moving.model, moving.output))["to_score"] == 9


def test_the_same_image_in_two_nights_of_two_thresholds_is_a_problem(
    moving: NightlyConfig,
) -> None:
    """One network: it would be in a reader's table twice."""
    nightly(moving)
    move_to(moving, decided_at(0.7))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("imgcls.runs.ledger.is_same_network", lambda *_: False)
        with pytest.raises(ImgclsError, match=r"9 rows of run .* are published by run .* too"):
            nightly(moving)
