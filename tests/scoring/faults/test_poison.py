"""Images that the network fails on, devices that fail: the rows beside an undisturbed run's.

One image in 500 makes the network raise, and a device holds no more than 8 images at a time.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.scoring import QuantizeConfig, ScoreConfig
from imgcls.errors import BudgetExceededError, RunStoppedError
from imgcls.inference.backends.network import Network
from imgcls.model.registry import register
from imgcls.scoring.driver import score
from imgcls.scoring.executors.ray_data import MAX_DEVICE_FAILURES
from imgcls.scoring.quantize import quantize
from imgcls.storage.objects import put
from tests.scoring.faults.poison import environment, spoil, white_image
from tests.scoring.tiny import comparable, make_sure_bundle, published_rows, write_images

NUM_IMAGES = 998
# A few digits more than float32 keeps of a probability: another place in the batch, or another
# number of rows, sums in another order. Labels are equal.
TOLERANCE = 1e-5

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """So many images, and one in 500 of them white."""
    folder = str(tmp_path_factory.mktemp("bucket"))
    write_images(folder, NUM_IMAGES)
    for name in ("lot-2/00401-white.png", "lot-5/00700-white.png"):
        put(f"{folder}/{name}", white_image())
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: str, model_ref: str, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The oracle: the same images, and a network that looks at white ones too."""
    output = str(tmp_path_factory.mktemp("oracle"))
    score(ScoreConfig(source, model_ref, output, executor="local", device="cpu"))
    return comparable(published_rows(output))


@pytest.fixture
def spoilt() -> Iterator[None]:
    """What `spoil` does ends with the test."""
    real = Network.forward
    yield
    Network.forward = real  # type: ignore[method-assign]


def config_of(source: str, model_ref: str, output: Path, **changes: Any) -> ScoreConfig:
    config = ScoreConfig(
        source, model_ref, str(output), run_id="night", executor="local", device="cpu"
    )
    return replace(config, batch_size=32, shard_size=64, **changes)


def assert_all_but_white(rows: Rows, undisturbed: Rows) -> None:
    """Every row is the oracle's, but those of white images, which say why they have none."""
    assert [row["uri"] for row in rows] == [row["uri"] for row in undisturbed]
    white = [row for row in rows if row["uri"].endswith("-white.png")]
    assert [row["status"] for row in white] == ["model_error"] * 2
    assert {row["error"] for row in white} == {
        "the model fails on it: ValueError: too bright to look at"
    }
    assert {row["label"] for row in white} == {None}
    for row, expected in zip(rows, undisturbed, strict=True):
        if row in white:
            continue
        assert row["topk_prob"] == pytest.approx(expected["topk_prob"], abs=TOLERANCE)
        moved = {"topk_prob", "confidence", "topk_label"}
        assert {k: v for k, v in row.items() if k not in moved} == {
            k: v for k, v in expected.items() if k not in moved
        }


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize("how", ["white", "white and memory", "white and memory later"])
def test_the_image_at_fault_has_no_label_and_all_others_have_theirs(
    how: str, source: str, model_ref: str, undisturbed: Rows, tmp_path: Path
) -> None:
    spoil(how)
    result = score(config_of(source, model_ref, tmp_path))
    assert result["status_counts"] == {"ok": NUM_IMAGES, "model_error": 2}
    assert_all_but_white(comparable(published_rows(str(tmp_path))), undisturbed)


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize(
    ("how", "told"),
    [("memory", "out of memory with 16 images a pass"), ("memory later", "8 from now on")],
)
def test_a_device_that_holds_eight_images_gives_every_row(
    how: str,
    told: str,
    source: str,
    model_ref: str,
    undisturbed: Rows,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(how)
    assert score(config_of(source, model_ref, tmp_path))["rows_ok"] == NUM_IMAGES + 2
    rows = comparable(published_rows(str(tmp_path)))
    assert [row["label"] for row in rows] == [row["label"] for row in undisturbed]
    assert caplog.text.count(told) == 1, "remembered for the rest of the run"


@pytest.mark.usefixtures("spoilt")
def test_a_run_that_was_stopped_goes_on_past_the_image_at_fault(
    source: str, model_ref: str, undisturbed: Rows, tmp_path: Path
) -> None:
    environ = environment(tmp_path / "site", "accelerator")
    output = tmp_path / "out"
    first = _run_job(source, model_ref, output, environ, "local")
    assert first.returncode == RunStoppedError.exit_code, first.stderr
    told = json.loads(first.stdout.splitlines()[-1])["message"]
    assert "illegal memory access" in told
    assert "add --device cpu" in told
    assert not list(output.glob("date=*"))
    num_before = len(list((output / "_runs/night/commits").glob("*.json")))
    assert num_before, "shards before that one are kept"
    spoil("white")
    result = score(config_of(source, model_ref, output))
    assert result["rows_scored_now"] < NUM_IMAGES
    assert_all_but_white(comparable(published_rows(str(output))), undisturbed)


@pytest.mark.usefixtures("spoilt")
def test_a_network_that_fails_on_every_image_ends_by_the_budget_not_as_rows(
    model_ref: str, tmp_path: Path
) -> None:
    """Its golden images are not white, so that nothing says it is the network's fault."""
    for number in range(150):
        put(str(tmp_path / "bucket" / f"{number}.png"), white_image())
    spoil("white")
    with pytest.raises(BudgetExceededError, match=r"images failed \(\d+ model_error\)"):
        score(config_of(str(tmp_path / "bucket"), model_ref, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("date=*"))


@pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")), reason="the extra int8 is not installed"
)
@pytest.mark.usefixtures("spoilt")
def test_an_image_at_fault_does_not_keep_a_model_from_quantizing(tmp_path: Path) -> None:
    """The plain network judges the calibrated one; an image that it fails on has no label there."""
    write_images(str(tmp_path / "bucket"), 70)
    # Of each two images one calibrates and the other one judges.
    for number in range(2):
        put(str(tmp_path / f"bucket/white-{number}.png"), white_image())
    register(str(tmp_path / "registry"), "m", make_sure_bundle())
    spoil("white")
    made = quantize(QuantizeConfig(f"{tmp_path}/registry/m@v1", str(tmp_path / "bucket")))
    assert (made["num_calibrated"], made["num_judged"], made["num_equal"]) == (36, 35, 35)


def _run_job(
    source: str, model_ref: str, output: Path, environ: dict[str, str], executor: str, *more: str
) -> subprocess.CompletedProcess[str]:
    flags = [f"--{name}={value}" for name, value in _flags(source, model_ref, output).items()]
    command = [sys.executable, "-m", "jobs.score", *flags, f"--executor={executor}", *more]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=520, check=False
    )


