"""The scoring flow from top to bottom: model -> plan -> shards -> commits -> published night.

In: a ScoreConfig. Out: the result of the run as plain values. Invariant: this file alone knows all
stages; every effect they have is safe to repeat, so the same command again finishes what was
stopped anywhere.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

from imgcls import cluster
from imgcls.config.scoring import ScoreConfig
from imgcls.config.values import check_name
from imgcls.errors import ConfigError, ImgclsError, ShardFailedError, StorageError
from imgcls.image.spec import spec_digest
from imgcls.logs import Progress
from imgcls.model.artifact import read_bundle
from imgcls.model.registry import resolve
from imgcls.published import Manifest, published_uri, read_manifest
from imgcls.schema import Status
from imgcls.scoring.budget import Budget
from imgcls.scoring.cleanup import refuse_rolled_back
from imgcls.scoring.commit import read_commits
from imgcls.scoring.listing import covers, list_source
from imgcls.scoring.plan import (
    MAX_SHARD_SIZE,
    MIN_SHARD_SIZE,
    Plan,
    Shard,
    Staging,
    derive_shard_size,
    read_plan,
    run_uri,
    stage,
    write_plan,
)
from imgcls.scoring.publish import publish
from imgcls.scoring.worker import ShardSummary, ShardWorker, WorkerOptions
from imgcls.storage.uri import canonical, join

log = logging.getLogger(__name__)

# Two shards overlap in a worker: the next one's first reads start before the last one's last batch
# ends.
SHARDS_IN_FLIGHT = 2
# So many shards that the store failed, one after the other: it is down, not slow.
MAX_FAILED_IN_A_ROW = 8
# A crashing actor is replaced and its shard tried again this often, then the run ends, resumable.
MAX_ACTOR_RESTARTS = 3
_SAME_ON_RESUME = ("source", "model", "precision", "top_k", "write_probs", "write_embedding")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score a source and publish its predictions.

    Raises:
        ConfigError: a flag, the source or the model is wrong; nothing was written.
        BudgetExceededError: too many images failed; commits are kept, nothing is published.
        ShardFailedError: some shards could not be finished; the same run id resumes.
    """
    start_s = time.monotonic()
    check_config(config)
    config = replace(config, source=canonical(config.source), output=canonical(config.output))
    run_id = config.run_id or new_run_id()
    refuse_rolled_back(config.output, run_id)
    plan = read_plan(config.output, run_id) or make_plan(config, run_id)
    check_same_run(config, plan)
    return finish_run(config, plan) | {"elapsed_s": round(time.monotonic() - start_s, 3)}


