import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.dataset import Sample
from imgcls.errors import AccessDeniedError, BudgetExceededError, ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.training.data.image_cache import CacheKind, ImageCache, num_bytes, private_buffer
from imgcls.training.data.loader import Batch, SplitLoader
from tests.kit.modes import refuse_reads
from tests.kit.samples import labelled

SIDE_PX = 12
SHAPE = (3, SIDE_PX, SIDE_PX)


def numbered_samples(folder: Path, num: int) -> list[Sample]:
    """Image i is all grey level i; its label is i modulo 3."""
    for i in range(num):
        Image.new("RGB", (SIDE_PX, SIDE_PX), (i, i, i)).save(folder / f"{i:03d}.png")
    return [labelled(str(folder / f"{i:03d}.png"), i % 3) for i in range(num)]


def make_loader(
    samples: list[Sample],
    pool: DecoderPool,
    kind: CacheKind = "none",
    max_bad_fraction: float = 1.0,
) -> SplitLoader:
    cache = None
    if kind != "none":
        buffer = private_buffer(kind, num_bytes(len(samples), SHAPE))
        cache = ImageCache(buffer, len(samples), SHAPE)
    return SplitLoader(
        "train",
        samples,
        num_classes=3,
        shape_CHW=SHAPE,
        pool=pool,
        cache=cache,
        max_bad_fraction=max_bad_fraction,
    )


