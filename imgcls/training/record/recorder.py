"""What becomes of each step and epoch: progress, log lines, checkpoints, and a stop when asked.

In: reports of the loop, on rank 0. Out: stderr, the run's log, its checkpoints. Invariant: the log
of a checkpoint's epoch is on its way before the checkpoint is, so a resumed run finds its lines.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from imgcls.training.optim.loop import StepReport
from imgcls.training.optim.train_state import TrainState
from imgcls.training.record.checkpoint import CheckpointSchedule, CheckpointWriter
from imgcls.training.record.step_log import RunLog
from imgcls.training.record.trackers import Tracker

Show = Callable[[int, str], None]

log = logging.getLogger(__name__)


class Recorder:
    """Writes down what the loop reports.

    Args:
        run_uri: prefix of the run.
        state: the run's, already resumed.
        writer: writes the checkpoints.
        every: how often, as --checkpoint-every has it.
        show: takes (images, note) for the progress.
        make_trackers: those who are told each epoch, too.
    """

    def __init__(
        self,
        run_uri: str,
        state: TrainState,
        writer: CheckpointWriter,
        every: str,
        show: Show,
        make_trackers: Sequence[Callable[[], Tracker]] = (),
    ) -> None:
        self._state, self._writer, self._show = state, writer, show
        self._schedule = CheckpointSchedule(every)
        self._log = RunLog(
            run_uri,
            state.run_id,
            epoch=state.epoch,
            step=state.step,
            make_trackers=make_trackers,
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._log)
        return self

    def is_due(self, total_steps: int) -> bool:
        """Say whether a checkpoint is to be written after this optimizer step, which comes next."""
        return self._schedule.is_due(total_steps)

    def after_step(self, report: StepReport) -> None:
        """Record a step; after the last one before a stop, return when a checkpoint is written."""
        self._show(report.num_images, f"loss {report.loss:.4f}")
        self._log.add_step(
            epoch=report.epoch,
            step=report.step,
            total_steps=report.total_steps,
            loss=report.loss,
            lr=report.lr,
            num_images=report.num_images,
        )
        if report.is_due:
            self._checkpoint()
        if report.is_last:
            self._writer.wait()

    def after_epoch(self, numbers: dict[str, Any]) -> None:
        """Record an epoch."""
        self._log.add_epoch(numbers)
        log.info("%s", _describe(numbers))

    def after_training(self) -> None:
        """Secure the result: measuring and registering may fail, for reasons of the store."""
        if self._schedule.is_on:
            self._writer.write(self._state.snapshot())

    def _checkpoint(self) -> None:
        self._log.flush()
        self._writer.write(self._state.snapshot())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _describe(numbers: dict[str, Any]) -> str:
    measured = f"train loss {numbers['train_loss']:.4f}"
    if numbers["train_accuracy"] is not None:
        measured += f", accuracy {numbers['train_accuracy']:.4f}"
    if "val_loss" in numbers:
        measured += f"; val loss {numbers['val_loss']:.4f}, accuracy {numbers['val_accuracy']:.4f}"
    if numbers.get("val_auroc") is not None:
        measured += f", AUROC {numbers['val_auroc']:.4f}"
    return (
        f"epoch {numbers['epoch']}: {measured}; "
        f"{numbers['images_per_s']:.0f} images/s, {numbers['waited_fraction']:.0%} of the time "
        "waiting for data"
    )
