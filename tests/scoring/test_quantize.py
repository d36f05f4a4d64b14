"""`imgcls quantize`: calibrated once, judged once, and every night of it starts with it."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.config.scoring import NightlyConfig, PlanConfig, QuantizeConfig, ScoreConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.inference.backends import int8
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.model.architectures import find_head
from imgcls.model.bundle import Bundle, make_golden, read_bundle
from imgcls.model.registry import list_versions, register
from imgcls.nightly import nightly
from imgcls.scoring import quantize as quantize_module
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.quantize import quantize
from tests.scoring.tiny import make_bundle, make_sure_bundle, published_rows, write_images

needs_int8 = pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")), reason="the extra int8 is not installed"
)


def with_threshold(bundle: Bundle) -> Bundle:
    """A point far from all probabilities: class 0 is what the model is sure of."""
    facts = (0.0, 0.9, [0.8, 1.0], 0.9, [0.8, 1.0], 10, 10)
    point = OperatingPoint("class-0:recall>=0.9", "class-0", "recall", 0.9, 0.4, 0.3, 0.5, *facts)
    calibration = Calibration(1.0, "", 20, 0.5, 0.5, 0.1, 0.1, (point,))
    return replace(bundle, calibration=calibration.to_dict())


@pytest.fixture
def registry(tmp_path: Path) -> str:
    register(str(tmp_path / "registry"), "m", with_threshold(make_sure_bundle()))
    write_images(str(tmp_path / "images"), 100)
    return str(tmp_path / "registry")


@pytest.fixture
def config(registry: str, tmp_path: Path) -> QuantizeConfig:
    return QuantizeConfig(f"{registry}/m@v1", str(tmp_path / "images"), num_decoders=1)


@needs_int8
def test_the_next_version_has_the_network_and_a_night_of_one_image_runs_it(
    config: QuantizeConfig, registry: str, tmp_path: Path
) -> None:
    result = quantize(config)
    assert result["model"] == f"{registry}/m@v2"
    assert (result["num_calibrated"], result["num_judged"]) == (50, 50)
    assert result["num_equal"] == 50
    json.dumps(result)
    before, after = read_bundle(f"{registry}/m/v1"), read_bundle(f"{registry}/m/v2")
    assert after.calibration == before.calibration
    assert after.training["int8"]["of"] == before.digest
    assert after.network_digest != before.network_digest
    one = Path(config.data, "only-one")
    write_images(str(one), 1)
    night = NightlyConfig(
        str(one), result["model"], str(tmp_path / "out"), precision="int8", device="cpu"
    )
    found = nightly(night)
    assert (found["rows"], found["engines"]) == (1, ["openvino int8 on cpu"])
    [row] = published_rows(night.output).to_pylist()
    assert row["decision"] == "positive", "a model that decides by a threshold runs in int8, too"
    assert not list(Path(night.output).glob("_runs/*/int8-*"))


@pytest.mark.parametrize(
    ("command", "flags"), [(score, ScoreConfig), (nightly, NightlyConfig), (show_plan, PlanConfig)]
)
def test_a_model_without_one_is_refused_before_anything_is_planned(
    config: QuantizeConfig, tmp_path: Path, command: Callable[[Any], Any], flags: Any
) -> None:
    output = str(tmp_path / "out")
    asked = flags(
        config.data, config.model, output, precision="int8", device="cpu", executor="local"
    )
    line = rf"--precision int8: {config.model} has no int8 network.*imgcls quantize --model"
    with pytest.raises(ConfigError, match=line):
        command(asked)
    assert not Path(output, "_runs").exists()


@needs_int8
def test_labels_or_decisions_that_change_refuse_it_and_nothing_is_registered(
    config: QuantizeConfig, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = int8.quantize
    other = make_bundle(seed=5)

    def of_another_model(_network: object, images: object) -> bytes:
        network = quantize_module.Network(other.to_model(), other.preprocess_spec, "fp32").eval()
        return real(network, images)  # type: ignore[arg-type]

    monkeypatch.setattr(int8, "quantize", of_another_model)
    with pytest.raises(BundleError, match=r"refused|no int8 network for this model: only"):
        quantize(config)
    assert [version.version for version in list_versions(registry, "m")] == [1]


def of_bias(bias: float) -> Bundle:
    """A model that says the same of every image: class 0, more or less surely."""
    bundle = make_bundle()
    model = bundle.to_model()
    _, head = find_head(model)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()[0] = bias
    golden_BK = make_golden(model, bundle.golden_x_BCHW, bundle.preprocess_spec)
    return replace(bundle, state_dict=model.state_dict(), golden_probs_BK=golden_BK)


@needs_int8
def test_probabilities_that_move_refuse_it_although_all_labels_stay(
    config: QuantizeConfig, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, "steady", of_bias(2.0))
    asked = replace(config, model=f"{registry}/steady@v1")
    real = int8.quantize
    for bias, is_let_in in ((1.4, False), (1.8, True)):
        other = of_bias(bias)
        network = quantize_module.Network(other.to_model(), other.preprocess_spec, "fp32").eval()
        monkeypatch.setattr(int8, "quantize", lambda _, images, of=network: real(of, images))
        if is_let_in:
            made = quantize(asked)
            assert (made["num_equal"], made["model"]) == (50, f"{registry}/steady@v2")
            assert 0.03 < made["usual_move"] == made["largest_move"] < 0.06
            break
        with pytest.raises(
            BundleError, match=r"move by up to 0\.15.*allowed is 0\.1, although 50 of 50 "
        ):
            quantize(asked)


@needs_int8
def test_few_images_and_a_bare_bundle_are_refused(config: QuantizeConfig, tmp_path: Path) -> None:
    write_images(str(tmp_path / "few"), 10)
    with pytest.raises(ConfigError, match=r"needs 64 images that decode, .* gives 10"):
        quantize(replace(config, data=str(tmp_path / "few")))
    with pytest.raises(ConfigError, match="next version of the model's name"):
        quantize(replace(config, model=str(tmp_path / "registry" / "m" / "v1")))


def test_without_openvino_it_says_what_to_install(
    config: QuantizeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]  # None: not there
    with pytest.raises(ConfigError, match=r"pip install \"imgcls\[int8\]\""):
        quantize(config)
