"""Validation's forward passes, of which single ones may fail.

In: a model in evaluation mode, a Batch. Out: logits, and the Batch with a weight of 0 for each
image that the model fails on. Invariant: where nothing fails, the model sees the batch as it came,
in one pass; samples of many instances in as many as they need, and all of their instances count.

Shape legend: B batch, C channel, K classes.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from imgcls.errors import DeviceFailedError
from imgcls.inference.passes import Failure, Passes
from imgcls.training.data.unit_loader import Loader
from imgcls.training.instances.batch import Batch
from imgcls.training.instances.pooled_loss import pool_batch
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
        self._black_CHW = torch.zeros(0)

    def __call__(self, model: nn.Module, batch: Batch, val: Loader) -> tuple[Tensor, Batch]:
        """Return float32 logits [B,K] on the device; zeros for images that the model fails on.

        Raises:
            DeviceFailedError: it fails on black images too, or there is no memory for one.
        """
        self._model, self._black_CHW = model, torch.zeros_like(batch.x_BCHW[0])
        found = self._passes.run(
            len(batch.x_BCHW), lambda rows, _size: self._forward(batch.x_BCHW[rows])
        )
        if not any(isinstance(result, Failure) for _, result in found):
            return self._pooled(
                [logits for _, logits in found if isinstance(logits, Tensor)], batch
            )
        zeros_K = batch.target_BK.new_zeros((1, batch.target_BK.shape[1]))
        weight_B, parts = batch.weight_B.clone(), []
        for rows, result in found:
            if isinstance(result, Failure):
                row = rows.start
                sample = row if batch.instances is None else int(batch.instances.sample_I[row])
                weight_B[sample] = 0
                uri = val.samples[int(batch.index_B[sample])].uri
                log.warning("%s split: the model fails on %s: %s", val.name, uri, result.reason)
                parts.append(zeros_K.to(self._place.device))
            else:
                parts.append(result)
        return self._pooled(parts, replace(batch, weight_B=weight_B))

    def _pooled(self, parts: list[Tensor], batch: Batch) -> tuple[Tensor, Batch]:
        """Return the logits of the samples: of all their instances."""
        logits_BK = parts[0] if len(parts) == 1 else torch.cat(parts)
        if batch.instances is None:
            return logits_BK, batch
        return pool_batch(logits_BK, batch.instances, self._recipe), batch

    def _forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = to_model_input(x_BCHW.to(self._place.device, non_blocking=True), self._recipe)
        with autocast(self._recipe, self._place.device):
            logits_BK: torch.Tensor = self._model(x_BCHW)
        return logits_BK.float()

    def _check(self, num_rows: int) -> None:
        """Run black images: no answer to them is known yet, but there has to be one."""
        logits_BK = self._forward(self._black_CHW.repeat(num_rows, 1, 1, 1))
        if len(logits_BK) != num_rows:
            raise DeviceFailedError(f"{num_rows} black images give {len(logits_BK)} rows of logits")
