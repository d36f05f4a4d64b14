import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imgcls.model.bundle_files import read_digest
from tests.training.bars import bars_config
from tests.training.conftest import MakeTree

ROOT = Path(__file__).parents[2]


def run(*arguments: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "imgcls.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_training_and_a_ray_night_leave_their_work_where_relative_flags_say(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    data = make_tree(20)
    here, there = tmp_path / "start here", tmp_path / "and there"
    here.mkdir()
    there.mkdir()
    config = bars_config(data, epochs=1)
    trained = run(
        "train", "--data", f"../{data.name}/", "--registry", "../a registry/", "--name", "m",
        "--num-workers", "1", "--arch", config.arch, "--image-px", str(config.image_px),
        "--epochs", "1", "--batch-size", "8", "--num-decoders", "1",
        folder=here,
    )  # fmt: skip
    assert trained["uri"] == f"{tmp_path}/a registry/m/v1"
    assert read_digest(f"{tmp_path}/a registry/m/v1") == trained["digest"]
    scored = run(
        "score", "--source", f"../{data.name}", "--model", "../a registry/m@v1", "--output", "out/",
        "--executor", "ray", "--num-actors", "1", "--num-decoders", "1",
        folder=there,
    )  # fmt: skip
    assert scored["rows_ok"] == 40
    assert all(
        part.startswith(f"{there}/out/") and Path(part).is_file() for part in scored["parts"]
    )
