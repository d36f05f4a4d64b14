"""What one worker does, shard after shard: plan rows -> prediction rows -> attempt -> commit.

In: a run's plan and the shards it is handed. Out: a ShardSummary per shard; the rows themselves go
to the store. Invariant: the same worker runs in the local loop and inside a Ray actor, and it knows
of neither.
"""

import logging
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Self, cast

import pyarrow as pa

from imgcls import errors
from imgcls.closing import Closing
from imgcls.config.choices import CpuHelpers, Precision
from imgcls.config.scoring import ScoreConfig
from imgcls.drift.reference import familiar_of
from imgcls.errors import BundleError, ConfigError, ImgclsError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.seen import FEW_SEEN, measure_seen
from imgcls.image.spec import PreprocessSpec
from imgcls.inference.backends.backend import Backend
from imgcls.inference.backends.choose import choose_backend
from imgcls.inference.backends.demand import Kind, demand_of_run
from imgcls.inference.backends.measured import Way
from imgcls.inference.device import set_num_threads
from imgcls.inference.heatmaps.explainer import make_explainer
from imgcls.inference.heatmaps.picked import ShardHeatmaps
from imgcls.inference.pixel_check import check_pixels
from imgcls.inference.predictor import Predictor
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.runs.commits import Commit
from imgcls.runs.plan import Plan, PlannedRows, Shard
from imgcls.runs.run import Run
from imgcls.scoring.planning.decoders import record_here
from imgcls.scoring.shard.commit import commit_shard, count_failed_again
from imgcls.scoring.shard.facts import ShardFacts
from imgcls.scoring.shard.gpu_decode import share_with_gpu
from imgcls.scoring.shard.int8_run import with_int8_of_run
from imgcls.scoring.shard.remote_decode import MakeRemoteDecoder, RemoteDecoder
from imgcls.scoring.shard.rows import Provenance
from imgcls.scoring.shard.sample import spread_requests
from imgcls.scoring.shard.score_shard import make_clock, score_shard
from imgcls.scoring.shard.stage_clock import StageDicts, add_stages, describe_starvation
from imgcls.scoring.shard.tile_rows import TileRows
from imgcls.sources.read import get_images
from imgcls.storage.access import MAX_REFUSED_IN_A_ROW, Access
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.objects import put_first
from imgcls.storage.records import parse_record, record_text

log = logging.getLogger(__name__)