def _flags(source: str, model_ref: str, output: Path) -> dict[str, object]:
    config = config_of(source, model_ref, output)
    names = ("source", "model", "output", "run_id", "device", "batch_size", "shard_size")
    return {name.replace("_", "-"): getattr(config, name) for name in names}


@pytest.mark.ray
@pytest.mark.timeout(560)  # each actor takes a minute on a busy machine
def test_actors_give_the_same_rows_with_the_image_at_fault_and_little_memory(
    source: str, model_ref: str, undisturbed: Rows, tmp_path: Path
) -> None:
    environ = environment(tmp_path / "site", "white and memory")
    ended = _run_job(source, model_ref, tmp_path / "out", environ, "ray")
    assert ended.returncode == 0, ended.stderr
    assert_all_but_white(comparable(published_rows(str(tmp_path / "out"))), undisturbed)


@pytest.mark.ray
@pytest.mark.timeout(560)  # each actor takes a minute on a busy machine
@pytest.mark.usefixtures("spoilt")
def test_an_image_that_breaks_the_accelerator_costs_its_shard_and_its_actor_alone(
    source: str, model_ref: str, undisturbed: Rows, tmp_path: Path
) -> None:
    environ = environment(tmp_path / "site", "accelerator")
    output = tmp_path / "out"
    ended = _run_job(source, model_ref, output, environ, "ray")
    assert ended.returncode == RunStoppedError.exit_code, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])["message"]
    num_shards = -(-(NUM_IMAGES + 2) // 64)
    # On a busy machine shards that share the actor with them three times are left, too.
    found = re.match(rf"(\d+) of {num_shards} shards could not be finished", told)
    assert found, told
    num_left = int(found[1])
    assert 2 <= num_left < num_shards / 2
    assert "illegal memory access" in told
    num_waits = ended.stderr.count("waits for another process, the device failed")
    assert num_waits >= 2 * (MAX_DEVICE_FAILURES - 1)
    assert len(list((output / "_runs/night/commits").glob("*.json"))) == num_shards - num_left
    spoil("white")
    result = score(config_of(source, model_ref, output))
    assert result["rows_scored_now"] <= num_left * 64
    assert_all_but_white(comparable(published_rows(str(output))), undisturbed)
