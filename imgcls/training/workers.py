"""Run a function on N Ray Train workers that form one torch process group.

In: a function of (argument, place, show). Out: what it returned on rank 0. Invariants: Ray only
starts, watches and restarts; what is trained, and from which checkpoint, is the function's
business. What only the user can mend is raised as itself and not tried again; anything else is,
`max_failures` times, and then the run can be resumed.

A node that is about to be taken away (Ray calls it draining: by its autoscaler, by KubeRay, or by
`ray drain-node` from a machine's own notice) is no failure: the ranks stop after the same step, the
first one writes a checkpoint, and new workers go on from it on the nodes that stay. A SIGTERM to
this process reaches the ranks in the same way and ends the run, resumable. A worker that vanishes
without a notice costs what came after the last checkpoint.

The workers' log and progress travel through a mailbox actor: Ray's own forwarding would print every
rank's lines.
"""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from tempfile import TemporaryDirectory
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

from imgcls import cluster
from imgcls.cluster import ClusterResources
from imgcls.config.values import Device, WorkerRange
from imgcls.errors import BudgetExceededError, ConfigError, ImgclsError, RunStoppedError
from imgcls.logs import Progress
from imgcls.model.predict import set_num_threads
from imgcls.training.mailbox import Mailbox, Sender
from imgcls.training.place import Place, refuse_mig_slices
from imgcls.training.stop import StopRequest

POLL_EVERY_S = 0.5
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
        ConfigError: more workers than CPUs or GPUs.
        ImgclsError: the function's own error.
        RunStoppedError: workers died more often than that, or SIGTERM came.
    """
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", _RAY_LOOKS_EVERY_S)
    with (
        cluster.connected() as resources,
        TemporaryDirectory(prefix="imgcls-train-") as scratch,
        StopRequest() as stop,
        progress,
    ):
        num_cpus = cpus_per_worker(resources, workers.most)
        mailbox = _open_mailbox()
        settings = {
            "function": function,
            "argument": ray.put(argument),
            "mailbox": mailbox,
            "num_cpus": num_cpus,
        }
        scaling = ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.is_elastic else workers.most,  # type: ignore[arg-type]  # the annotations of ray.train are those of Ray Train V1
            use_gpu=use_gpus(resources, workers, device),
            resources_per_worker={"CPU": num_cpus},
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
                    callbacks=[_StopOnOurErrors()],  # type: ignore[list-item]  # as above
                    logging_config=LoggingConfig(log_level="CRITICAL"),
                ),
            )
            result = _fit(trainer, mailbox, progress, stop)
            if _STOPPED not in result:
                return result | {"num_preemptions": num_preemptions}
            if stop.requested:
                raise RunStoppedError(result[_STOPPED])
            num_preemptions += 1
            log.warning("a node is about to be taken away: new workers go on from the checkpoint")


def _open_mailbox() -> Any:  # noqa: ANN401  # Ray has no types
    """Start the mailbox on this node: any other may be taken away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox)
    return mailbox.options(scheduling_strategy=here).remote()


def cpus_per_worker(resources: ClusterResources, num_workers: int) -> int:
    """Return the CPUs that each worker may have; one stays free where there are enough.

    Raises:
        ConfigError: more workers than CPUs, on a Ray of our own, which will not grow.
    """
    if num_workers > resources.num_cpus and not cluster.in_cluster():
        raise ConfigError(
            f"--num-workers {num_workers}: this machine has {resources.num_cpus} CPUs; use fewer, "
            "or a cluster (RAY_ADDRESS)"
        )
    # A worker has to fit on one node.
    cpus_per_node = resources.num_cpus // max(1, resources.num_nodes)
    return max(1, min((resources.num_cpus - 1) // num_workers, cpus_per_node))


def use_gpus(resources: ClusterResources, workers: WorkerRange, device: Device) -> bool:
    """Say whether each worker gets a GPU.

    Raises:
        ConfigError: "cuda" is asked for and there are fewer GPUs than workers.
    """
    has_enough = resources.num_gpus >= workers.fewest
    if device == "cuda" and not has_enough:
        raise ConfigError(
            f"--device cuda with {workers.fewest} workers: Ray sees {resources.num_gpus} GPUs; "
            "give a lower --num-workers or --device cpu"
        )
    return device != "cpu" and has_enough


class _StopOnOurErrors(UserCallback):
    """Ends the run where a worker raised what only the user can mend: another try would, too.

    Ray retries whatever a worker raises, but gives up at once when a callback does.
    """

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first such error in the controller."""
        del run_context
        for error in worker_exceptions.values():
            if isinstance(error, ImgclsError) and error.exit_code in _EXIT_CODES_OF_USERS:
                raise error


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
    with Sender(mailbox, is_first=place.rank == 0) as sender:
        try:
            result = settings["function"](ray.get(settings["argument"]), place, sender.show, stop)
        except RunStoppedError as error:
            # Not an error to Ray, which would count it as a failure.
            return {_STOPPED: str(error)}
        finally:
            ended.set()
        assert isinstance(result, dict)
        return result


def _look_for_notices(mailbox: Any, stop: StopRequest, ended: Event) -> None:  # noqa: ANN401  # Ray has no types
    """Set `stop.requested` once a node of the group is to go or, on rank 0, the driver says so.

    Every rank asks Ray in the same rhythm: get_preemption_info waits for all of them.
    """
    while not ended.wait(LOOK_FOR_NOTICES_EVERY_S):
        is_stopping = mailbox is not None and ray.get(mailbox.is_stopping.remote())
        if get_preemption_info() is not None or is_stopping:
            stop.requested = True
            return


def _fit(
    trainer: TorchTrainer,
    mailbox: Any,  # noqa: ANN401  # Ray has no types
    progress: Progress,
    stop: StopRequest,
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
            ray.get(mailbox.take.remote()).show(progress)
            if stop.requested and not stop_by_s:
                log.info("stopping after the next step")
                mailbox.stop.remote()
                stop_by_s = time.monotonic() + STOP_WITHIN_S
            if stop_by_s and time.monotonic() > stop_by_s:
                raise RunStoppedError(
                    f"stopped by SIGTERM; the workers wrote no checkpoint within {STOP_WITHIN_S:g} "
                    "s; the same command goes on from the last one"
                )
        ray.get(mailbox.take.remote()).show(progress)
        return dict(fitting.result().return_value)
    except TrainingFailedError as error:
        raise _own_error(error) from None
    except RayError as error:
        raise RunStoppedError(
            f"lost Ray: {str(error).strip().splitlines()[0]}; the same command goes on from the "
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
        "the same command goes on from the last checkpoint"
    )
    return next(ours, stopped)
