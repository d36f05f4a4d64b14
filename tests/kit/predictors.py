"""A predictor in one line, for tests."""

from typing import Any

import torch

from imgcls.inference.backends.demand import Demand
from imgcls.inference.device import pick_device
from imgcls.inference.predictor import Predictor, make_predictor
from imgcls.model.bundle import Bundle


def open_predictor(
    bundle: Bundle, *, device: str | torch.device = "auto", top_k: int = 5, **demand: Any
) -> Predictor:
    """Return what predicts with a bundle; keywords are those of `Demand`."""
    return make_predictor(bundle, Demand(pick_device(device), **demand), top_k=top_k)
