"""Nodes without a GPU decode for one that starves: the same rows, whatever becomes of them.

The GPUs are logical: Ray counts them, and `--device auto` takes the CPU where torch finds none.
"""

import io
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from imgcls import ray_cluster
from imgcls.config.choices import CpuHelpers
from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ImgclsError
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.scoring.driver import score
from imgcls.scoring.executors import ray_decoders
from imgcls.scoring.executors.placement import Placement
from imgcls.scoring.executors.ray_data import LOGICAL_GPUS, _num_sharing_helpers
from imgcls.scoring.executors.ray_decoders import (
    MAX_FAILURES_IN_A_ROW,
    DecodersOnRay,
    DecodingActor,
)
from imgcls.scoring.shard.remote_decode import CHUNK_SIZE, RemoteDecoder
from imgcls.scoring.shard.score_shard import make_clock, score_shard
from imgcls.scoring.shard.worker import WorkerOptions
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.objects import put, read
from tests.kit.predictors import open_predictor
from tests.kit.ray_nodes import RayCluster
from tests.scoring.shard.test_score_shard import plan_rows, provenance_of
from tests.scoring.tiny import (
    comparable,
    image_bytes,
    make_bundle,
    published_rows,
    tiff_frames,
    write_images,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[3]
READY_WITHIN_S = 120
NUM_IMAGES = 300
NUM_SLOW_IMAGES, NUM_DIFFERENT = 832, 10


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[RayCluster]:
    """A cluster with a node with a GPU."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        monkeypatch.setenv(LOGICAL_GPUS, "1")
        started = RayCluster(0)
        started.add_node(num_cpus=2, num_gpus=1)
        monkeypatch.setenv("RAY_ADDRESS", started.address)
        with ray_cluster.connected():
            yield started
        started.close()


@pytest.fixture
def nodes(one_gpu: RayCluster) -> RayCluster:
    """That cluster, and a node without a GPU, the last one, which could help it."""
    if len(one_gpu.nodes) == 1:
        one_gpu.add_node(num_cpus=2)
    return one_gpu


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images, some damaged, one of many frames, one deleted after it was planned."""
    folder = tmp_path / "bucket"
    write_images(str(folder), NUM_IMAGES)
    for number in range(0, NUM_IMAGES, 25):
        put(str(folder / f"lot-{number % 7}" / f"{number:05d}.png"), image_bytes(number)[:300])
        put(str(folder / f"lot-{number % 7}" / f"{number:05d}.tif"), tiff_frames(3))
    return folder


class Shard:
    """Scores a shard in this process, with or without help."""

    def __init__(self, folder: Path) -> None:
        self.bundle = make_bundle(decode_spec=DecodeSpec(frames="all"))
        self._rows = plan_rows(folder)
        (folder / "lot-1" / "00001.png").unlink()

    def score(self, remote: RemoteDecoder | None) -> tuple[pa.Table, int]:
        bundle = self.bundle
        predictor = open_predictor(bundle, batch_size=8)
        with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool:
            clock = make_clock(predictor, pool)
            with clock.shard():
                table = score_shard(
                    self._rows,
                    predictor=predictor,
                    pool=pool,
                    provenance=provenance_of(bundle),
                    clock=clock,
                    remote=remote,
                ).rows
                stages, _ = clock.take()
        num_remote = int(stages.get("decode_remote", {}).get("items", 0))
        assert stages["decode"]["items"] + num_remote == self._rows.num_rows
        return table.drop_columns(["scored_at"]), num_remote

    def helpers(self) -> DecodersOnRay:
        """Return remote decoders that have answered."""
        made = DecodersOnRay(self.bundle.decode_spec, self.bundle.preprocess_spec, num_sharing=1)
        until_s = time.monotonic() + READY_WITHIN_S
        while not made.room() and time.monotonic() < until_s:
            time.sleep(0.1)
        assert made.room() == 3, "a decoder for the CPU that is not left to Ray, and two ahead"
        return made


class Disturbed:
    """A remote decoder that has time for its first chunks; some later something happens to it."""

    def __init__(self, remote: DecodersOnRay, disturb: Callable[[], None] = lambda: None) -> None:
        self._remote, self._disturb = remote, disturb
        self._num_chunks = 0
        self.room = remote.room

    def submit(self, requests: list[GetRequest]) -> Future[list[Decoded]]:
        future = self._remote.submit(requests)
        self._num_chunks += 1
        if self._num_chunks <= 3:
            wait([future], READY_WITHIN_S)
        if self._num_chunks == 6:
            self._disturb()
        return future


def test_rows_decoded_elsewhere_are_those_decoded_here(nodes: RayCluster, source: Path) -> None:
    shard = Shard(source)
    alone, _ = shard.score(None)
    helped, num_remote = shard.score(Disturbed(shard.helpers()))
    assert num_remote > 2 * CHUNK_SIZE, "three chunks, but for the damaged ones"
    assert helped.equals(alone)
    statuses = Counter(alone["status"].to_pylist())
    assert statuses["corrupt"] == NUM_IMAGES // 25
    assert statuses["missing"] == 1
    assert Counter(alone["frame"].to_pylist())[2] == NUM_IMAGES // 25


@pytest.mark.parametrize("what", ["killed", "asleep", "node"])
def test_lost_decoders_lose_no_row(nodes: RayCluster, source: Path, what: str) -> None:
    shard = Shard(source)
    alone, _ = shard.score(None)
    others = set(nodes.actor_pids("DecodingActor"))
    remote = shard.helpers()
    (pid,) = set(nodes.actor_pids("DecodingActor")) - others

    def disturb() -> None:
        if what == "node":
            nodes.kill_node()
        else:
            os.kill(pid, signal.SIGKILL if what == "killed" else signal.SIGSTOP)

    helped, num_remote = shard.score(Disturbed(remote, disturb))
    assert helped.equals(alone)
    assert 2 * CHUNK_SIZE < num_remote < 6 * CHUNK_SIZE
    if what == "asleep":
        assert remote.room() == 0, "it has all it may have"
        os.kill(pid, signal.SIGCONT)
    again, _ = shard.score(remote)
    assert again.equals(alone)


def test_a_node_that_cannot_read_the_source_is_not_asked_again(
    nodes: RayCluster, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = Shard(source)
    remote = shard.helpers()
    nowhere = [GetRequest(0, "s3://no-such-bucket-here/no-such-key")]
    for _ in range(MAX_FAILURES_IN_A_ROW):
        assert remote.room() > 0
        assert isinstance(remote.submit(nowhere).exception(READY_WITHIN_S), ImgclsError)
    assert remote.room() == 0
    assert "does not help any more" in caplog.text


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images that take much longer to decode than the tiny model to classify."""
    folder = tmp_path_factory.mktemp("slow")
    rng = np.random.default_rng(0)
    for number in range(NUM_SLOW_IMAGES):
        if number < NUM_DIFFERENT:
            few = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            few.resize((600, 600)).save(buffer, format="PNG", compress_level=1)
            put(str(folder / f"{number:05d}.png"), buffer.getvalue())
        else:
            (folder / f"{number:05d}.png").hardlink_to(folder / f"{number % NUM_DIFFERENT:05d}.png")
    return str(folder)


def test_who_may_be_helped(nodes: RayCluster) -> None:
    with_gpu, without = [Placement("1", 1, 1.0)] * 2, [Placement("1", 1, 0.0)] * 2
    assert _num_sharing_helpers(WorkerOptions(1), with_gpu) == 2
    assert _num_sharing_helpers(WorkerOptions(1), without) == 0
    assert _num_sharing_helpers(WorkerOptions(1, cpu_helpers="off"), with_gpu) == 0


def test_a_chunk_that_grows_too_large_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        put(str(tmp_path / f"{number}.tif"), tiff_frames(5))
    spec, preprocess_spec = DecodeSpec(frames="all"), PreprocessSpec.for_image_px(32)
    requests = [GetRequest(number, str(tmp_path / f"{number}.tif")) for number in range(4)]
    actor = DecodingActor(spec, preprocess_spec, 1)
    monkeypatch.setattr(ray_decoders, "_MAX_CHUNK_BYTES", 10 * 3 * 32 * 32)
    crops, sources = actor.decode(requests)
    assert crops is not None
    assert crops.shape == (10, 3, 32, 32)
    assert [len(of_image) for *_, of_image in sources] == [5, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu_helpers", "is_lost"), [("auto", False), ("auto", True), ("off", False)]
)
def test_a_starving_gpu_is_helped_unless_told_not_to(
    cpu_helpers: CpuHelpers,
    is_lost: bool,
    nodes: RayCluster,
    slow_source: str,
    model_ref: str,
    tmp_path: Path,
) -> None:
    config = ScoreConfig(
        slow_source,
        model_ref,
        str(tmp_path / "ray"),
        run_id="night",
        executor="ray",
        shard_size=64,
        gpus_per_actor=1,
        cpu_helpers=cpu_helpers,
        batch_size=8,
    )

    def lose() -> None:
        until_s = time.monotonic() + READY_WITHIN_S
        while not nodes.actor_pids("DecodingActor") and time.monotonic() < until_s:
            time.sleep(0.05)
        nodes.kill_node()

    with ThreadPoolExecutor(1) as threads:
        losing = threads.submit(lose) if is_lost else None
        result = score(config)
        if losing is not None:
            losing.result()
    assert len(result["nodes"]) == 1
    report = json.loads(read(str(tmp_path / "ray" / "_runs" / "night" / "report.json")))
    log = read(str(next((tmp_path / "ray" / "_runs" / "night" / "logs").iterdir()))).decode()
    stages = report["stages"]
    num_remote = stages.get("decode_remote", {}).get("items", 0)
    assert stages["decode"]["items"] + num_remote == NUM_SLOW_IMAGES
    if not is_lost:
        assert (num_remote > 0) == (cpu_helpers == "auto")
    assert log.count("nodes without a GPU decode for it now") == (cpu_helpers == "auto")
    # The images repeat, so those few tell what the rows of all must be.
    few = replace(config, source=f"{slow_source}/0000*.png", output=str(tmp_path / "local"))
    score(replace(few, executor="local", gpus_per_actor=0, shard_size=0))
    expected = comparable(published_rows(str(tmp_path / "local")))
    rows = comparable(published_rows(str(tmp_path / "ray")))
    assert [row["uri"] for row in rows] == sorted(map(str, Path(slow_source).iterdir()))
    for number, row in enumerate(rows):
        of_same_bytes = expected[number % NUM_DIFFERENT]
        for column in ("status", "frame", "width_px", "height_px", "label"):
            assert row[column] == of_same_bytes[column]
        # Arithmetic differs by a rounding between numbers of threads.
        assert row["confidence"] == pytest.approx(of_same_bytes["confidence"], abs=1e-4)
