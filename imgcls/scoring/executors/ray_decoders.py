"""Decode on the nodes without a GPU, for an actor whose GPU starves.

In: chunks of requests. Out: their crops through Ray's object store. Invariant: it is help
and no more: whatever fails here, the shard does itself (remote_decode.py), and a node that failed
again and again, or is gone, is not asked any more.

Each actor with a GPU starts one decoding actor of its own on each such node, with its share of the
CPUs that layout.py lets actors take. It ends with the actor that it helps.

Shape legend: B crops of a chunk, C channel, P image_px.
"""

import logging
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imgcls import ray_cluster
from imgcls.image.crops import Crop, Source
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.scoring.executors.placement import cpu_only_nodes, usable_cpus
from imgcls.sources.read import get_images
from imgcls.storage.bulk_get import GetRequest

log = logging.getLogger(__name__)

LOOK_FOR_NODES_EVERY_S: Final = 10.0
# So many chunks in a row that a node failed: it can't read the source, or is about to die.
MAX_FAILURES_IN_A_ROW: Final = 3
# Chunks that a node has beyond one per decoder: they are read meanwhile.
_CHUNKS_READ_AHEAD: Final = 2
# Files of many frames: what would make a chunk larger than this is left out of it.
_MAX_CHUNK_BYTES: Final = 64 << 20

# index, format, where each crop comes from, and its small picture.
_Sources = list[tuple[int, str | None, list[Source], list[npt.NDArray[np.uint8] | None]]]
_Answer = tuple[npt.NDArray[Any] | None, _Sources]


class DecodingActor:
    """Reads and decodes chunks on a node without a GPU."""

    def __init__(
        self, decode_spec: DecodeSpec, preprocess_spec: PreprocessSpec, num_decoders: int
    ) -> None:
        self._pool = DecoderPool(decode_spec, preprocess_spec, num_decoders, look="facts")

    def decode(self, requests: list[GetRequest]) -> _Answer:
        """Return the crops of a chunk, [B,C,P,P], and where each comes from.

        What gives none is left out.
        """
        crops: list[npt.NDArray[Any]] = []
        sources: _Sources = []
        for decoded in self._pool.decode_many(get_images(requests, gives_unreadable=True)):
            found = decoded.crops
            if not found:
                continue
            if (len(crops) + len(found)) * found[0].x_CHW.nbytes > _MAX_CHUNK_BYTES:
                break
            crops += [crop.x_CHW for crop in found]
            of_crops = [crop.source for crop in found]
            pictures = [crop.picture_HWC for crop in found]
            sources.append((decoded.index, decoded.format, of_crops, pictures))
        return np.stack(crops) if crops else None, sources


class DecodersOnRay:
    """A RemoteDecoder: decoding actors on the nodes without a GPU, looked for now and then.

    Args:
        decode_spec: of the bundle, as for the decoders here.
        preprocess_spec: of the bundle.
        num_sharing: how many actors with a GPU share the nodes.
    """

    def __init__(
        self, decode_spec: DecodeSpec, preprocess_spec: PreprocessSpec, num_sharing: int
    ) -> None:
        self._specs = (decode_spec, preprocess_spec)
        self._num_sharing = num_sharing
        self._lock = threading.Lock()
        self._nodes: dict[str, _Node] = {}
        self._look_next_s = 0.0

    def room(self) -> int:
        """Return how many more chunks the nodes take at the moment."""
        with self._lock:
            self._look()
            return sum(node.room for node in self._nodes.values())

    def submit(self, requests: list[GetRequest]) -> Future[list[Decoded]]:
        """Send a chunk to the node with the most room."""
        with self._lock:
            if self._nodes:
                return max(self._nodes.values(), key=lambda node: node.room).submit(requests)
        nobody: Future[list[Decoded]] = Future()
        nobody.set_exception(LookupError("the last node without a GPU has gone"))
        return nobody

    def _look(self) -> None:
        """Start to use nodes that have come, and forget those that are gone."""
        now_s = time.monotonic()
        if now_s < self._look_next_s:
            return
        self._look_next_s = now_s + LOOK_FOR_NODES_EVERY_S
        try:
            there = cpu_only_nodes(ray_cluster.current_resources())
        except Exception as error:  # noqa: BLE001 - without a cluster that answers, without help
            log.warning("no nodes to help are found: %s", error)
            there = []
        # A node that failed stays known, so that it is not tried again.
        self._nodes = {
            node.node_id: self._nodes.get(node.node_id)
            or _Node(self._specs, node.node_id, usable_cpus(node.num_cpus) / self._num_sharing)
            for node in there
        }


class _Node:
    """The decoding actor of one node, and what it has to do. Ray calls back in its own thread."""

    def __init__(
        self, specs: tuple[DecodeSpec, PreprocessSpec], node_id: str, num_cpus: float
    ) -> None:
        # Ray takes whole CPUs, or ten-thousandths of one.
        num_cpus = int(num_cpus) if num_cpus >= 1 else int(num_cpus * 10_000) / 10_000
        num_decoders = max(1, int(num_cpus))
        self._max_chunks = num_decoders + _CHUNKS_READ_AHEAD
        self._name = node_id[:8]
        self._lock = threading.Lock()
        self._num_running = self._num_failures = 0
        self._is_ready = False
        actor: Any = ray.remote(DecodingActor)
        self._actor = actor.options(
            num_cpus=num_cpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self._max_chunks,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(*specs, num_decoders)
        # Nothing is sent to a node before it has answered.
        self.submit([])

    @property
    def room(self) -> int:
        if not self._is_ready or self._num_failures >= MAX_FAILURES_IN_A_ROW:
            return 0
        return self._max_chunks - self._num_running

    def submit(self, requests: list[GetRequest]) -> Future[list[Decoded]]:
        told: Future[list[Decoded]] = Future()

        def finish(answer: Future[_Answer]) -> None:
            error = answer.exception()
            with self._lock:
                self._num_running -= 1
                self._is_ready = self._is_ready or error is None
                self._count_failure(error)
            if not told.set_running_or_notify_cancel():
                return
            if error is not None:
                told.set_exception(error)
            else:
                told.set_result(_unpack(answer.result()))

        with self._lock:
            self._num_running += 1
        self._actor.decode.remote(requests).future().add_done_callback(finish)
        return told

    def _count_failure(self, error: BaseException | None) -> None:
        if self._num_failures >= MAX_FAILURES_IN_A_ROW:
            return
        self._num_failures = self._num_failures + 1 if error is not None else 0
        if self._num_failures == MAX_FAILURES_IN_A_ROW:
            log.warning("node %s does not help any more: %s", self._name, _last_line(error))


def _unpack(answer: _Answer) -> list[Decoded]:
    """Return views of the crops; the array lies in the object store until the last one goes."""
    x_BCHW, sources = answer
    rest = iter(() if x_BCHW is None else x_BCHW)
    return [
        Decoded(
            index,
            None,
            [Crop.from_source(next(rest), *of) for of in zip(of_crops, pictures, strict=True)],
            family,
        )
        for index, family, of_crops, pictures in sources
    ]


def _last_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
