"""Validation's forward passes, of which single ones may fail.

In: a model in evaluation mode, a Batch. Out: logits, and the Batch with a weight of 0 for each
image that the model fails on. Invariant: where nothing fails, the model sees the batch as it came,
in one pass.

Shape legend: B batch, C channel, K classes.
"""

import logging
from dataclasses import replace

import torch
from torch import nn

from imgcls.errors import DeviceFailedError
from imgcls.inference.passes import Failure, Passes
from imgcls.training.data.loader import Batch, SplitLoader
from imgcls.training.optim.precision import autocast
from imgcls.training.optim.step import to_model_input
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import Recipe

log = logging.getLogger(__name__)


class ValidationForward:
    """Runs the batches of one split, epoch after epoch: what memory holds is found out once."""

    def __init__(self, recipe: Recipe, place: Place) -> None:
        self._recipe, self._place = recipe, place
        # A batch may be filled up to two images.
        self._passes = Passes(max(2, recipe.batch_size), self._check)
        self._model: nn.Module = nn.Identity()
        self._shape: torch.Size = torch.Size()

    def __call__(
        self, model: nn.Module, batch: Batch, val: SplitLoader
    ) -> tuple[torch.Tensor, Batch]:
        """Return float32 logits [B,K] on the device; zeros for images that the model fails on.

        Raises:
            DeviceFailedError: it fails on black images too, or there is no memory for one.
        """
        self._model, self._shape = model, batch.x_BCHW.shape[1:]
        found = self._passes.run(
            len(batch.x_BCHW), lambda rows, _size: self._forward(batch.x_BCHW[rows])
        )
        if len(found) == 1 and not isinstance(found[0][1], Failure):
            return found[0][1], batch
        zeros_K = batch.target_BK.new_zeros((1, batch.target_BK.shape[1]))
        weight_B, parts = batch.weight_B.clone(), []
        for rows, result in found:
            if isinstance(result, Failure):
                weight_B[rows] = 0
                uri = val.samples[int(batch.index_B[rows.start])].uri
                log.warning("%s split: the model fails on %s: %s", val.name, uri, result.reason)
                parts.append(zeros_K.to(self._place.device))
            else:
                parts.append(result)
        return torch.cat(parts), replace(batch, weight_B=weight_B)

    def _forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = to_model_input(x_BCHW.to(self._place.device, non_blocking=True), self._recipe)
        with autocast(self._recipe, self._place.device):
            logits_BK: torch.Tensor = self._model(x_BCHW)
        return logits_BK.float()

    def _check(self, num_rows: int) -> None:
        """Run black images: no answer to them is known yet, but there has to be one."""
        logits_BK = self._forward(torch.zeros((num_rows, *self._shape), dtype=torch.uint8))
        if len(logits_BK) != num_rows:
            raise DeviceFailedError(f"{num_rows} black images give {len(logits_BK)} rows of logits")
