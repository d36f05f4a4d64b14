"""As many forward passes on every rank, for each may hold a collective: SyncBatchNorm's, DDP's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imgcls.image.decoders.pool import DecoderPool
from imgcls.training.data.loader import SplitLoader
from imgcls.training.data.sampler import Sampler
from imgcls.training.optim.loop import make_changes
from tests.training.data.test_loader import SHAPE, numbered_samples
from tests.training.optim.test_loop import run_ranks
from tests.training.rank_main import make_recipe


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("wanted_ranks", [1, 2, 4])
def test_every_rank_makes_as_many_passes_whatever_the_split_and_the_ranks_that_are_left(
    batch_size: int, accumulate: int, wanted_ranks: int
) -> None:
    global_batch_size = batch_size * accumulate * wanted_ranks
    for num_samples in range(global_batch_size, 2 * global_batch_size + 7):
        sampler = Sampler(num_samples, global_batch_size, seed=0)
        for world_size in range(1, wanted_ranks + 1):
            for step in range(sampler.num_steps):
                shares = [
                    sampler.share(0, step, batch_size=batch_size, rank=r, world_size=world_size)
                    for r in range(world_size)
                ]
                assert len({share.num_passes for share in shares}) == 1
                sizes = [len(share.index_B) for share in shares]
                assert sum(sizes) == len(sampler.step_indices(0, step))
                # No pass is larger than the batch size, and each has a row: two, where it can.
                assert max(sizes) <= shares[0].num_passes * batch_size
                assert shares[0].min_rows >= shares[0].num_passes * min(2, batch_size)
                if world_size == 1:
                    assert shares[0].num_passes == -(-sizes[0] // batch_size)


def test_the_splits_of_which_each_was_a_hang_are_even_now() -> None:
    """4 ranks, batch 32, accumulate 2: 129 to 132 images in a step."""
    for num_samples in range(257, 264):
        sampler = Sampler(num_samples, 256, seed=0)
        for step in range(sampler.num_steps):
            shares = [
                sampler.share(0, step, batch_size=32, rank=rank, world_size=4) for rank in range(4)
            ]
            of_old = {-(-len(share.index_B) // 32) for share in shares}
            assert len({share.num_passes for share in shares}) == 1
            assert shares[0].num_passes == max(of_old)


@pytest.mark.parametrize("num_samples", range(20, 48))
def test_in_a_fixed_shape_every_pass_has_the_same_rows(num_samples: int) -> None:
    sampler = Sampler(num_samples, 12, seed=0)
    for world_size in (1, 2, 3):
        pass_rows = set()
        for step in range(sampler.num_steps):
            for rank in range(world_size):
                share = sampler.share(
                    0, step, batch_size=4, rank=rank, world_size=world_size, fixed_shape=True
                )
                pass_rows.add(share.min_rows / share.num_passes)
                assert len(share.index_B) <= share.min_rows
        assert len(pass_rows) == 1
        assert pass_rows.pop() <= 4


def test_bad_images_take_no_pass_away(tmp_path: Path, pool: DecoderPool) -> None:
    samples = numbered_samples(tmp_path, 8)
    for sample in samples[:7]:
        Path(sample.uri).write_bytes(b"damaged")
    loader = SplitLoader(
        "train",
        samples,
        num_classes=3,
        shape_CHW=SHAPE,
        pool=pool,
        cache=None,
        max_bad_fraction=1.0,
    )
    recipe = make_recipe(1)
    sampler = Sampler(8, 8, seed=0)
    share = sampler.share(0, 0, batch_size=4)
    with make_changes(loader, recipe, 0) as changes:
        [batch] = loader.batches_to_train([share], changes)
    parts = list(batch.cut(batch.num_passes))
    assert [len(part.x_BCHW) for part in parts] == [2, 2]
    assert batch.weight_B.tolist() == [1.0, 0.0, 0.0, 0.0]
    # They are the image that is left, not black: batch statistics see what there is.
    assert np.unique(batch.x_BCHW.numpy()).tolist() == [7]
    assert batch.index_B.tolist() == [7] * 4


def test_a_collective_inside_the_forward_pass_meets_itself_on_the_other_rank(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """Steps of 8 and 9 images: shares of 4 and 5, in passes of at most 4; and bad images."""
    data = make_tree(41)
    for number in (0, 1, 3):
        (data / "class0" / f"{number:03d}.png").write_bytes(b"damaged")
    histories = run_ranks(
        data, "collective", tmp_path / "out", epochs=1, global_batch_size=10, batch_size=4
    )
    assert histories[0][0]["val_loss"] == histories[1][0]["val_loss"]
