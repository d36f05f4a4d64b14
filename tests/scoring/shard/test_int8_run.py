"""An int8 night of before, which made a network of its own, is finished by that network."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from imgcls.config.scoring import NightlyConfig
from imgcls.errors import ConfigError
from imgcls.inference.backends import int8
from imgcls.inference.backends.network import Network
from imgcls.model.registry import promote, register
from imgcls.nightly import nightly
from imgcls.runs.plan import read_plan
from imgcls.runs.run import Run
from imgcls.storage.objects import put
from tests.scoring.nights import leave_unfinished
from tests.scoring.tiny import IMAGE_PX, make_sure_bundle, write_images

needs_int8 = pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")), reason="the extra int8 is not installed"
)


@pytest.fixture
def night(tmp_path: Path) -> NightlyConfig:
    """An int8 night that died before it scored, as a version planned it that made its own."""
    registry = str(tmp_path / "registry")
    register(registry, "m", make_sure_bundle())
    promote(f"{registry}/m@v1", "production")
    write_images(str(tmp_path / "images"), 5)
    config = NightlyConfig(
        str(tmp_path / "images"),
        f"{registry}/m@production",
        str(tmp_path / "out"),
        date="2026-11-22",
        precision="int8",
        device="cpu",
        executor="local",
        num_decoders=1,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("imgcls.nightly.check_model", lambda _config, _model: None)
        leave_unfinished(config, before="score_plan")
    return config


@needs_int8
def test_a_night_that_was_begun_with_its_own_network_is_finished_with_it(
    night: NightlyConfig,
) -> None:
    bundle = make_sure_bundle()
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randint(0, 256, (32, 3, IMAGE_PX, IMAGE_PX), generator=generator)
    network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
    run = Run(night.output, "nightly-2026-11-22")
    plan = read_plan(run)
    assert plan is not None
    put(run.int8_network(plan.model_digest), int8.quantize(network, x_BCHW.to(torch.uint8)))
    result = nightly(night)
    assert (result["run_id"], result["rows"]) == ("nightly-2026-11-22", 5)
    assert result["engines"] == ["openvino int8 on cpu"]


def test_a_night_that_never_got_one_says_what_to_do(night: NightlyConfig) -> None:
    with pytest.raises(ConfigError, match=r"has no int8 network.*imgcls quantize --model .* auto"):
        nightly(night)
    assert nightly(replace(night, precision="auto"))["rows"] == 5
