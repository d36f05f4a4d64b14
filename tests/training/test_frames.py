"""--frames pool: all frames of a file are one sample, in training as in scoring."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.image.crops import decode_frames, decode_one
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.view import Part
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.bundle import read_bundle
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import read_facts
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.training.augment.changes import ImageChanges
from imgcls.training.augment.geometric import AugmentRecipe
from imgcls.training.data.loader import SplitLoader
from imgcls.training.data.sampler import Share
from imgcls.training.driver import train
from imgcls.training.instances.cache import InstanceCache
from tests.kit.samples import labelled
from tests.scoring.tiny import published_rows

SIDE_PX = 32
SPEC = PreprocessSpec(SIDE_PX, SIDE_PX, fit="stretch", resize="exact")


def sequence(seed: int, num_frames: int, bad_frame: int | None = None) -> bytes:
    """A TIFF of dim frames, one of which may have a bright spot."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(60, 100, (num_frames, SIDE_PX, SIDE_PX), dtype=np.uint8)
    if bad_frame is not None:
        y, x = rng.integers(4, SIDE_PX - 12, 2)
        frames[bad_frame, y : y + 8, x : x + 8] = 230
    out = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(out, "TIFF", save_all=True, append_images=others)
    return out.getvalue()


def write_data(folder: Path, count: int) -> dict[str, int]:
    """Write `count` sequences of both classes; return the frame of each finding."""
    where = {}
    for number in range(count):
        num_frames = 3 + number % 4
        bad = number % num_frames if number % 2 else None
        path = folder / ("good" if bad is None else "bad") / f"{number:03d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sequence(number, num_frames, bad))
        if bad is not None:
            where[str(path)] = bad
    return where


def config_of(tmp_path: Path, **changes: object) -> TrainConfig:
    flags = {
        "arch": "simple_cnn",
        "frames": "pool",
        "image_px": "32",
        "batch_size": 8,
        "augment": "none",
        "lr": 0.01,
        "allow_leaks": True,
        "num_decoders": 1,
    }
    places = (str(tmp_path / "data"), str(tmp_path / "registry"), "m")
    return TrainConfig(*places, **{**flags, **changes})  # type: ignore[arg-type]


def test_all_frames_of_a_file_are_one_sample() -> None:
    crops = decode_one(sequence(0, 4, 2), DecodeSpec(frames="pool"), SPEC, "facts")
    assert [crop.sample for crop in crops] == [0, 0, 0, 0]
    assert [crop.frame for crop in crops] == [0, 1, 2, 3]
    brightest = max(crops, key=lambda crop: crop.looks.contrast if crop.looks else 0)
    assert brightest.frame == 2
    assert brightest.picture_HWC is not None


def test_a_training_pools_and_its_rows_are_one_per_file(tmp_path: Path) -> None:
    where = write_data(tmp_path / "data", 40)
    result = train(config_of(tmp_path, epochs=2))
    bundle = read_bundle(str(result["uri"]))
    assert (bundle.decode_spec.frames, bundle.pooling) == ("pool", "max")
    assert bundle.background_class == "good"
    output = tmp_path / "out"
    config = ScoreConfig(
        str(tmp_path / "data"), str(result["model"]), str(output), run_id="r", executor="local"
    )
    scored = score(config)
    assert scored["rows_ok"] == scored["rows"] == 40
    rows = published_rows(str(output)).to_pylist()
    assert len({row["uri"] for row in rows}) == 40
    assert all(0 <= row["frame"] < 6 for row in rows)
    run = Run(str(output), "r")
    facts = [row for commit in read_commits(run) for row in read_facts(run, commit).to_pylist()]
    frame_of = {row["uri"]: row["frame"] for row in rows}
    assert all(row["frame"] == frame_of[row["uri"]] for row in facts)
    assert all(row["thumbnail"] and row["brightness"] > 50 for row in facts)
    assert set(where) < set(frame_of)


