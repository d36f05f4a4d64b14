"""What the first epochs look at where pictures have a label and nothing more."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from imgcls.data.boxes import LabelledBox
from imgcls.model.networks.own_archs import SpotCnn
from imgcls.training.instances.batch import Batch, Instances
from imgcls.training.instances.first_guess import NO_GUESS, guess_instances

TILE_PX, NUM_TILES = 32, 12


@dataclass(frozen=True)
class Picture:
    labels: tuple[int, ...]
    boxes: tuple[LabelledBox, ...] = ()


def test_what_good_pictures_never_show_is_looked_at_first() -> None:
    """An untrained network does not know a scratch, but it knows what it has seen before."""
    rng = np.random.default_rng(0)
    box = LabelledBox(0, 0, 9, 9, (1,), "bad")
    samples = [*[Picture((0,))] * 40, *[Picture((1,))] * 20, Picture((1,), (box,))]
    x_NICHW = rng.normal(120, 8, (len(samples), NUM_TILES, 1, TILE_PX, TILE_PX))
    scratched = rng.integers(0, NUM_TILES, len(samples))
    for index in range(40, 61):
        x_NICHW[index, scratched[index], 0, 10:12, 6:26] += 80
    x_NICHW = x_NICHW.clip(0, 255).astype(np.uint8)

    def batches(steps: list[np.ndarray]) -> Iterator[Batch]:
        for index_B in steps:
            yield Batch(
                torch.from_numpy(x_NICHW[index_B].reshape(-1, 1, TILE_PX, TILE_PX)),
                torch.zeros(len(index_B), 2),
                torch.ones(len(index_B)),
                torch.from_numpy(index_B),
                instances=Instances(
                    np.repeat(np.arange(len(index_B)), NUM_TILES),
                    torch.full((len(index_B) * NUM_TILES, 2), torch.nan),
                ),
            )

    torch.manual_seed(0)
    model = SpotCnn(2, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    guesses = guess_instances(
        model,
        samples,
        0,
        batches,
        lambda x_ICHW: (x_ICHW.float() - 120) / 20,
        batch_size=8,
        seed=0,
    )
    assert guesses[:40] == [NO_GUESS] * 40
    assert guesses[60] == NO_GUESS, "a box says it"
    found = np.array(guesses[40:60]) == scratched[40:60]
    assert found.mean() >= 0.8  # by chance one of twelve
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
