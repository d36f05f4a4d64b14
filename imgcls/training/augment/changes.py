"""What is drawn for the images of an epoch, and the policies that change them one by one.

In: images of a step, and which they are. Out: the images, and the numbers that `augment` is
to change them by on the device. Invariant: both are functions of (seed, epoch, sample), so they
come out the same in whichever thread, on one worker and on eight, and after a resume.

A policy goes image by image, in dozens of small operations: on a GPU that leaves the GPU waiting.
So it is done here, by threads of the loader, and then `augment`, which comes before it, is too.

Shape legend: B batch, C channel, N NUM_DRAWS, P image_px.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import TracebackType
from typing import Self

import numpy as np
import torch

from imgcls.image.fit.view import WHOLE, View
from imgcls.training.augment.counter_rng import hash64, image_seeds, uniform
from imgcls.training.augment.geometric import NUM_DRAWS, AugmentRecipe, augment, views_of
from imgcls.training.augment.policies import Policy, apply_policy


class ImageChanges:
    """Draws for the images of one epoch; applies a policy.

    Args:
        seed: of the run.
        epoch: 0-based.
        recipe: how far `augment` goes.
        policy: which.
        num_threads: that apply it.
    """

    def __init__(
        self, *, seed: int, epoch: int, recipe: AugmentRecipe, policy: Policy, num_threads: int
    ) -> None:
        self._seed, self._epoch = seed, epoch
        self._recipe, self._policy = recipe, policy
        self._num_threads = num_threads if policy != "none" else 0
        self._threads = ThreadPoolExecutor(
            max(1, num_threads),
            thread_name_prefix="imgcls-policy",
            # An image is small, and there are many: threads that share one wait for each other.
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

    def chance(self, index: int) -> Callable[[int], np.ndarray]:
        """Return what gives n numbers, uint64, to order the instances of a sample by."""
        return lambda num: hash64(self._seed, self._epoch, index, np.arange(num), 3)

    def view_of(self, index: int, aspect: float) -> View:
        """Return which part of a sample's input is wanted; `aspect` is its width / height."""
        if not self._recipe.from_source:
            return WHOLE
        draws_BN = uniform(self._seed, self._epoch, np.array([index]), NUM_DRAWS)
        view_B4 = views_of(torch.from_numpy(draws_BN), self._recipe, aspect)
        left, top, right, bottom = view_B4[0].tolist()
        return left, top, right, bottom

    def apply(self, x_BCHW: np.ndarray, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images, and what is left to change on the device.

        Args:
            x_BCHW: [B,C,P,P]; of a policy uint8.
            index_B: int64, their places in the split.

        Returns:
            [B,C,P,P] and float32 [B,N]; [B,0] where nothing is left.
        """
        nothing_B0 = np.zeros((len(index_B), 0), np.float32)
        if self._policy == "none" and self._recipe == AugmentRecipe():
            return x_BCHW, nothing_B0
        draws_BN = uniform(self._seed, self._epoch, index_B, NUM_DRAWS)
        if self._policy == "none":
            return x_BCHW, draws_BN
        seeds = image_seeds(self._seed, self._epoch, index_B)
        changed = self._threads.map(
            self._change, torch.from_numpy(x_BCHW), torch.from_numpy(draws_BN), seeds
        )
        return torch.stack(list(changed)).numpy(), nothing_B0

    def _change(self, x_CHW: torch.Tensor, draws_N: torch.Tensor, seed: int) -> torch.Tensor:
        x_BCHW = augment(x_CHW[None], draws_N[None], self._recipe)
        return apply_policy(x_BCHW, [seed], self._policy)[0]

    def __enter__(self) -> Self:
        num_threads_here = torch.get_num_threads()
        all_there = Barrier(max(1, self._num_threads))
        started = [self._threads.submit(all_there.wait) for _ in range(self._num_threads)]
        for thread in started:
            thread.result()
        # What torch tells is what was set last, by any thread.
        torch.set_num_threads(num_threads_here)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
