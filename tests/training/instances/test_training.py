"""Training on samples of many instances: what is learnt, and that ranks and resumes agree."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.training.data.loader import SplitLoader
from imgcls.training.instances.cache import InstanceCache
from imgcls.training.instances.labels import InstanceTargets
from imgcls.training.ranks.rank import Place
from tests.kit.samples import labelled
from tests.training.optim.test_loop import run_ranks
from tests.training.rank_main import run_rank

SIDE_PX = 12


def make_plates(root: Path, num_per_class: int) -> Path:
    """Pictures of unlike size, dark noise; those of class1 have a bright spot of 4 px somewhere."""
    rng = np.random.default_rng(0)
    for label in range(2):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(num_per_class):
            height_px, width_px = rng.integers(12, 40, 2)
            image_HW = rng.integers(0, 90, (height_px, width_px))
            if label:
                y, x = rng.integers(0, height_px - 4), rng.integers(0, width_px - 4)
                image_HW[y : y + 4, x : x + 4] += 150
            Image.fromarray(image_HW.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root


@pytest.mark.parametrize("rule", ["max", "noisy_or"])
def test_labels_per_picture_are_enough_to_learn_what_is_small(tmp_path: Path, rule: str) -> None:
    data = make_plates(tmp_path / "data", 60)
    state = run_rank(str(data), "plain", Place(), epochs=20, pooling=rule)
    assert state.best_metrics["val_accuracy"] >= 0.9


def test_two_ranks_train_on_tiles_what_one_trains(tmp_path: Path) -> None:
    """Each pass of two ranks meets the other: one more on one of them would meet something else."""
    data = make_plates(tmp_path / "data", 31)
    (data / "class1" / "003.png").write_bytes(b"damaged")
    alone = run_rank(str(data), "plain", Place(), epochs=1, pooling="top3_mean", batch_size=3)
    changes: dict[str, Any] = {"epochs": 1, "pooling": "top3_mean", "batch_size": 3}
    histories = run_ranks(data, "collective", tmp_path / "out", **changes)
    for history in histories:
        for ours, theirs in zip(alone.history, history, strict=True):
            assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-4)
            assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-4)
            assert theirs["num_val"] == ours["num_val"]
    weights = load_file(tmp_path / "out" / "weights")
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(weights[f"1.{name}"], tensor, rtol=1e-3, atol=1e-4)


def test_passes_of_few_pictures_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    data = str(make_plates(tmp_path / "data", 20))
    whole, in_parts = (
        run_rank(data, "plain", Place(), epochs=1, pooling="noisy_or", batch_size=size)
        for size in (16, 3)
    )
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(in_parts.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cache", ["none", "ram", "disk", "too small"])
def test_a_batch_holds_all_tiles_of_its_pictures_epoch_after_epoch(
    tmp_path: Path, cache: str
) -> None:
    data = make_plates(tmp_path, 6)
    samples = [labelled(str(p), int(p.parent.name[-1])) for p in sorted(data.rglob("*.png"))]
    (data / "class0" / "002.png").write_bytes(b"damaged")
    spec = PreprocessSpec(SIDE_PX, SIDE_PX, fit="tiles", overlap_px=4)
    caches: dict[str, Any] = {
        "ram": InstanceCache(12, on_disk=False),
        "disk": InstanceCache(12, on_disk=True),
        "too small": InstanceCache(12, on_disk=False, max_bytes=5000),
    }
    with DecoderPool(DecodeSpec(), spec, 1) as pool:
        loader = SplitLoader(
            "train",
            samples,
            num_classes=2,
            shape_CHW=(3, SIDE_PX, SIDE_PX),
            pool=pool,
            cache=caches.get(cache),
            max_bad_fraction=1.0,
            targets=InstanceTargets(2, 0, multi_label=False),
        )
        for _ in range(2):
            batches = list(loader.batches([np.array([2, 3, 11]), np.array([7, 3])]))
            assert [b.index_B.tolist() for b in batches] == [[3, 11], [7, 3]]
            for batch in batches:
                assert batch.instances is not None
                for row, index in enumerate(batch.index_B.tolist()):
                    rows = batch.instances.rows_of(row, row + 1)
                    image_HW = np.asarray(Image.open(samples[index].uri))
                    width_px, height_px = image_HW.shape[::-1]
                    num = -(-max(0, width_px - 12) // 8) + 1, -(-max(0, height_px - 12) // 8) + 1
                    assert rows.stop - rows.start == num[0] * num[1]
                    assert (batch.x_BCHW[rows][0, 0].numpy() == image_HW[:12, :12]).all()
                    is_known = not batch.instances.target_IK[rows].isnan().any()
                    assert is_known == (index < 6)
