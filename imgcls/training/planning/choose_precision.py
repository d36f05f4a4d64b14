"""`train --precision auto`: bf16, or fp16, where that is faster here and its first steps agree.

In: a plan, a rank's place. Out: the plan, with a precision in its recipe. Invariant: one run has
one precision: its first start measures, and every later one, wherever it runs, takes the same.

What is measured are a few training steps of the very network on images of noise, in about a second;
nothing of them is kept.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import nn

from imgcls.config.choices import TrainPrecision
from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.image.preprocess import normalize
from imgcls.inference.backends.arithmetic import gpu_has_bf16, has_fast_bf16, set_fp32_arithmetic
from imgcls.storage.objects import put_first, read
from imgcls.storage.records import parse_record, record_text
from imgcls.storage.uri import join
from imgcls.training.optim.initial_model import initial_model
from imgcls.training.optim.precision import LossScale, autocast
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import TrainPlan

PRECISION: Final = "precision.json"  # in the run's folder
_NUM_ROWS: Final = 4
_NUM_STEPS: Final = 3  # the first warms up
_LR: Final = 1e-3
# A step that is not faster by this much is not worth a coarser one.
_MIN_SPEEDUP: Final = 1.1
# ResNet-18 at 64 px moves by 0.2 to 1 % in its first steps.
_MOST_MOVED: Final = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """precision.json: what a run trains in, and why."""

    precision: Literal["fp32", "bf16", "fp16"]
    because: str


def settle_precision(plan: TrainPlan, place: Place, state_facts: dict[str, object]) -> TrainPlan:
    """Return the plan with a precision that is not `auto`, the same on every rank and start.

    Args:
        plan: of the training.
        place: this rank.
        state_facts: takes in what was chosen and why, for the bundle.
    """
    if plan.recipe.precision != "auto":
        return plan
    chosen: Chosen = place.from_first(_agree(plan, place) if place.rank == 0 else None)
    state_facts["precision"] = asdict(chosen)
    if place.rank == 0:
        log.info("--precision auto trains in %s: %s", chosen.precision, chosen.because)
    return replace(plan, recipe=replace(plan.recipe, precision=chosen.precision))


def _agree(plan: TrainPlan, place: Place) -> Chosen:
    """Return what the first start of this run chose; choose, if that is this one."""
    uri = join(plan.run_uri, PRECISION)
    try:
        noted = read(uri)
    except ObjectMissingError:
        noted = put_first(uri, record_text(choose_precision(plan, place.device)))
    return parse_record(noted, uri, ConfigError, Chosen)


def choose_precision(plan: TrainPlan, device: torch.device) -> Chosen:
    """Return a precision, and why: by a measurement where the hardware has anything but fp32."""
    if plan.decode_spec.pixel_type != "uint8":
        return Chosen("fp32", "of a pixel of --depth 16 bf16 would keep 8 bits, fp16 11")
    low: Literal["bf16", "fp16"] = "bf16"
    if device.type == "cuda" and not gpu_has_bf16(device):
        low = "fp16"
    elif device.type != "cuda" and not has_fast_bf16():
        return Chosen("fp32", f"this {device.type} has no bf16 arithmetic")
    set_fp32_arithmetic("fp32")
    losses_32, seconds_32 = _first_steps(plan, device, "fp32")
    losses_16, seconds_16 = _first_steps(plan, device, low)
    exact_N, low_N = np.array(losses_32), np.array(losses_16)
    # By numpy: of Python's max, a NaN that is not the first is not the result.
    moved = float(np.max(np.abs(low_N - exact_N) / np.maximum(np.abs(exact_N), 1e-6)))
    speedup = seconds_32 / seconds_16
    if not moved <= _MOST_MOVED:  # written so that a NaN is refused too
        return Chosen("fp32", f"the first losses in {low} are others by {moved:.1%}")
    if speedup < _MIN_SPEEDUP:
        return Chosen("fp32", f"{low} is only {speedup:.2f} times as fast here")
    reason = f"{speedup:.1f} times as fast here, and the first losses agree within {moved:.2%}"
    return Chosen(low, reason)


def _first_steps(
    plan: TrainPlan, device: torch.device, precision: TrainPrecision
) -> tuple[list[float], float]:
    """Return the losses of a few steps, and the seconds of all but the first."""
    recipe = replace(plan.recipe, precision=precision)
    with _seeds_kept():
        model = initial_model(
            plan.config, len(plan.class_names), plan.decode_spec.num_channels, plan.adopted
        )
    model = model.to(device).train()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(recipe.seed)
    x_BCHW = torch.randint(0, 256, (_NUM_ROWS, *plan.shape_CHW), generator=generator)
    x_BCHW = normalize(x_BCHW.to(torch.uint8).to(device), plan.preprocess_spec)
    label_B = torch.arange(_NUM_ROWS, device=device) % len(plan.class_names)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=_LR, fused=True)
    scale = LossScale(device) if precision == "fp16" else None
    losses, start_s = list[float](), 0.0
    for step in range(_NUM_STEPS):
        if step == 1:
            start_s = time.perf_counter()
        with _seeds_kept():
            torch.manual_seed(step)  # of dropout
            with autocast(recipe, device):
                loss = nn.functional.cross_entropy(model(x_BCHW), label_B)
        optimizer.zero_grad()
        scaled = loss if scale is None else loss * scale.value
        scaled.backward()  # type: ignore[no-untyped-call]  # torch
        if scale is not None:
            optimizer.found_inf = scale.unscale(trained)  # type: ignore[attr-defined]
        optimizer.step()
        losses.append(float(loss.detach()))  # waits for the device
    return losses, time.perf_counter() - start_s


@contextmanager
def _seeds_kept() -> Iterator[None]:
    """Leave torch's generators as they were: what is measured decides no weight."""
    with torch.random.fork_rng():
        yield