def test_any_frame_of_a_file_trains_and_validation_sees_the_same_one(tmp_path: Path) -> None:
    """Eight files of four frames: each frame of each comes, one in an epoch, by chance."""
    paths, values = [], []
    for number in range(8):
        frames = [
            Image.fromarray(np.full((SIDE_PX, SIDE_PX), 20 * number + 3 * frame, np.uint8))
            for frame in range(4)
        ]
        paths.append(tmp_path / f"{number}.tif")
        frames[0].save(paths[-1], save_all=True, append_images=frames[1:])
        values.append({20 * number + 3 * frame for frame in range(4)})
    samples = [labelled(str(path), 0) for path in paths]
    index_B = np.arange(8)
    drawn: list[torch.Tensor] = []
    with DecoderPool(DecodeSpec(frames="all"), SPEC, 1) as pool:
        for cache in (None, InstanceCache(8, on_disk=False)):
            loader = SplitLoader(
                "train",
                samples,
                num_classes=2,
                shape_CHW=SPEC.shape_CHW,
                pool=pool,
                cache=cache,
                max_bad_fraction=0.0,
                any_frame=True,
            )
            seen: list[set[int]] = [set() for _ in paths]
            for epoch in range(24):
                with ImageChanges(
                    seed=0, epoch=epoch, recipe=AugmentRecipe(), policy="none", num_threads=1
                ) as changes:
                    share = Share(index_B, num_passes=1, min_rows=2)
                    [batch] = loader.batches_to_train([share], changes)
                for number, x_CHW in zip(batch.index_B.tolist(), batch.x_BCHW, strict=True):
                    seen[number].add(int(x_CHW[0, 0, 0]))
            assert seen == values
            fixed = [next(loader.batches([index_B])).x_BCHW for _ in range(2)]
            assert torch.equal(*fixed)
            drawn += [batch.x_BCHW, fixed[0]]
    # The same frames, whether all are kept or one is decoded.
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])


@pytest.mark.parametrize("chance", [0, 5, 6, (1 << 64) - 3])
def test_one_frame_is_decoded_by_chance(chance: int) -> None:
    out, frames = io.BytesIO(), [Image.new("L", (SIDE_PX, SIDE_PX), 10 * n) for n in range(4)]
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    begun = list[int]()
    found = decode_frames(
        out.getvalue(), DecodeSpec(frames="all"), SPEC, begun.append, part=Part(chance=chance)
    )
    [crop] = found
    assert (crop.frame, crop.x_CHW[0, 0, 0]) == (chance % 4, 10 * (chance % 4))
    assert begun == [chance % 4]


def test_a_training_on_all_frames_learns_what_the_first_does_not_show(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(48):
        name, light = ("dark", 40) if number % 2 else ("light", 200)
        frames = [rng.integers(90, 110, (SIDE_PX, SIDE_PX), dtype=np.uint8)]  # the same of both
        frames += [np.full((SIDE_PX, SIDE_PX), light, np.uint8) for _ in range(4)]
        path = tmp_path / "data" / name / f"{number:03d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=others)
    result = train(config_of(tmp_path, frames="all", epochs=4))
    # Measured are all frames, as they will be scored: the first is right by chance.
    assert float(str(result["accuracy"])) >= 0.85
    assert read_bundle(str(result["uri"])).pooling == ""


def test_without_a_class_that_shows_nothing_it_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 40)
    for old, new in (("good", "cats"), ("bad", "dogs")):
        (tmp_path / "data" / old).rename(tmp_path / "data" / new)
    with pytest.raises(ConfigError, match=r"--frames pool: which of .*A hundred good frames"):
        train(config_of(tmp_path))


@pytest.mark.slow
def test_the_frame_of_a_finding_is_found(tmp_path: Path) -> None:
    where = write_data(tmp_path / "data", 120)
    result = train(config_of(tmp_path, epochs=15))
    assert float(str(result["accuracy"])) >= 0.9
    output = str(tmp_path / "out")
    score(ScoreConfig(str(tmp_path / "data"), str(result["model"]), output, executor="local"))
    rows = [row for row in published_rows(output).to_pylist() if row["uri"] in where]
    right = [row for row in rows if row["frame"] == where[row["uri"]]]
    assert len(right) >= 0.9 * len(rows)