def levels(batch: Batch) -> list[int]:
    """Return the grey level of each image that weighs something."""
    return batch.x_BCHW[batch.weight_B > 0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_batches_hold_what_was_asked_for_in_order(
    kind: CacheKind, tmp_path: Path, pool: DecoderPool
) -> None:
    loader = make_loader(numbered_samples(tmp_path, 40), pool, kind)
    steps = [np.array([7, 3, 39]), np.array([0, 1]), np.arange(10, 30)]
    for _ in range(2):
        batches = list(loader.batches(steps))
        assert [levels(b) for b in batches] == [s.tolist() for s in steps]
        assert [b.index_B.tolist() for b in batches] == [s.tolist() for s in steps]
        assert batches[0].label_B.tolist() == [1, 0, 0]
        assert batches[0].x_BCHW.dtype == torch.uint8
        assert batches[0].x_BCHW.shape == (3, *SHAPE)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_second_epoch_reads_nothing(kind: CacheKind, tmp_path: Path, pool: DecoderPool) -> None:
    samples = numbered_samples(tmp_path, 20)
    loader = make_loader(samples, pool, kind)
    list(loader.batches([np.arange(20)]))
    for sample in samples:
        Path(sample.uri).unlink()
    [batch] = loader.batches([np.arange(20)])
    assert levels(batch) == list(range(20))
    assert not loader.bad


@pytest.mark.parametrize("kind", ["none", "ram"])
def test_an_image_asked_for_twice_comes_twice(
    kind: CacheKind, tmp_path: Path, pool: DecoderPool
) -> None:
    loader = make_loader(numbered_samples(tmp_path, 5), pool, kind)
    batches = list(loader.batches([np.array([2, 2, 1]), np.array([2, 4])]))
    assert [levels(b) for b in batches] == [[2, 2, 1], [2, 4]]


@pytest.mark.parametrize("kind", ["none", "ram"])
def test_bad_images_are_left_out_named_and_not_replaced(
    kind: CacheKind, tmp_path: Path, pool: DecoderPool
) -> None:
    samples = numbered_samples(tmp_path, 10)
    Path(samples[4].uri).write_bytes(b"<html>not an image</html>")
    Path(samples[8].uri).unlink()
    loader = make_loader(samples, pool, kind)
    for _ in range(2):
        first, second = loader.batches([np.arange(5), np.arange(5, 10)])
        assert levels(first) == [0, 1, 2, 3]
        assert levels(second) == [5, 6, 7, 9]
    assert set(loader.bad) == {samples[4].uri, samples[8].uri}


def test_a_batch_that_lost_its_images_is_filled_with_rows_that_weigh_nothing(
    tmp_path: Path, pool: DecoderPool
) -> None:
    samples = numbered_samples(tmp_path, 4)
    for sample in samples[:3]:
        Path(sample.uri).write_bytes(b"")
    nothing, one = make_loader(samples, pool).batches([np.array([0, 1]), np.array([2, 3])])
    assert nothing.weight_B.tolist() == [0.0, 0.0]
    assert one.weight_B.tolist() == [1.0, 0.0]
    assert one.x_BCHW.shape == (2, *SHAPE)


def test_too_many_bad_images_stop_with_their_names(tmp_path: Path, pool: DecoderPool) -> None:
    samples = numbered_samples(tmp_path, 20)
    for sample in samples[5:8]:
        Path(sample.uri).write_bytes(b"damaged")
    loader = make_loader(samples, pool, max_bad_fraction=0.1)
    with pytest.raises(BudgetExceededError, match=r"3 of 20 images .*allows 2: .*005\.png"):
        list(loader.batches([np.arange(20)]))


@pytest.mark.parametrize("kind", ["none", "ram"])
def test_an_image_that_may_not_be_read_is_bad_and_stays_so(
    kind: CacheKind, tmp_path: Path, pool: DecoderPool
) -> None:
    samples = numbered_samples(tmp_path, 10)
    refused = Path(samples[4].uri)
    refuse_reads(refused)
    loader = make_loader(samples, pool, kind)
    for _ in range(2):
        [batch] = loader.batches([np.arange(10)])
        assert levels(batch) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        # It was named as left out: it does not train in a later epoch.
        refused.unlink()
        Image.new("RGB", (SIDE_PX, SIDE_PX), (4, 4, 4)).save(refused)
    assert set(loader.bad) == {str(refused)}
    assert loader.bad[str(refused)].status == "unreadable"
    assert "Input/output error" in loader.bad[str(refused)].reason


@pytest.mark.parametrize("max_bad_fraction", [0.0, 1.0])
def test_a_share_of_which_nothing_is_read_is_not_a_matter_of_bad_images(
    max_bad_fraction: float, tmp_path: Path, pool: DecoderPool
) -> None:
    samples = numbered_samples(tmp_path, 30)
    for sample in samples:
        refuse_reads(Path(sample.uri))
    loader = make_loader(samples, pool, max_bad_fraction=max_bad_fraction)
    with pytest.raises(AccessDeniedError, match="could not be read"):
        list(loader.batches([np.arange(30)]))


def test_too_many_that_may_not_be_read_are_too_many_bad_images(
    tmp_path: Path, pool: DecoderPool
) -> None:
    samples = numbered_samples(tmp_path, 30)
    for sample in samples[20:]:
        refuse_reads(Path(sample.uri))
    loader = make_loader(samples, pool, max_bad_fraction=0.1)
    with pytest.raises(BudgetExceededError, match=r"4 of 30 images .*allows 3"):
        list(loader.batches([np.arange(30)]))


def test_a_store_that_cannot_be_read_is_no_bad_image(pool: DecoderPool) -> None:
    loader = make_loader([labelled("nosuch://bucket/key", 0)] * 3, pool)
    with pytest.raises(ConfigError, match="nosuch"):
        list(loader.batches([np.arange(3)]))
    assert not loader.bad


def test_leaving_early_ends_the_threads(tmp_path: Path, pool: DecoderPool) -> None:
    loader = make_loader(numbered_samples(tmp_path, 40), pool)
    before = set(threading.enumerate())
    batches = loader.batches([np.array([i, i + 1]) for i in range(0, 38)])
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator
    started = [t for t in set(threading.enumerate()) - before if t.name == "imgcls-loader"]
    assert started == []


def test_the_loader_does_not_run_far_ahead(tmp_path: Path, pool: DecoderPool) -> None:
    samples = numbered_samples(tmp_path, 40)
    loader = make_loader(samples * 20, pool)
    batches = loader.batches([np.arange(i, i + 2) for i in range(0, 800, 2)])
    next(batches)
    # What a GET finds missing now was not read ahead: most of the epoch.
    for sample in samples:
        Path(sample.uri).unlink()
    left = sum(len(levels(batch)) for batch in batches)
    assert left < 400
