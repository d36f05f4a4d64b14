"""Measure the stages alone and together, beside the limit that this machine sets them.

In: a BenchConfig. Out: a table on stdout, and every figure in the result. Invariant: a ratio is
taken between medians of the same run, whose sides were measured in turn: what else the machine does
meets all of them alike.

The images lie in local files, so that no network is measured. Legend: B batch, C channel, P
image_px, H height, W width.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import simplejpeg
import torch

from imgcls.config.operations import BenchConfig
from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ConfigError, DecodeError
from imgcls.image.pool import DecoderPool, decode_one
from imgcls.image.resample import resample
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.logs import Progress
from imgcls.model.artifact import Bundle, make_golden, read_bundle
from imgcls.model.build import build_model, find_head
from imgcls.model.labels import ClassNames
from imgcls.model.predict import Predictor, set_num_threads
from imgcls.model.registry import register, resolve
from imgcls.schema import PLAN_SCHEMA
from imgcls.scoring.driver import score
from imgcls.scoring.rows import Provenance
from imgcls.scoring.shard import score_shard
from imgcls.storage.objects import ObjectInfo, list_objects, put, read
from imgcls.storage.uri import join

NUM_MADE_IMAGES: Final = 64
NUM_GOLDEN: Final = 8
NUM_CLASSES: Final = 10
MADE_SIZE_PX: Final = (375, 500)  # the usual photograph of ImageNet
_MADE_QUALITY: Final = 85
# Noise this coarse (cells across the image) and finer; each finer one is weaker, as in photographs,
# whose spectra fall with the frequency. 0.75 gives files of 50 KB.
_NOISE_CELLS: Final = (4, 8, 16, 32, 64, 128, 256)
_NOISE_FALL: Final = 0.75
_PUTS_IN_FLIGHT: Final = 16


@dataclass(frozen=True)
class Side:
    """One thing to measure: a function that works through `num_images`, and its limit's name."""

    name: str
    num_images: int
    run: Callable[[], object]
    limits: tuple[str, ...] = ()


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure what `config.what` names and print one table.

    Raises:
        ConfigError: a flag is wrong, or the source holds no image that can be decoded.
    """
    for name in ("num_images", "repeats", "batch_size"):
        if getattr(config, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1"
            )
    num_cpus = len(os.sched_getaffinity(0))
    set_num_threads(num_cpus)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imgcls-bench-"))
        images = take_images(config.source, config.num_images)
        bundle, reference = _find_model(config, images, folder)
        sides, engine = _make_sides(config, bundle, reference, images, folder, num_cpus, stack)
        rates = measure(sides, config.repeats)
    table = tabulate(sides, rates, num_cpus)
    sys.stdout.write(_as_text(table))
    return {
        "what": config.what,
        "arch": bundle.arch,
        "engine": engine,
        "num_cpus": num_cpus,
        "load_1m": round(os.getloadavg()[0], 2),
        "num_images": config.num_images,
        "mean_image_bytes": round(statistics.mean(map(len, images))),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "stages": table,
    }


def take_images(source: str, num_images: int) -> list[bytes]:
    """Return encoded images: those of a source that decode, or made ones; repeated to the count."""
    if source:
        names = islice(
            (entry.uri for entry in list_objects(source) if isinstance(entry, ObjectInfo)),
            num_images,
        )
        distinct = [data for data in map(read, names) if _decodes(data)]
        if not distinct:
            raise ConfigError(f"--source {source}: no image there can be decoded")
    else:
        distinct = [make_photo(seed) for seed in range(min(NUM_MADE_IMAGES, num_images))]
    return list(islice(cycle(distinct), num_images))


def _decodes(data: bytes) -> bool:
    try:
        # Small: only whether it can be decoded matters here.
        return bool(decode_one(data, DecodeSpec(), PreprocessSpec.for_image_px(32)))
    except DecodeError:
        return False


def make_photo(seed: int) -> bytes:
    """Return a JPEG of seeded noise that compresses about as photographs do."""
    rng = np.random.default_rng(seed)
    height_px, width_px = MADE_SIZE_PX
    image_HWC = np.full((width_px, width_px, 3), 128.0)
    for octave, cells in enumerate(_NOISE_CELLS):
        noise_HWC = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        smooth_HWC = resample(noise_HWC, (0.0, 0.0, float(cells), float(cells)), width_px)
        image_HWC += (smooth_HWC.astype(np.float64) - 128) * _NOISE_FALL**octave
    pixels_HWC = np.ascontiguousarray(image_HWC[:height_px].clip(0, 255).astype(np.uint8))
    data: bytes = simplejpeg.encode_jpeg(
        pixels_HWC, quality=_MADE_QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    return data


def _find_model(config: BenchConfig, images: list[bytes], folder: str) -> tuple[Bundle, str]:
    """Return the model to measure and a reference to it."""
    if config.model:
        return read_bundle(resolve(config.model)), config.model
    bundle = make_untrained(config.arch, config.image_px, images)
    version = register(join(folder, "registry"), "bench", bundle)
    return bundle, version.uri


def make_untrained(arch: str, image_px: int, images: list[bytes]) -> Bundle:
    """Return a bundle of random weights that is sure of one class.

    Sure, because the golden check of another precision is not to fail on a tie between classes that
    nobody trained: what is measured is speed.
    """
    spec = PreprocessSpec.for_image_px(image_px)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build_model(arch, NUM_CLASSES, image_px=image_px).eval()
        _, head = find_head(model)
        if head.bias is not None:
            head.bias[0] += 10
    crops = [decode_one(data, DecodeSpec(), spec)[0].x_CHW for data in images[:NUM_GOLDEN]]
    golden_x_BCHW = torch.from_numpy(np.stack(crops))
    return Bundle(
        arch=arch,
        class_names=ClassNames(tuple(f"class-{label}" for label in range(NUM_CLASSES))),
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="",
        training={},
        golden_x_BCHW=golden_x_BCHW,
        golden_probs_BK=make_golden(model, golden_x_BCHW, spec),
    )


def _make_sides(
    config: BenchConfig,
    bundle: Bundle,
    reference: str,
    images: list[bytes],
    folder: str,
    num_cpus: int,
    stack: ExitStack,
) -> tuple[list[Side], str | None]:
    """Return what to measure, and the name of the engine that predicts."""
    sides: list[Side] = []
    if config.what != "predict":
        pool = stack.enter_context(
            DecoderPool(bundle.decode_spec, bundle.preprocess_spec, config.num_decoders or num_cpus)
        )
        sides += _decode_sides(bundle, images, pool)
    if config.what == "decode":
        return sides, None
    predictor = Predictor(
        bundle,
        device=config.device,
        batch_size=config.batch_size,
        precision=config.precision,
        num_images=config.num_images,
    )
    sides += _predict_sides(bundle, images, predictor)
    if config.what == "score":
        rows = _write_images(images, join(folder, "images"))
        provenance = Provenance("bench", "", "", "bench", bundle.class_names.names)
        limits = ("decoding alone", "network alone")
        sides.append(
            Side(
                "steady: get, decode, predict",
                len(images),
                lambda: score_shard(rows, predictor=predictor, pool=pool, provenance=provenance),
                limits,
            )
        )
        outputs = (join(folder, f"out-{number}") for number in range(sys.maxsize))
        sides.append(
            Side(
                "whole run, from start to Parquet",
                len(images),
                lambda: score(_score_config(config, reference, folder, next(outputs))),
                limits,
            )
        )
    return sides, predictor.engine


def _score_config(config: BenchConfig, reference: str, folder: str, output: str) -> ScoreConfig:
    return ScoreConfig(
        source=join(folder, "images"),
        model=reference,
        output=output,
        executor="local",
        batch_size=config.batch_size,
        device=config.device,
        precision=config.precision,
        num_decoders=config.num_decoders,
    )


def _decode_sides(bundle: Bundle, images: list[bytes], pool: DecoderPool) -> list[Side]:
    few = images[: max(1, len(images) // 4)]

    def in_this_process() -> None:
        for data in few:
            decode_one(data, bundle.decode_spec, bundle.preprocess_spec)

    def in_the_pool() -> None:
        for decoded in pool.decode_many(enumerate(images)):
            assert decoded.error is None, "only images that decode are taken"

    return [
        Side("decoding in one process", len(few), in_this_process),
        Side("decoding alone", len(images), in_the_pool, ("decoding in one process",)),
    ]


def _predict_sides(bundle: Bundle, images: list[bytes], predictor: Predictor) -> list[Side]:
    distinct = list(dict.fromkeys(images))
    crops = [
        decode_one(data, bundle.decode_spec, bundle.preprocess_spec)[0].x_CHW
        for data in islice(cycle(distinct), predictor.batch_size)
    ]
    x_BCHW = np.stack(crops)
    num_batches = max(1, len(images) // predictor.batch_size)
    num_images = num_batches * predictor.batch_size

    def network() -> None:
        predictor.run_network(torch.from_numpy(x_BCHW), num_batches)

    def whole() -> None:
        for _ in range(num_batches):
            predictor.predict(x_BCHW)

    return [
        Side("network alone", num_images, network),
        Side("predicting alone", num_images, whole, ("network alone",)),
    ]


def _write_images(images: list[bytes], folder: str) -> pa.Table:
    """Write the images and return their plan rows (PLAN_SCHEMA)."""
    uris = [join(folder, f"{number:06d}.jpg") for number in range(len(images))]
    with ThreadPoolExecutor(_PUTS_IN_FLIGHT) as threads:
        list(threads.map(put, uris, images))
    infos = [entry for entry in list_objects(folder) if isinstance(entry, ObjectInfo)]
    columns = {name: [getattr(info, name) for info in infos] for name in PLAN_SCHEMA.names}
    return pa.table(columns, schema=PLAN_SCHEMA)


def measure(sides: list[Side], repeats: int) -> dict[str, list[float]]:
    """Return images/s of every side, `repeats` times each, measured in turn.

    A round before them is thrown away: it starts processes and fills caches.
    """
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    with Progress("measuring", (repeats + 1) * len(sides), "measurements") as progress:
        for number in range(repeats + 1):
            # Back and forth, so that no side always comes behind the same one.
            for side in _in_turn(sides, number):
                start_s = time.perf_counter()
                side.run()
                seconds = time.perf_counter() - start_s
                if number:
                    rates[side.name].append(side.num_images / seconds)
                progress.advance(1, side.name)
    return rates


def _in_turn(sides: list[Side], number: int) -> Iterator[Side]:
    return iter(sides) if number % 2 else reversed(sides)


def tabulate(
    sides: list[Side], rates: dict[str, list[float]], num_cpus: int
) -> list[dict[str, Any]]:
    """Return a row per side: median images/s, per core, the tightest limit and the ratio to it."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for side in sides:
        rate = medians[side.name]
        one_process = side.name == "decoding in one process"
        row: dict[str, Any] = {
            "stage": side.name,
            "images_per_s": round(rate, 1),
            "images_per_s_per_core": round(rate if one_process else rate / num_cpus, 1),
            "limit": None,
            "limit_images_per_s": None,
            "ratio": None,
            "measured_images_per_s": [round(value, 1) for value in rates[side.name]],
        }
        limits = {
            # One process takes one core: all of them together could do so many times more.
            name: medians[name] * (num_cpus if name == "decoding in one process" else 1)
            for name in side.limits
        }
        if limits:
            tightest = min(limits, key=lambda name: limits[name])
            row["limit"] = tightest
            row["limit_images_per_s"] = round(limits[tightest], 1)
            row["ratio"] = round(rate / limits[tightest], 3)
        rows.append(row)
    return rows


def _as_text(rows: list[dict[str, Any]]) -> str:
    line = "{:<34} {:>9} {:>9} {:>9} {:>6}  {}\n"
    text = line.format("stage", "images/s", "per core", "limit", "ratio", "limited by")
    for row in rows:
        text += line.format(
            row["stage"],
            row["images_per_s"],
            row["images_per_s_per_core"],
            row["limit_images_per_s"] or "-",
            "-" if row["ratio"] is None else row["ratio"],
            row["limit"] or "-",
        )
    return text
