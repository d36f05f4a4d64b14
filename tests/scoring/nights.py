"""Small nights, whole and killed, for every test of what a night leaves behind."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.scoring import NightlyConfig
from imgcls.model.registry import promote, register
from imgcls.nightly import nightly
from tests.scoring.tiny import make_bundle, published_rows, write_images


def make_night(folder: Path, num_images: int = 70) -> NightlyConfig:
    """Write images and a promoted model; return the config of a night over them."""
    registry = str(folder / "registry")
    register(registry, "tiny", make_bundle())
    promote(f"{registry}/tiny@v1", "production")
    write_images(str(folder / "bucket"), num_images)
    return NightlyConfig(
        str(folder / "bucket"),
        f"{registry}/tiny@production",
        str(folder / "out"),
        date="2026-11-22",
        executor="local",
    )


def leave_unfinished(config: NightlyConfig, *, before: str = "publish", **changes: Any) -> None:
    """Run a night that dies before it publishes, or before it scores (`score_plan`)."""

    def die(*_args: object, **_kwargs: object) -> None:
        raise SystemExit

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(f"imgcls.scoring.driver.{before}", die)
        with pytest.raises(SystemExit):
            nightly(replace(config, **changes))


def rows_by_run(config: NightlyConfig) -> dict[str, list[str]]:
    """Return the published uris of each run, below the source."""
    rows: dict[str, list[str]] = {}
    for row in published_rows(config.output).to_pylist():
        rows.setdefault(row["run_id"], []).append(row["uri"].removeprefix(f"{config.source}/"))
    return rows


def run_and_list_modules(*arguments: str) -> tuple[dict[str, Any], set[str]]:
    """Run a command in a process of its own; return its result and the modules it imported."""
    program = (
        "import json, sys; from imgcls.cli import main; code = main(sys.argv[1:]);"
        "print(json.dumps([name for name, module in sys.modules.items() if module is not None]));"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, result, imported = done.stdout.splitlines()
    return json.loads(result), set(json.loads(imported))
