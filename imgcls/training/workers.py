"""Run a function on N Ray Train workers that form one torch process group.

In: a function of (argument, place, show). Out: what it returned on rank 0. Invariants: Ray only
starts, watches and restarts; what is trained, and from which checkpoint, is the function's
business. What only the user can mend is raised as itself and not tried again; anything else is,
`max_failures` times, and then the run can be resumed.

The workers' log and progress travel through a mailbox actor: Ray's own forwarding would print every
rank's lines.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, wait
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import ray
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchTrainer, get_device

from imgcls import cluster
from imgcls.cluster import ClusterResources
from imgcls.config.values import Device
from imgcls.errors import BudgetExceededError, ConfigError, ImgclsError, RunStoppedError
from imgcls.logs import Progress
from imgcls.model.predict import set_num_threads
from imgcls.training.mailbox import Mailbox, Sender
from imgcls.training.place import Place

POLL_EVERY_S = 0.5
_EXIT_CODES_OF_USERS = (ConfigError.exit_code, BudgetExceededError.exit_code)

log = logging.getLogger(__name__)


def run_on_workers(
    function: Callable[[Any, Place, Callable[[int, str], None]], dict[str, Any]],
    argument: object,
    *,
    name: str,
    num_workers: int,
    min_workers: int,
    device: Device,
    max_failures: int,
    progress: Progress,
) -> dict[str, Any]:
    """Run `function(argument, place, show)` on every worker and return rank 0's result.

    Args:
        function: importable by name on the workers.
        argument: picklable; sent once, through Ray's object store.
        name: of the run, for Ray's logs.
        num_workers: 1 or more.
        min_workers: go on with so many where nodes are lost; 0 waits for all.
        device: "auto" gives each worker a GPU where there are enough.
        max_failures: how often the group is started again after a worker died.
        progress: shows what rank 0 passes to `show`.

    Raises:
        ConfigError: more workers than CPUs or GPUs.
        ImgclsError: the function's own error.
        RunStoppedError: workers died more often than that.
    """
    with cluster.connected() as resources, TemporaryDirectory(prefix="imgcls-train-") as scratch:
        num_cpus = cpus_per_worker(resources, num_workers)
        mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
        # type: the annotations of ray.train are those of Ray Train V1.
        trainer = TorchTrainer(
            _run_rank,  # type: ignore[arg-type]
            train_loop_config={
                "function": function,
                "argument": ray.put(argument),
                "mailbox": mailbox,
                "num_cpus": num_cpus,
            },
            scaling_config=ScalingConfig(
                num_workers=(min_workers, num_workers) if min_workers else num_workers,  # type: ignore[arg-type]
                use_gpu=use_gpus(resources, num_workers, device),
                resources_per_worker={"CPU": num_cpus},
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                name=name,
                storage_path=scratch,  # Ray's own notes; nothing that we read again
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=[_StopOnOurErrors()],  # type: ignore[list-item]
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        with progress:
            return _fit(trainer, lambda: ray.get(mailbox.take.remote()).show(progress))


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


def use_gpus(resources: ClusterResources, num_workers: int, device: Device) -> bool:
    """Say whether each worker gets a GPU.

    Raises:
        ConfigError: "cuda" is asked for and there are fewer GPUs than workers.
    """
    if device == "cuda" and resources.num_gpus < num_workers:
        raise ConfigError(
            f"--device cuda --num-workers {num_workers}: Ray sees {resources.num_gpus} GPUs; "
            "use fewer workers or --device cpu"
        )
    return device != "cpu" and resources.num_gpus >= num_workers


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
    with Sender(settings["mailbox"], is_first=place.rank == 0) as sender:
        result = settings["function"](ray.get(settings["argument"]), place, sender.show)
        assert isinstance(result, dict)
        return result


def _fit(trainer: TorchTrainer, poll: Callable[[], None]) -> dict[str, Any]:
    """Run the trainer, polling meanwhile; raise an error of ours as itself."""
    fitting: Future[Any] = Future()

    def fit() -> None:
        try:
            fitting.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001  # raised again below
            fitting.set_exception(error)

    # In a thread: Ray would take over SIGINT in the main one, and nothing could be shown meanwhile.
    Thread(target=fit, name="imgcls-ray-train", daemon=True).start()
    try:
        while not wait([fitting], timeout=POLL_EVERY_S).done:
            poll()
        poll()
        return dict(fitting.result().return_value)
    except TrainingFailedError as error:
        raise _own_error(error) from None


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
