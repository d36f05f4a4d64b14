"""Run a function on N Ray Train workers that form one torch process group.

In: a function of (argument, place, show). Out: what it returned on rank 0. Invariants: Ray only
starts, watches and restarts; what is trained, and from which checkpoint, is the function's
business. What only the user can mend is raised as itself and not tried again; anything else is,
`max_failures` times, and then the run can be resumed.

A node that is about to be taken away (Ray calls it draining: by its autoscaler, by KubeRay, or by
`ray drain-node` from a machine's own notice) is not a failure: the ranks stop after the same step,
the first one writes a checkpoint, and new workers continue from it on the nodes that stay. A
SIGTERM to this process reaches the ranks in the same way and ends the run, resumable. A worker that
vanishes without a notice costs what came after the last checkpoint.

The workers' log and progress travel through a mailbox actor: Ray's own forwarding would print every
rank's lines.
"""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Event, Thread
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    get_preemption_info,
)
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imgcls import ray_cluster
from imgcls.config.choices import Device, WorkerRange
from imgcls.errors import BudgetExceededError, ConfigError, ImgclsError, RunStoppedError
from imgcls.inference.device import set_num_threads
from imgcls.progress import Progress
from imgcls.scratch import scratch_folder
from imgcls.training.ranks.mailbox import Mailbox, Sender
from imgcls.training.ranks.placement import Placement, place_workers
from imgcls.training.ranks.rank import Place, refuse_mig_slices
from imgcls.training.ranks.stop_request import StopRequest

POLL_EVERY_S = 0.5
# While no worker is at work: Ray waits for nodes, and tries again, without end and without a word.
SAY_EVERY_S = 10.0
LOOK_FOR_NOTICES_EVERY_S = 1.0
# Ray asks itself every 5 s which nodes are to go; some clouds give 30 s of notice.
_RAY_LOOKS_EVERY_S = "2"
# After SIGTERM: long enough for a step and a checkpoint, not for workers that wait for a machine.
STOP_WITHIN_S = 60.0
_STOPPED = "stopped"  # key of what a rank returns instead of a result
_EXIT_CODES_OF_USERS = (ConfigError.exit_code, BudgetExceededError.exit_code)

log = logging.getLogger(__name__)


def run_on_workers(
    function: Callable[[Any, Place, Callable[[int, str], None], StopRequest], dict[str, Any]],
    argument: object,
    *,
    name: str,
    workers: WorkerRange,
    device: Device,
    max_failures: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run `function(argument, place, show, stop)` on every worker and return rank 0's result.

    Args:
        function: importable by name on the workers. It raises RunStoppedError on every rank when
            `stop` is requested on one.
        argument: picklable; sent once, through Ray's object store.
        name: of the run, for Ray's logs.
        workers: how many.
        device: "auto" gives each worker a GPU where there are enough.
        max_failures: how often the group is started again after a worker died.
        progress: shows what rank 0 passes to `show`.

    Returns:
        Rank 0's result and num_preemptions: how often the workers moved because of a notice.

    Raises:
        ConfigError: more workers than fit on the CPUs and GPUs of the cluster's nodes.
        ImgclsError: the function's own error.
        RunStoppedError: workers died more often than that, or SIGTERM came.
    """
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", _RAY_LOOKS_EVERY_S)
    with (
        ray_cluster.connected() as resources,
        scratch_folder("train") as scratch,
        StopRequest() as stop,
        progress,
    ):
        placement = place_workers(resources, workers, device)
        mailbox = _open_mailbox()
        settings = {
            "function": function,
            "argument": ray.put(argument),
            "mailbox": mailbox,
            "num_cpus": placement.num_cpus,
        }
        scaling = ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.is_elastic else workers.most,  # type: ignore[arg-type]  # the annotations of ray.train are those of Ray Train V1
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.resources,
        )
        num_preemptions = 0
        while True:
            trainer = TorchTrainer(
                _run_rank,  # type: ignore[arg-type]  # as above
                train_loop_config=settings,
                scaling_config=scaling,
                run_config=RunConfig(  # type: ignore[call-arg]  # as above
                    name=f"{name}-{num_preemptions}",
                    storage_path=scratch,  # Ray's own notes; nothing that we read again
                    failure_config=FailureConfig(max_failures=max_failures),
                    callbacks=[_WatchErrors(mailbox)],  # type: ignore[list-item]  # as above
                    logging_config=LoggingConfig(log_level="CRITICAL"),
                ),
            )
            ray.get(mailbox.beat.remote())  # from now on its silence counts, again
            result = _fit(trainer, mailbox, progress, stop, Waiting(placement))
            if _STOPPED not in result:
                return result | {"num_preemptions": num_preemptions}
            if stop.requested:
                raise RunStoppedError(result[_STOPPED])
            num_preemptions += 1
            log.warning(
                "a node is about to be taken away: new workers continue from the checkpoint"
            )


def _open_mailbox() -> Any:  # noqa: ANN401  # Ray has no types
    """Start the mailbox on this node: any other may be taken away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox)
    return mailbox.options(scheduling_strategy=here).remote()


