"""Which instance of a sample with a label alone is probably the one that shows it, to begin with.

In: new weights, samples of which only the whole has a label. Out: one instance of each. Invariant:
a function of the first weights and the images, made once and kept in the checkpoint; the same for
any number of ranks.

Where nothing is known but a label per picture, a network that knows nothing picks its hardest tile
by chance: of 18 tiles 17 are harmless, the gradient of a picture goes to one of these, and nothing
is learnt (strips of 1600 x 400 with a scratch of 20 px: after 20 epochs none of 48 found, by `max`
and by `noisy_or` alike). But there are many good pictures, and even an untrained network gives what
they never show an unusual embedding. So at first each sample is trained on the instance that is
furthest from all instances of background samples, by the Mahalanobis distance of the embeddings; of
the plain scratches that was the right tile for half, and the rest averages out. After
`FIRST_GUESS_FRACTION` of the epochs the network chooses by itself (choose.py): it found all plain
scratches then.

Defard et al., PaDiM (ICPR 2021), find anomalies by that distance.

Shape legend: B sample, I instance, E embedding.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from imgcls.model.architectures import register_embedding_hook
from imgcls.training.augment.counter_rng import hash64
from imgcls.training.instances.batch import Batch
from imgcls.training.instances.labels import PlacedImage

FIRST_GUESS_FRACTION: Final = 0.3
NO_GUESS: Final = -1
# Pictures that tell what background looks like: their tiles fix a covariance well enough.
_NUM_REFERENCE: Final = 256
# Batches that give new layers of batch normalisation their statistics.
_NUM_CALIBRATION: Final = 4
_ROWS_PER_PASS: Final = 64
_RIDGE: Final = 1e-3

Batches = Callable[[list[np.ndarray]], Iterator[Batch]]


def guess_instances(
    model: nn.Module,
    samples: Sequence[PlacedImage],
    background: int,
    batches: Batches,
    to_input: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    seed: int,
) -> list[int]:
    """Return the first instance to train on of each sample, NO_GUESS where others are known.

    Args:
        model: with its first weights; not changed.
        samples: of the training split.
        background: label of the background.
        batches: takes which samples each batch holds; gives all of their instances.
        to_input: takes uint8 pixels, returns what the model takes, on its device.
        batch_size: samples of a batch.
        seed: of the run.
    """
    guesses = [NO_GUESS] * len(samples)
    is_background_B = np.array([sample.labels == (background,) for sample in samples])
    has_boxes_B = np.array([bool(sample.boxes) for sample in samples])
    reference = np.flatnonzero(is_background_B & ~has_boxes_B)
    unknown = np.flatnonzero(~is_background_B & ~has_boxes_B)
    if not len(reference) or not len(unknown):
        return guesses
    chance = np.argsort(hash64(seed, reference), kind="stable")
    reference = reference[chance[:_NUM_REFERENCE]]
    looking = _Looking(copy.deepcopy(model), to_input)
    looking.calibrate(batches(_steps(reference, batch_size)[:_NUM_CALIBRATION]))
    num, sum_E, square_EE = 0, torch.zeros(1), torch.zeros(1, 1)
    for batch in batches(_steps(reference, batch_size)):
        embedding_IE = looking.embed(_real(batch))
        num += len(embedding_IE)
        sum_E = sum_E + embedding_IE.sum(dim=0)
        square_EE = square_EE + embedding_IE.T @ embedding_IE
    mean_E = sum_E / num
    covariance_EE = square_EE / num - torch.outer(mean_E, mean_E)
    ridge = _RIDGE * float(covariance_EE.diagonal().mean()) + 1e-12
    inverse_EE = torch.linalg.inv(covariance_EE + ridge * torch.eye(len(mean_E)).to(mean_E))
    for batch in batches(_steps(unknown, batch_size)):
        assert batch.instances is not None, "samples of many instances"
        away_IE = looking.embed(batch.x_BCHW) - mean_E
        distance_I = ((away_IE @ inverse_EE) * away_IE).sum(dim=1)
        for sample, index in enumerate(batch.index_B.tolist()):
            if batch.weight_B[sample] > 0:
                guesses[index] = int(distance_I[batch.rows_of(sample)].argmax())
    return guesses


class _Looking:
    """A network that gives embeddings, float64 on the CPU."""

    def __init__(self, model: nn.Module, to_input: Callable[[Tensor], Tensor]) -> None:
        self._model, self._to_input = model.eval(), to_input
        self._embedding = register_embedding_hook(model, "")

    @torch.no_grad()
    def calibrate(self, batches: Iterator[Batch]) -> None:
        """Give new batch normalisation the statistics of these images; trained ones stay."""
        fresh = [
            module
            for module in self._model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.num_batches_tracked is not None
            and not int(module.num_batches_tracked)
        ]
        for module in fresh:
            module.momentum = None  # the mean over all batches
            module.train()
        for batch in batches:
            self.embed(_real(batch))
        self._model.eval()

    @torch.no_grad()
    def embed(self, x_ICHW: Tensor) -> Tensor:
        """Return float64 [I,E]."""
        parts = []
        for start in range(0, len(x_ICHW), _ROWS_PER_PASS):
            self._model(self._to_input(x_ICHW[start : start + _ROWS_PER_PASS]))
            parts.append(self._embedding().flatten(1).double().cpu())
        return torch.cat(parts)


def _real(batch: Batch) -> Tensor:
    """Return the pixels of samples that weigh something; of all where none does."""
    rows = [batch.rows_of(i) for i in range(len(batch.index_B)) if batch.weight_B[i] > 0]
    return torch.cat([batch.x_BCHW[each] for each in rows]) if rows else batch.x_BCHW


def _steps(index_B: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [index_B[i : i + batch_size] for i in range(0, len(index_B), batch_size)]
