"""Deep greys are seen by the range that training measured; what blinds the model is refused."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.image.crops import decode_one, facts_of
from imgcls.image.spec import POOLED, DecodeSpec, PreprocessSpec
from imgcls.model.bundle import read_bundle
from imgcls.scoring.driver import score
from imgcls.sources.located import Image
from imgcls.storage.objects import list_objects
from imgcls.training.driver import train
from imgcls.training.planning.greys import Greys, fit_ranges, look_at_greys, tell_greys
from imgcls.training.planning.make_plan import build_decode_spec
from tests.kit.greys import DEEP, SIDE_PX, ct_without_window, dicom, png_12_in_16, scene
from tests.scoring.tiny import write_images

SPEC = PreprocessSpec(
    SIDE_PX, SIDE_PX, fit="stretch", resize="exact", mean=(0.5,), std=(0.2,), channels=1
)
GRAY = DecodeSpec(color="gray", gray_range="measured")


def write(folder: Path, make: Callable[..., bytes], suffix: str, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(make(number))
    return [str(path) for path in paths]


def look(uris: list[str], spec: DecodeSpec = GRAY) -> Greys:
    return look_at_greys([Image(uri) for uri in uris], spec, SPEC, seed=0, num_decoders=1)


def facts_here(files: list[bytes], spec: DecodeSpec) -> Greys:
    crops = [decode_one(data, spec, SPEC, "ranges")[0] for data in files]
    return Greys(spec, facts_of(crops, SPEC))


@pytest.mark.parametrize("name", list(DEEP))
def test_a_measured_range_leaves_nearly_all_levels(name: str) -> None:
    files = [DEEP[name][1](seed) for seed in range(24)]
    declared = facts_here(files, DecodeSpec(color="gray"))
    ranges = fit_ranges(declared.facts)
    measured = facts_here(files, dataclasses.replace(GRAY, gray_ranges=ranges)).to_dict()
    assert declared.to_dict()["levels"] < 24
    assert declared.to_dict()["few_levels"] == 24
    assert measured["levels"] > 110
    assert measured["few_levels"] == 0
    assert measured["rules"] == {"measured": 24}


def test_the_range_holds_findings_and_not_dead_pixels() -> None:
    files = [DEEP["float TIFF"][1](seed, finding=seed == 3) for seed in range(40)]
    ranges = fit_ranges(facts_here(files, DecodeSpec(color="gray")).facts)
    [(_, *pooled), (kind, low, high)] = ranges
    assert kind == "float"
    assert 900 < low < 1_000
    assert 1_400 < high < 2_000
    assert pooled == [low, high]


def test_each_modality_has_its_range_and_an_unseen_one_the_pooled(tmp_path: Path) -> None:
    uris = write(tmp_path / "ct", ct_without_window, "dcm", 8)
    uris += write(tmp_path / "mr", lambda k: dicom(scene(k, 0, 4_000), "MR"), "dcm", 8)
    spec = look(uris).decode_spec
    ranges = {kind: (low, high) for kind, low, high in spec.gray_ranges}
    assert list(ranges) == [POOLED, "CT", "MR"]
    assert ranges["CT"][1] < 400 < 3_000 < ranges["MR"][1]
    assert ranges[POOLED][0] <= ranges["CT"][0]
    rules = {
        name: decode_one(dicom(scene(0, 0, 900), name), spec, SPEC, "facts")[0].seen
        for name in ("CT", "MR", "PT")
    }
    assert {name: seen and seen.gray_rule for name, seen in rules.items()} == {
        "CT": "measured",
        "MR": "measured",
        "PT": "pooled",
    }
    # The same value is the same grey in every image of a kind.
    images = [decode_one(dicom(scene(k, -200, 300) * 0 + 50, "CT"), spec, SPEC)[0] for k in (1, 2)]
    assert (images[0].x_CHW == images[1].x_CHW).all()


def test_without_deep_greys_or_with_windows_the_spec_is_as_before(tmp_path: Path) -> None:
    def windowed(seed: int) -> bytes:
        return dicom(scene(seed, -200, 300), "CT", WindowCenter=50, WindowWidth=500)

    write_images(str(tmp_path), 6)
    write(tmp_path, windowed, "dcm", 4)
    greys = look([info.uri for info in list_objects(str(tmp_path))])
    assert greys.decode_spec == DecodeSpec(color="gray")
    assert greys.bits == {"8": 6, "16": 4}
    assert greys.to_dict()["rules"] == {"file": 4}


def test_what_leaves_a_model_blind_is_refused_with_the_flags_that_help(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    files = [ct_without_window(seed) for seed in range(12)]
    declared = facts_here(files, DecodeSpec(color="gray"))
    with pytest.raises(ConfigError, match=r"\d of 256 levels are left.*--gray-range measured"):
        tell_greys(declared)
    ranges = fit_ranges(declared.facts)
    tell_greys(facts_here(files, dataclasses.replace(GRAY, gray_ranges=ranges)))
    assert "greys of CT: -2" in caplog.text
    assert "levels (median of 12 images; the files have" in caplog.text
    # Fewer than half of the images: said, not refused.
    files += [dicom(scene(seed, 0, 6_000), "CT") for seed in range(16)]
    tell_greys(facts_here(files, DecodeSpec(color="gray", gray_range="bits", gray_bits=13)))
    assert "nearly flat to the model" in caplog.text


@pytest.mark.parametrize("text", ["5", "5:5", "9:1", "a:b", "nan:2", "0:inf", "1:2:3"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--gray-window .*must be LOW:HIGH"):
        build_decode_spec(TrainConfig("d", "r", "n", gray_window=text))


def test_a_window_takes_the_place_of_the_range() -> None:
    spec = build_decode_spec(TrainConfig("d", "r", "n", gray_window="-200:1200"))
    assert (spec.gray_range, spec.gray_window) == ("window", (-200.0, 1200.0))


def findings(
    folder: Path, name: str, count: int, *, classes: tuple[str, str] = ("no", "yes")
) -> None:
    suffix, make = DEEP[name]
    for number in range(count):
        path = folder / classes[number % 2] / f"{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(number, finding=number % 2 == 1))


def train_on(tmp_path: Path, name: str, count: int, **changes: object) -> dict[str, object]:
    findings(tmp_path / "data", name, count)
    flags = {
        "arch": "simple_cnn",
        "epochs": 30,
        "image_px": SIDE_PX,
        "color": "gray",
        "augment": "none",
        "lr": 0.01,
        "allow_leaks": True,
        "num_decoders": 1,
    }
    config = TrainConfig(
        str(tmp_path / "data"),
        str(tmp_path / "registry"),
        "m",
        **{**flags, **changes},  # type: ignore[arg-type]
    )
    return train(config)


def test_a_training_freezes_the_range_and_a_night_counts_what_it_never_saw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = train_on(tmp_path, "CT without a window", 60, epochs=1)
    assert result["greys"]["rules"] == {"measured": result["num_train"]}  # type: ignore[index]
    bundle = read_bundle(str(result["uri"]))
    assert [kind for kind, _, _ in bundle.decode_spec.gray_ranges] == [POOLED, "CT"]
    night = tmp_path / "night"
    write(night / "ct", ct_without_window, "dcm", 3)
    write(night / "pet", lambda k: dicom(scene(k, 0, 250), "PT"), "dcm", 2)
    write(night / "camera", png_12_in_16, "png", 1)
    (night / "float.tif").write_bytes(DEEP["float TIFF"][1](0))
    scored = score(
        ScoreConfig(str(night), str(result["model"]), str(tmp_path / "out"), executor="local")
    )
    assert scored["rows_ok"] == 7
    greys = scored["greys"]
    assert (greys["measured"], greys["pooled"]) == (3, 4)
    assert greys["new_bits_32"] == 1
    assert "32 bits a sample, which training never saw" in caplog.text
    assert "of a modality that training never saw" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DEEP))
def test_findings_are_found_by_the_measured_range_alone(tmp_path: Path, name: str) -> None:
    assert float(str(train_on(tmp_path / "new", name, 240)["accuracy"])) >= 0.9
    with pytest.raises(ConfigError, match="nearly blind"):
        train_on(tmp_path / "old", name, 240, gray_range="declared")