class _WatchErrors(UserCallback):
    """Ends the run where a worker raised what only the user can mend: another try would, too.

    Ray retries whatever a worker raises, but gives up at once when a callback does. Of its retries
    it says nothing that could be seen here, so this does.
    """

    def __init__(self, mailbox: Any) -> None:  # noqa: ANN401  # Ray has no types
        self._mailbox = mailbox

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first such error in the controller; write the others down."""
        del run_context
        for error in worker_exceptions.values():
            if isinstance(error, ImgclsError) and error.exit_code in _EXIT_CODES_OF_USERS:
                raise error
        for rank, error in worker_exceptions.items():
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._mailbox.write.remote(
                logging.WARNING,
                f"worker {rank} failed: {reason}; the workers are started again, from the last "
                "checkpoint, as often as --max-failures allows",
            )


def _run_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """Run on each worker, in torch's process group."""
    set_num_threads(settings["num_cpus"])
    place = Place.of_process_group(get_device())
    refuse_mig_slices(place)
    mailbox, stop, ended = settings["mailbox"], StopRequest(), Event()
    watch = Thread(
        target=_look_for_notices,
        args=(mailbox if place.rank == 0 else None, stop, ended),
        name="imgcls-notices",
        daemon=True,  # not joined: it may wait for a rank that has ended
    )
    watch.start()
    if place.rank == 0:
        Thread(target=_beat, args=(mailbox, ended), name="imgcls-beat", daemon=True).start()
    with Sender(mailbox, is_first=place.rank == 0) as sender:
        try:
            result = settings["function"](ray.get(settings["argument"]), place, sender.show, stop)
        except RunStoppedError as error:
            # Not an error to Ray, which would count it as a failure.
            result = {_STOPPED: str(error)}
        finally:
            ended.set()
        assert isinstance(result, dict)
        if place.rank == 0:
            mailbox.beat.remote(is_done=True)
        return result


def _beat(mailbox: Any, ended: Event) -> None:  # noqa: ANN401  # Ray has no types
    """Let the driver know that this rank has a place and is at work."""
    while not ended.is_set():
        mailbox.beat.remote()
        ended.wait(LOOK_FOR_NOTICES_EVERY_S)


def _look_for_notices(mailbox: Any, stop: StopRequest, ended: Event) -> None:  # noqa: ANN401  # Ray has no types
    """Set `stop.requested` once a node of the group is to go or, on rank 0, the driver says so.

    Every rank asks Ray in the same rhythm: get_preemption_info waits for all of them.
    """
    while not ended.wait(LOOK_FOR_NOTICES_EVERY_S):
        is_stopping = mailbox is not None and ray.get(mailbox.is_stopping.remote())
        if get_preemption_info() is not None or is_stopping:
            stop.requested = True
            return


class Waiting:
    """Says now and then that the workers have no place yet, and what the cluster has.

    Args:
        placement: what they are waiting for.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._num_said = 0

    def look(self, silent_s: float) -> None:
        """Say it once for each SAY_EVERY_S in which no worker was at work."""
        num_due = int(silent_s / SAY_EVERY_S)
        if num_due > self._num_said:
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray
            log.warning(
                "waiting for %s, for %.0f s now: the cluster has %s; free at the moment: %g CPUs, "
                "%g GPUs",
                self._placement.describe(),
                silent_s,
                ray_cluster.current_resources().describe(),
                free.get("CPU", 0),
                free.get("GPU", 0),
            )
        self._num_said = num_due


def _fit(
    trainer: TorchTrainer,
    mailbox: Any,  # noqa: ANN401  # Ray has no types
    progress: Progress,
    stop: StopRequest,
    waiting: Waiting,
) -> dict[str, Any]:
    """Run the trainer, showing progress meanwhile; raise an error of ours as itself."""
    fitting: Future[Any] = Future()

    def fit() -> None:
        try:
            fitting.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001  # raised again below
            fitting.set_exception(error)

    # In a thread: Ray would take over SIGINT in the main one, and nothing could be shown meanwhile.
    Thread(target=fit, name="imgcls-ray-train", daemon=True).start()
    stop_by_s = 0.0
    try:
        while not wait([fitting], timeout=POLL_EVERY_S).done:
            post = ray.get(mailbox.take.remote())
            post.show(progress)
            waiting.look(post.silent_s)
            if stop.requested and not stop_by_s:
                log.info("stopping after the next step")
                mailbox.stop.remote()
                stop_by_s = time.monotonic() + STOP_WITHIN_S
            if stop_by_s and time.monotonic() > stop_by_s:
                raise RunStoppedError(
                    f"stopped by SIGTERM; the workers wrote no checkpoint within {STOP_WITHIN_S:g} "
                    "s; the same command continues from the last one"
                )
        ray.get(mailbox.take.remote()).show(progress)
        return dict(fitting.result().return_value)
    except TrainingFailedError as error:
        raise _own_error(error) from None
    except RayError as error:
        raise RunStoppedError(
            f"lost Ray: {str(error).strip().splitlines()[0]}; the same command continues from the "
            "last checkpoint"
        ) from error


def _own_error(error: TrainingFailedError) -> ImgclsError:
    """Return what the workers raised, or that they died."""
    if isinstance(error, ControllerError):
        failures = [error.controller_failure]
    else:
        failures = list(getattr(error, "worker_failures", {}).values())
    ours = (failure for failure in failures if isinstance(failure, ImgclsError))
    reasons = "; ".join(str(failure).strip().splitlines()[0] for failure in failures)
    stopped = RunStoppedError(
        f"training stopped, its workers failed more often than --max-failures allows: {reasons}; "
        "the same command continues from the last checkpoint"
    )
    return next(ours, stopped)
