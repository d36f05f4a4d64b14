"""What a bundle is proven by: generated files, the input they give, and what the model says of it.

In: a plan, the state after training. Out: files, their input, probabilities. Invariants: no image
of DATA is among them; the probabilities are those of the best weights in fp32 on the CPU.

Shape legend: B files, C channels, H, W height and width of the input, K classes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from imgcls.errors import ConfigError
from imgcls.image.crops import decode_one
from imgcls.inference.passes import Failure, Passes
from imgcls.model.bundle import make_golden
from imgcls.model.golden_files import make_files
from imgcls.training.optim.initial_model import model_of_plan
from imgcls.training.optim.train_state import TrainState
from imgcls.training.train_plan import TrainPlan

# Another arithmetic may give another class where two are this close, and no fault is in that.
_TIE: Final = 0.1
_MIN_KEPT: Final = 6


@dataclass(frozen=True, eq=False)
class Golden:
    """Files in order, and what becomes of each."""

    files: dict[str, bytes]
    x_BCHW: torch.Tensor
    probs_BK: torch.Tensor


def choose_golden(plan: TrainPlan, state: TrainState) -> Golden:
    """Return generated files that the model is sure enough of.

    Without those that the model fails on: a bundle with one could not be proven anywhere.

    Raises:
        ConfigError: it fails on all.
    """
    files = make_files()
    crops = [decode_one(data, plan.decode_spec, plan.preprocess_spec)[0] for data in files.values()]
    x_BCHW = torch.from_numpy(np.stack([crop.x_CHW for crop in crops]))
    model = model_of_plan(plan)
    model.load_state_dict(state.best)
    found = Passes(len(x_BCHW), check=lambda _num_rows: None).run(
        len(x_BCHW),
        lambda rows, _size: make_golden(
            model.eval(), x_BCHW[rows], plan.preprocess_spec, multi_label=plan.config.multi_label
        ),
    )
    probs_BK = torch.full((len(x_BCHW), len(plan.class_names)), torch.nan)
    for rows, probs in found:
        if not isinstance(probs, Failure):
            probs_BK[rows] = probs
    finite = probs_BK.isfinite().all(dim=1).nonzero().flatten().tolist()
    if not finite:
        why = next((each.reason for _, each in found if isinstance(each, Failure)), "not finite")
        raise ConfigError(
            f"the trained model gives nothing for any of {len(x_BCHW)} images that it was to be "
            f"proven with: {why}"
        )
    kept = _sure(probs_BK, finite, multi_label=plan.config.multi_label)
    names = list(files)
    return Golden({names[i]: files[names[i]] for i in kept}, x_BCHW[kept], probs_BK[kept])


def _sure(probs_BK: torch.Tensor, rows: list[int], *, multi_label: bool) -> list[int]:
    """Return the rows that are no ties; at least a few, the surest ones."""
    if multi_label:
        margin_B = (2 * probs_BK - 1).abs().min(dim=1).values
    elif probs_BK.shape[1] == 1:
        return rows
    else:
        top_B2 = probs_BK.topk(2, dim=1).values
        margin_B = top_B2[:, 0] - top_B2[:, 1]
    surest = sorted(rows, key=lambda row: -float(margin_B[row]))
    num_sure = sum(float(margin_B[row]) >= _TIE for row in rows)
    return sorted(surest[: max(num_sure, _MIN_KEPT)])
