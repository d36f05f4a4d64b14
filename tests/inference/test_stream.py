"""The predict stream: every crop predicted once, every sample out once, whatever the order."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from imgcls.errors import CorruptImageError
from imgcls.image.decoders.pool import Crop, Decoded
from imgcls.inference.collect import collect
from imgcls.inference.predictor import Predictor
from imgcls.inference.stream import Predicted, Sample, predict_stream
from imgcls.metrics.pooling import POOLINGS, Pooling, pool
from imgcls.model.bundle import Bundle
from imgcls.schema import Status
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import IMAGE_PX, make_bundle

NUM_INSTANCES = (1, 7, 3, 11, 2, 1, 9)


def pixels(index: int, number: int) -> npt.NDArray[np.uint8]:
    """Noise around a brightness of its own: a network of random weights tells them apart."""
    rng = np.random.default_rng((index, number))
    level = rng.integers(0, 200)
    return (level + rng.integers(0, 55, (3, IMAGE_PX, IMAGE_PX))).astype(np.uint8)


def decoded(index: int, num_samples: int = 1) -> Decoded:
    """An image of NUM_INSTANCES[index] tiles in a row, which take turns to be of each sample."""
    crops = [
        Crop(
            pixels(index, number),
            width_px=100,
            height_px=80,
            frame=None,
            sample=number % num_samples,
            place=(10 * number, 0, 10, 80),
        )
        for number in range(NUM_INSTANCES[index])
    ]
    return Decoded(index, None, crops, "png")


def pooled_bundle(rule: Pooling = "max") -> Bundle:
    return replace(make_bundle(), pooling=rule)


def run(predictor: Predictor, found: Iterator[Decoded]) -> tuple[list[Decoded], list[Predicted]]:
    failed, predicted = list[Decoded](), list[Predicted]()
    with closing(predict_stream(found, predictor)) as stream:
        for one in stream:
            if isinstance(one, Decoded):
                failed.append(one)
            else:
                predicted.append(one)
    return failed, predicted


def rows_of(found: list[Predicted]) -> Iterator[tuple[Sample, npt.NDArray[np.float32]]]:
    for one in found:
        assert len(one.samples) == len(one.predictions.probs_BK)
        yield from zip(one.samples, one.predictions.probs_BK, strict=True)


@pytest.mark.parametrize("num_streams", [1, 2])
def test_without_pooling_each_crop_is_a_sample_with_its_own_numbers(num_streams: int) -> None:
    with open_predictor(
        make_bundle(), device="cpu", batch_size=4, num_streams=num_streams
    ) as predictor:
        failed, found = run(predictor, map(decoded, range(len(NUM_INSTANCES))))
        samples = [(sample.index, sample.crop.place) for sample, _ in rows_of(found)]
        every = [(i, number) for i, count in enumerate(NUM_INSTANCES) for number in range(count)]
        expected = predictor.predict_all(np.stack([pixels(*one) for one in every]))
    assert not failed
    assert samples == [
        (i, (10 * n, 0, 10, 80)) for i, c in enumerate(NUM_INSTANCES) for n in range(c)
    ]
    np.testing.assert_array_equal(
        np.stack([probs_K for _, probs_K in rows_of(found)]), expected.probs_BK
    )
    assert sum(one.num_crops for one in found) == sum(NUM_INSTANCES)
    assert {sample.format for sample, _ in rows_of(found)} == {"png"}


@pytest.mark.parametrize("rule", POOLINGS)
def test_instances_of_a_sample_are_pooled_by_the_bundles_rule_over_batches(rule: Pooling) -> None:
    bundle = pooled_bundle(rule)
    with open_predictor(bundle, device="cpu", batch_size=4, num_streams=2) as predictor:
        _, found = run(predictor, map(decoded, range(len(NUM_INSTANCES))))
        rows = list(rows_of(found))
        assert [sample.index for sample, _ in rows] == list(range(len(NUM_INSTANCES)))
        for sample, probs_K in rows:
            tiles = [pixels(sample.index, n) for n in range(NUM_INSTANCES[sample.index])]
            probs_IK = predictor.predict_all(np.stack(tiles)).probs_BK
            assert sample.instances is not None
            np.testing.assert_allclose(sample.instances.probs_IK, probs_IK, atol=1e-6)
            np.testing.assert_allclose(probs_K, pool(probs_IK, rule, multi_label=False), atol=1e-6)
            best = int(probs_IK.max(axis=1).argmax())
            assert sample.instances.best == best
            assert sample.crop.place == (10 * best, 0, 10, 80)
    assert sum(one.num_crops for one in found) == sum(NUM_INSTANCES)


def test_samples_of_one_image_are_kept_apart_and_hold_no_pixels() -> None:
    with open_predictor(pooled_bundle(), device="cpu", batch_size=4) as predictor:
        _, found = run(predictor, iter([decoded(3, num_samples=2), decoded(1, num_samples=3)]))
    sizes = {}
    for sample, _ in rows_of(found):
        assert sample.instances is not None
        assert all(crop.x_CHW.size == 0 for crop in sample.instances.crops)
        sizes[sample.index, sample.crop.sample] = len(sample.instances.crops)
    assert sizes == {(3, 0): 6, (3, 1): 5, (1, 0): 3, (1, 1): 2, (1, 2): 2}


def test_a_sample_of_which_one_instance_fails_has_no_prediction_and_says_which() -> None:
    with open_predictor(pooled_bundle(), device="cpu", batch_size=4) as predictor:
        real = predictor._model

        def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
            logits_BK = real(x_BCHW).clone()
            logits_BK[(x_BCHW == torch.from_numpy(pixels(3, 5))).flatten(1).all(dim=1)] = torch.nan
            return logits_BK

        predictor._model = forward
        found = collect(map(decoded, range(len(NUM_INSTANCES))), predictor, ["x.png"] * 7)
    assert found.index_B.tolist() == [0, 1, 2, 4, 5, 6]
    [failure] = found.failures
    assert (failure.index, failure.status) == (3, Status.MODEL_ERROR)
    assert failure.reason.startswith("one part of it at x=50, y=0, 10x80 px: the model's output")


def test_failures_come_at_once_and_nothing_is_lost_between_them() -> None:
    bad = Decoded(9, CorruptImageError("cut off"), [], "png")
    with open_predictor(pooled_bundle(), device="cpu", batch_size=64) as predictor:
        stream = predict_stream(iter([decoded(0), bad, decoded(1)]), predictor)
        first = next(stream)
        assert isinstance(first, Decoded), "64 crops would have to come before a batch is full"
        assert first.index == 9
        rest = [one for one in stream if isinstance(one, Predicted)]
    assert [sample.index for sample, _ in rows_of(rest)] == [0, 1]


def test_the_embedding_of_a_sample_is_the_mean_of_its_instances() -> None:
    with open_predictor(pooled_bundle(), device="cpu", batch_size=4, embedding=True) as predictor:
        found = collect(iter([decoded(1)]), predictor, ["x.png"] * 2)
        tiles = np.stack([pixels(1, number) for number in range(7)])
        expected = predictor.predict_all(tiles).embedding_BE
    assert expected is not None
    assert found.embedding_BE is not None
    np.testing.assert_allclose(found.embedding_BE[0], expected.mean(axis=0), atol=1e-5)


def test_what_is_collected_does_not_depend_on_the_order_in_which_it_was_done() -> None:
    """Decoders and streams race: equal data must give equal numbers, to the bit."""
    images = [decoded(index) for index in range(7)]
    images[2] = Decoded(2, CorruptImageError("cut off"), [], "png")
    uris = [f"{index}.png" for index in range(7)]
    with open_predictor(make_bundle(), device="cpu", batch_size=1) as predictor:
        one, other = (collect(iter(of), predictor, uris) for of in (images, images[::-1]))
    assert one.index_B.tolist() == other.index_B.tolist() == sorted(one.index_B.tolist())
    assert [(f.index, f.status, f.reason) for f in one.failures] == [(2, "corrupt", "cut off")]
    for index in range(7):
        mine, theirs = (of.probs_BK[of.index_B == index] for of in (one, other))
        np.testing.assert_array_equal(np.sort(mine, axis=0), np.sort(theirs, axis=0))


def test_the_best_instance_is_the_one_whose_pixels_are_kept_where_the_background_ties() -> None:
    """A model that is sure of the background to the last digit: the other classes decide."""
    loud = 4
    bundle = replace(pooled_bundle(), background_class="class-0")

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
        is_loud = (x_BCHW == torch.from_numpy(pixels(3, loud))).flatten(1).all(dim=1)
        logits_BK = torch.zeros(len(x_BCHW), len(bundle.class_names))
        logits_BK[:, 0], logits_BK[:, 1] = 60.0, 10.0 * is_loud
        return logits_BK

    with open_predictor(bundle, device="cpu", batch_size=4) as predictor:
        predictor._model = forward
        with closing(predict_stream(iter([decoded(3)]), predictor, num_kept=2)) as stream:
            samples = [s for one in stream if isinstance(one, Predicted) for s in one.samples]
    [instances] = [sample.instances for sample in samples]
    assert instances is not None
    assert (instances.probs_IK[:, 0] == 1).all()
    assert instances.best == loud
    assert [crop.place for crop in instances.loudest] == [(40, 0, 10, 80), (0, 0, 10, 80)]


def test_pixels_of_sixteen_bits_are_not_cut_to_eight_on_their_way() -> None:
    """Float pixels between two of 256 levels: rounded, the network would see other ones."""
    rng = np.random.default_rng(0)
    x_NCHW = rng.uniform(0, 1, (5, 3, IMAGE_PX, IMAGE_PX)).astype(np.float32)
    found = [Decoded(i, None, [Crop(x_CHW, 9, 9, None)], "png") for i, x_CHW in enumerate(x_NCHW)]
    with open_predictor(make_bundle(), device="cpu", batch_size=2) as predictor:
        streamed = collect(iter(found), predictor, ["x.png"] * 5).probs_BK
        cut_BK = predictor.predict_all(x_NCHW.astype(np.uint8)).probs_BK
        expected_BK = predictor.predict_all(x_NCHW).probs_BK
    np.testing.assert_allclose(streamed, expected_BK, atol=1e-6)
    assert np.abs(expected_BK - cut_BK).max() > 1e-6