def finish_run(
    config: ScoreConfig, plan: Plan, before_manifest: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Do what is left of a planned run: uncommitted shards, then parts, then the manifest."""
    log.info(
        "run %s: %d images in %d shards", plan.run_id, plan.counts["planned"], len(plan.shard_rows)
    )
    num_scored, engines = 0, list[str]()
    manifest = read_manifest(published_uri(config.output, plan.date, plan.run_id))
    if manifest is None:
        num_scored, engines = score_plan(config, plan)
        run = run_uri(config.output, plan.run_id)
        commits = {commit.shard_id: commit for commit in read_commits(run)}
        manifest = publish(config.output, plan, commits, before_manifest)
    return describe_run(config.output, plan, manifest, num_scored) | {"engines": engines}


def check_config(config: ScoreConfig) -> None:
    """Refuse flags that cannot work, before anything is read or written."""
    if config.run_id:
        check_name(config.run_id, "--run-id")
    if config.date:
        try:
            written = date.fromisoformat(config.date).isoformat()
        except ValueError:
            written = ""
        if written != config.date:
            raise ConfigError(f"--date {config.date}: not a date; write it as 2026-11-22")
    if config.shard_size and not MIN_SHARD_SIZE <= config.shard_size <= MAX_SHARD_SIZE:
        raise ConfigError(
            f"--shard-size {config.shard_size}: must be {MIN_SHARD_SIZE} to {MAX_SHARD_SIZE}"
        )
    for name in ("top_k", "batch_size"):
        if getattr(config, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1"
            )
    if not 0 <= config.max_failed_fraction <= 1:
        raise ConfigError(f"--max-failed-fraction {config.max_failed_fraction}: must be 0 to 1")
    if covers(config.source, join(config.output, "part-00000.parquet")):
        raise ConfigError(
            f"--output {config.output} lies inside --source {config.source}: predictions would "
            "be scored as images. Choose an output beside the source."
        )


def new_run_id() -> str:
    """Return a readable run id that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class PlannedModel:
    """The model of a run, as it was when the run was planned."""

    reference: str
    uri: str
    digest: str
    spec_digest: str


def resolve_model(reference: str) -> PlannedModel:
    """Resolve a reference and read its bundle whole: a damaged one is found before the plan."""
    uri = resolve(reference)
    bundle = read_bundle(uri)
    digest = spec_digest(bundle.decode_spec, bundle.preprocess_spec)
    return PlannedModel(reference, uri, bundle.digest, digest)


def make_plan(config: ScoreConfig, run_id: str) -> Plan:
    """Resolve the model, list the source and write the plan."""
    model = resolve_model(config.model)
    with stage(list_source(config.source)) as staging:
        return write_run_plan(config, run_id, model, staging, {})


def write_run_plan(
    config: ScoreConfig,
    run_id: str,
    model: PlannedModel,
    staging: Staging,
    difference: dict[str, int],
) -> Plan:
    """Write the plan of the staged objects for this model."""
    return write_plan(
        config.output,
        staging,
        run_id=run_id,
        date=config.date or today(),
        source=config.source,
        model=model.reference,
        model_uri=model.uri,
        model_digest=model.digest,
        spec_digest=model.spec_digest,
        config=asdict(config),
        shard_size=derive_shard_size(staging.count(), config.shard_size),
        difference=difference,
    )


def today() -> str:
    """Return the date in UTC, as partitions write it."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def check_same_run(config: ScoreConfig, plan: Plan) -> None:
    """Refuse to resume a run with flags that would change its rows."""
    for name in _SAME_ON_RESUME:
        asked, planned = getattr(config, name), plan.config[name]
        if asked != planned:
            raise ConfigError(
                f"run {plan.run_id} was planned with --{name.replace('_', '-')} {planned}, not "
                f"{asked}: resume it with the same flags, or choose another --run-id"
            )


def score_plan(config: ScoreConfig, plan: Plan) -> tuple[int, list[str]]:
    """Score and commit every shard that has no commit yet.

    Returns:
        The rows committed now, and the engines that predicted them: one, unless workers differ.
    """
    budget = Budget(config.max_failed_fraction)
    committed = set()
    for commit in read_commits(run_uri(config.output, plan.run_id)):
        committed.add(commit.shard_id)
        budget.add(commit.status_counts)
    todo = [shard for shard in plan.shards() if shard.shard_id not in committed]
    if committed:
        log.info("%d shards are committed already, %d to do", len(committed), len(todo))
    budget.check()
    if not todo:
        return 0, []
    run_shards = run_on_ray if use_ray(config.executor) else run_locally
    num_rows = 0
    engines: set[str] = set()
    failed: list[ShardSummary] = []
    failed_in_a_row = 0
    summaries = run_shards(config, plan, todo)
    try:
        with Progress("scoring", sum(shard.num_images for shard in todo), "images") as progress:
            for summary in summaries:
                if summary.error_kind:
                    failed.append(_only_if_transient(summary))
                    failed_in_a_row += 1
                    if failed_in_a_row == MAX_FAILED_IN_A_ROW:
                        break
                    continue
                failed_in_a_row = 0
                num_rows += summary.num_rows
                engines.add(summary.engine)
                budget.add(summary.status_counts)
                progress.advance(summary.num_rows, budget.note())
                budget.check()
    finally:
        summaries.close()
    if failed:
        raise ShardFailedError(
            f"{len(failed)} of {len(todo)} shards could not be finished, the first "
            f"({failed[0].shard_id}) because: {failed[0].error_message}. Start the same command "
            f"with --run-id {plan.run_id} to do only those."
        )
    return num_rows, sorted(engines)


def _only_if_transient(summary: ShardSummary) -> ShardSummary:
    """Let a shard that the store failed wait for the next start; raise any other error."""
    error = summary.error()
    if isinstance(error, StorageError) and error.exit_code == 1:
        log.warning("shard %s failed: %s", summary.shard_id, error)
        return summary
    assert error is not None, "called for a failed shard"
    raise error


def use_ray(executor: str) -> bool:
    """Resolve --executor: auto takes Ray inside a Ray job or when RAY_ADDRESS is set."""
    return executor == "ray" or (executor == "auto" and cluster.in_cluster())


def worker_options(config: ScoreConfig, num_cpus: int) -> WorkerOptions:
    """Pick the values of a config that a worker needs."""
    return WorkerOptions(
        num_cpus=num_cpus,
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        num_decoders=config.num_decoders,
        top_k=config.top_k,
        write_probs=config.write_probs,
        write_embedding=config.write_embedding,
    )


def run_locally(config: ScoreConfig, plan: Plan, todo: list[Shard]) -> Generator[ShardSummary]:
    """Score shards in this process, SHARDS_IN_FLIGHT at a time."""
    num_cpus = len(os.sched_getaffinity(0))
    with ShardWorker(config.output, plan, worker_options(config, num_cpus)) as worker:
        threads = ThreadPoolExecutor(SHARDS_IN_FLIGHT, thread_name_prefix="shard")
        try:
            yield from _as_completed(threads, worker, todo)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _as_completed(
    threads: ThreadPoolExecutor, worker: ShardWorker, todo: Iterable[Shard]
) -> Iterator[ShardSummary]:
    running: set[Future[ShardSummary]] = set()
    for shard in todo:
        running.add(threads.submit(worker.score, shard))
        if len(running) > SHARDS_IN_FLIGHT:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    for future in running:
        yield future.result()


@dataclass(frozen=True)
class ActorLayout:
    """How many actors, and what each of them owns."""

    num_actors: int
    cpus_per_actor: int
    gpus_per_actor: int


def lay_out_actors(
    resources: cluster.ClusterResources, num_actors: int, cpus_per_actor: int
) -> ActorLayout:
    """Derive the actor pool: one actor per GPU or else per node, and a CPU left for Ray.

    Raises:
        ConfigError: the cluster cannot hold the actors asked for.
    """
    # Ray's own read and driver tasks need a CPU: an actor pool that takes every one hangs
    # (ray#44687).
    usable_cpus = max(1, resources.num_cpus - 1)
    gpus_per_actor = 1 if resources.num_gpus else 0
    num_actors = num_actors or resources.num_gpus or min(resources.num_nodes, usable_cpus)
    cpus_per_actor = cpus_per_actor or max(1, usable_cpus // num_actors)
    if (
        num_actors * cpus_per_actor > usable_cpus
        or num_actors * gpus_per_actor > resources.num_gpus
    ):
        raise ConfigError(
            f"{num_actors} actors of {cpus_per_actor} CPUs and {gpus_per_actor} GPUs do not fit: "
            f"the cluster has {resources.num_cpus} CPUs (one is kept for Ray) and "
            f"{resources.num_gpus} GPUs on {resources.num_nodes} nodes. Lower --num-actors or "
            "--cpus-per-actor."
        )
    return ActorLayout(num_actors, cpus_per_actor, gpus_per_actor)


def run_on_ray(config: ScoreConfig, plan: Plan, todo: list[Shard]) -> Generator[ShardSummary]:
    """Score shards on Ray; where a lost node ends the whole data set, the rest goes on anew."""
    with cluster.connected() as resources:
        import ray.exceptions

        layout = lay_out_actors(resources, config.num_actors, config.cpus_per_actor)
        log.info("Ray: %d actors of %d CPUs", layout.num_actors, layout.cpus_per_actor)
        left = {shard.shard_id: shard for shard in todo}
        num_tries = 0
        while left:
            num_tries += 1
            # Closed before Ray is: an iteration that outlives it ends the process without a word.
            try:
                with closing(_schedule(config, plan, list(left.values()), layout)) as summaries:
                    for summary in summaries:
                        del left[summary.shard_id]
                        yield summary
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                if num_tries > MAX_ACTOR_RESTARTS:
                    raise ShardFailedError(
                        f"Ray gave up on a worker: {reason}. Look at the cluster; --run-id "
                        f"{plan.run_id} does what is left."
                    ) from error
                log.warning("Ray gave up, %d shards go on anew: %s", len(left), reason)
            else:
                return


def _schedule(
    config: ScoreConfig, plan: Plan, shards: list[Shard], layout: ActorLayout
) -> Generator[ShardSummary]:
    """Let Ray Data schedule the shards, one row each, over a fixed pool of actors."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items(
        [asdict(shard) for shard in shards], override_num_blocks=len(shards)
    ).map_batches(
        ShardActor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=layout.num_actors,
            max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT,
            max_concurrent_calls_per_actor=SHARDS_IN_FLIGHT,
            enable_true_multi_threading=True,
        ),
        fn_constructor_kwargs={
            "output": config.output,
            "run_id": plan.run_id,
            "options": worker_options(config, layout.cpus_per_actor),
        },
        num_cpus=layout.cpus_per_actor,
        num_gpus=layout.gpus_per_actor,
        ray_remote_args_fn=finite_retries,
    )
    # type: it is a generator, and typed as an iterator.
    with closing(iter(dataset.iter_rows())) as rows:  # type: ignore[type-var]
        for row in rows:
            yield ShardSummary(**json.loads(row["summary"]))


