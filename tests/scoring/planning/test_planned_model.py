"""What a model cannot give is refused before a plan, by `score`, `nightly` and `plan` alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.scoring import NightlyConfig, PlanConfig, ScoreConfig
from imgcls.errors import ConfigError
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.units import UnitCalibration
from imgcls.model.registry import register
from imgcls.nightly import nightly
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from tests.scoring.tiny import make_bundle, write_images

Command = tuple[Callable[[Any], object], type]
COMMANDS: list[Command] = [(score, ScoreConfig), (nightly, NightlyConfig), (show_plan, PlanConfig)]


@pytest.mark.parametrize(("command", "config"), COMMANDS)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"write_tiles": True}, "--write-tiles: .* looks at a picture as a whole"),
        ({"unit": "folder:1", "unit_rule": "mean"}, "--unit-rule mean: .* were fitted for max"),
        ({"review_unfamiliar": True}, "--review-unfamiliar: .* has no thresholds"),
        ({"precision": "int8"}, "--precision int8: .* has no int8 network"),
    ],
)
def test_every_command_that_plans_refuses_what_the_model_cannot_give(
    command: Callable[[Any], object],
    config: type,
    flags: dict[str, Any],
    words: str,
    tmp_path: Path,
) -> None:
    of_units = Calibration(1.0, "", 9, 0.0, 0.0, 0.0, 0.0)
    fitted = UnitCalibration("max", "folder:1", "", 9, of_units).to_dict()
    register(str(tmp_path / "reg"), "m", replace(make_bundle(), unit_calibration=fitted))
    write_images(str(tmp_path / "in"), 2)
    with pytest.raises(ConfigError, match=words):
        command(
            config(
                str(tmp_path / "in"), f"{tmp_path}/reg/m@v1", str(tmp_path / "out"),
                executor="local", device="cpu", num_decoders=1, **flags,
            )
        )  # fmt: skip
    assert not list(tmp_path.glob("out/_runs/*")), "nothing was planned"