# Two shards overlap in a worker: the next one's first reads start before the last one's last batch
# ends.
SHARDS_IN_FLIGHT = 2


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker uses its machine; what changes rows are the row options of its plan."""

    num_cpus: int
    device: str = "auto"
    batch_size: int = 0
    num_decoders: int = 0
    cpu_helpers: CpuHelpers = "auto"

    @classmethod
    def of(cls, config: ScoreConfig) -> Self:
        """Pick them out of the flags of a command, with the CPUs of this process."""
        return cls(
            num_cpus=len(os.sched_getaffinity(0)),
            device=config.device,
            batch_size=config.batch_size,
            num_decoders=config.num_decoders,
            cpu_helpers=config.cpu_helpers,
        )


@dataclass(frozen=True)
class ShardSummary:
    """What became of one shard; small, and made of plain values, because it travels through Ray."""

    shard_id: str
    num_rows: int = 0
    seconds: float = 0.0
    backend: str = ""
    status_counts: dict[str, int] = field(default_factory=dict)
    num_failed_again: int = 0
    error_kind: str = ""
    error_message: str = ""
    num_bytes: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    # Who did it, and what it logged meanwhile: whoever runs the worker fills these in.
    node: str = ""
    actor: str = ""
    log_lines: tuple[str, ...] = ()

    @classmethod
    def of_error(cls, shard: Shard, error: ImgclsError) -> Self:
        """Return the summary of a shard that an expected error kept from being committed."""
        return cls(shard.shard_id, error_kind=type(error).__name__, error_message=str(error))

    def error(self) -> ImgclsError | None:
        """Return the error that kept the shard from being committed, if any."""
        if not self.error_kind:
            return None
        kind: type[ImgclsError] = getattr(errors, self.error_kind)
        return kind(self.error_message)


class ShardWorker(Closing):
    """A model and a decoder pool, ready for shards of one run. Thread-safe: shards may overlap.

    With `make_remote`, what that makes decodes too, once the model was seen to starve.

    Raises:
        BundleError: the bundle at the planned place is not the planned one any more.
    """

    def __init__(
        self,
        plan: Plan,
        options: WorkerOptions,
        make_remote: MakeRemoteDecoder | None = None,
    ) -> None:
        self._plan, self._rows, self._planned = plan, plan.row_options, PlannedRows(plan)
        set_num_threads(options.num_cpus)
        bundle = read_bundle(plan.model_uri)
        if bundle.digest != plan.model_digest:
            raise BundleError(
                f"{plan.model_uri}: digest is {bundle.digest}, run {plan.run_id} was planned with "
                f"{plan.model_digest}. A bundle must not be changed in place; register a new "
                "version."
            )
        with ExitStack() as opened:
            self._open(bundle, options, opened)
            # From here on they are closed with the worker.
            self._opened = opened.pop_all()
        self._preprocess_spec = bundle.preprocess_spec
        self._clock = make_clock(self._predictor, self._pool)
        self._make_remote = make_remote and partial(
            make_remote, bundle.decode_spec, bundle.preprocess_spec
        )
        self._remote: RemoteDecoder | None = None
        self._stages_so_far: StageDicts = {}
        self._lock = threading.Lock()  # of these
        self._access = Access(partial(_from_all_over, self._planned), get_images)
        self._decoders = record_here(bundle.decode_spec)
        self._known_bits = tuple(bundle.training.get("greys", {}).get("bits", ()))
        self._provenance = Provenance(
            run=plan,
            class_names=bundle.class_names.names,
            multi_label=bundle.multi_label,
            calibration=bundle.fitted(),
            has_places=bundle.preprocess_spec.fit == "tiles",
            background=bundle.background,
            familiar=familiar_of(bundle),
            review_unfamiliar=self._rows.review_unfamiliar,
        )

    def _open(self, bundle: Bundle, options: WorkerOptions, opened: ExitStack) -> None:
        """Start the decoders and load the network, as the plan wants them."""
        plan = self._plan
        self._pool = opened.enter_context(
            DecoderPool(
                bundle.decode_spec,
                bundle.preprocess_spec,
                options.num_decoders or options.num_cpus,
                look="facts",
            )
        )
        if self._rows.precision == "int8":
            bundle = with_int8_of_run(plan.run, bundle)
        demand = demand_of_run(
            device=options.device,
            precision=self._rows.precision,
            batch_size=options.batch_size,
            num_images=plan.counts["planned"],
            num_cores=options.num_cpus,
            embedding=self._rows.write_embedding,
            sketch=True,
        )
        check_pixels(bundle, self._pool)
        backend = choose_backend(bundle, demand)
        agreed = agree_on_backend(plan.run, backend)
        if agreed != (backend.precision, backend.kind):
            settled = replace(demand, precision=agreed.precision, kind=agreed.kind)
            backend = choose_backend(bundle, settled)
        self._predictor = Predictor(bundle, backend, top_k=self._rows.top_k)
        opened.callback(self._predictor.close)
        is_explained = self._rows.heatmaps != "none"
        self._explainer = make_explainer(bundle, self._predictor) if is_explained else None
        self._backend = self._predictor.name
        if self._rows.gpu_decode == "on":
            gpu = share_with_gpu(self._planned, bundle, self._pool, self._predictor)
            if gpu is not None:
                opened.callback(gpu.close)
                self._backend += ", some JPEGs decoded there"

    def score(self, shard: Shard) -> ShardSummary:
        """Score and commit one shard; an expected error goes into the summary, others continue."""
        start_s = time.monotonic()
        try:
            with self._clock.shard():
                commit = self._score(shard)
                stages, num_bytes = self._clock.take()
                self._get_help_if_starving(stages)
        except ImgclsError as error:
            return ShardSummary.of_error(shard, error)
        return ShardSummary(
            shard.shard_id,
            commit.num_rows,
            time.monotonic() - start_s,
            self._backend,
            commit.status_counts,
            commit.num_failed_again,
            num_bytes=num_bytes,
            stages=stages,
        )

    def _score(self, shard: Shard) -> Commit:
        planned = self._planned.of(shard)
        spec, num_planned = self._preprocess_spec, self._plan.counts["planned"]
        tile_rows = TileRows(planned) if self._rows.write_tiles else None
        scored = score_shard(
            planned,
            predictor=self._predictor,
            pool=self._pool,
            provenance=self._provenance,
            row_options=self._rows,
            tile_rows=tile_rows,
            clock=self._clock,
            remote=self._remote,
            access=self._access,
            facts=ShardFacts(spec, num_planned, planned.num_rows, self._known_bits),
            heatmaps=self._new_heatmaps(planned.num_rows),
        )
        if shard == next(iter(self._plan.shards())):  # whoever has it: a run says it once
            _tell_seen(scored.rows, self._preprocess_spec)
        with self._clock.busy("write", scored.rows.num_rows):
            return commit_shard(
                self._plan.run,
                shard.shard_id,
                scored.rows,
                num_failed_again=count_failed_again(planned, scored.rows),
                decoders=self._decoders,
                facts=scored.facts,
                greys=scored.greys,
                tiles=None if tile_rows is None else tile_rows.to_table(),
            )

    def _new_heatmaps(self, num_rows: int) -> ShardHeatmaps | None:
        which, explainer = self._rows.heatmaps, self._explainer
        if which == "none" or explainer is None:
            return None
        num_planned = self._plan.counts["planned"]
        return ShardHeatmaps(explainer, self._preprocess_spec, which, num_planned, num_rows)

    def _get_help_if_starving(self, stages: StageDicts) -> None:
        """Let others decode too from the next shard on, if the stages so far show the need."""
        if self._make_remote is None:
            return
        with self._lock:
            self._stages_so_far = add_stages(self._stages_so_far, stages)
            starvation = describe_starvation(self._stages_so_far)
            if starvation and self._remote is None:
                log.warning("%s: nodes without a GPU decode for it now", starvation)
                self._remote = self._make_remote()

    def close(self) -> None:
        """End the decoders, and let go of the device."""
        self._opened.close()


def _from_all_over(planned: PlannedRows) -> list[GetRequest]:
    """Return what to read where nothing of a shard can be read: a few images of the whole run."""
    found = chain.from_iterable(spread_requests(planned, MAX_REFUSED_IN_A_ROW))
    return [replace(request, index=index) for index, request in enumerate(found)]


@dataclass(frozen=True)
class _Agreed:
    """precision.json."""

    precision: Precision
    kind: Kind | None = None
    """What runs the network; runs of before say nothing of it."""


def agree_on_backend(run: Run, mine: Backend) -> Way:
    """Return how the network of a run is run: as by the worker that came first, wherever that was.

    Machines may differ, and so may what was measured by the next start: the rows of one run must
    not. A worker that lacks the kind takes another, in the same precision.
    """
    ours = _Agreed(cast(Precision, mine.precision), mine.kind)
    first = put_first(run.precision, record_text(ours))
    agreed = parse_record(first, run.precision, ConfigError, _Agreed)
    return Way(agreed.precision, agreed.kind or mine.kind)


def _tell_seen(rows: pa.Table, spec: PreprocessSpec) -> None:
    """Say what the model sees of the pictures of a shard."""
    both = zip(rows["width_px"].to_pylist(), rows["height_px"].to_pylist(), strict=True)
    sizes = [(width_px, height_px) for width_px, height_px in both if width_px and height_px]
    if not sizes:
        return
    seen = measure_seen(sizes, spec)
    much_is_cut = seen.median_fraction < FEW_SEEN
    log.log(logging.WARNING if much_is_cut else logging.INFO, "%s", seen.describe())