def finite_retries() -> dict[str, int]:
    """Return Ray's retry limits for an actor; the default is to retry a crash for ever."""
    return {"max_restarts": MAX_ACTOR_RESTARTS, "max_task_retries": MAX_ACTOR_RESTARTS}


class ShardActor:
    """A ShardWorker as Ray Data wants it: one batch of one shard in, one summary out."""

    def __init__(self, output: str, run_id: str, options: WorkerOptions) -> None:
        plan = read_plan(output, run_id)
        assert plan is not None, "the driver wrote the plan before it started actors"
        # Ray would restart an actor whose constructor fails, and hide the reason: the shards tell.
        self._error: ImgclsError | None = None
        try:
            self._worker = ShardWorker(output, plan, options).__enter__()
        except ImgclsError as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the one shard of this batch."""
        shard = Shard(
            shard_id=str(batch["shard_id"][0]),
            path=str(batch["path"][0]),
            row_group=int(batch["row_group"][0]),
            num_images=int(batch["num_images"][0]),
        )
        if self._error is not None:
            summary = ShardSummary.of_error(shard, self._error)
        else:
            summary = self._worker.score(shard)
        return {"summary": [json.dumps(asdict(summary))]}


def describe_run(output: str, plan: Plan, manifest: Manifest, num_scored: int) -> dict[str, Any]:
    """Return the run's result as it is printed; its counts are the manifest's."""
    folder = published_uri(output, plan.date, plan.run_id)
    num_rows = manifest.counts["rows"]
    num_ok = manifest.status_counts.get(Status.OK, 0)
    return {
        "run_id": plan.run_id,
        "output": folder,
        "parts": [join(folder, part["path"]) for part in manifest.parts],
        "model_digest": plan.model_digest,
        "listed": plan.counts["listed"],
        "skipped": plan.counts["skipped"],
        "rows": num_rows,
        "rows_ok": num_ok,
        "rows_not_ok": num_rows - num_ok,
        "status_counts": manifest.status_counts,
        "rows_scored_now": num_scored,
    }
