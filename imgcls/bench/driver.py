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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from itertools import cycle, islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from torch import Tensor

from imgcls.bench.agreement import PeakMemory, label_agreement
from imgcls.bench.table import Side, as_text, measure, tabulate
from imgcls.bench.training import bench_train
from imgcls.config.operations import BenchConfig
from imgcls.config.scoring import ScoreConfig
from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError, DecodeError
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.fit.resample import resample
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.backends import int8
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.backends.network import Network
from imgcls.inference.device import pick_device, set_num_threads
from imgcls.inference.predictor import Predictor, make_predictor
from imgcls.model.architectures import build_model, find_head
from imgcls.model.bundle import Bundle, make_golden, read_bundle
from imgcls.model.registry import register, resolve
from imgcls.runs.plan import RunFacts
from imgcls.schema import PLAN_SCHEMA
from imgcls.scoring.driver import score
from imgcls.scoring.shard.gpu_decode import make_gpu_decoder
from imgcls.scoring.shard.rows import Provenance
from imgcls.scoring.shard.score_shard import make_clock, score_shard
from imgcls.scoring.shard.stage_clock import StageDicts, add_stages, describe_bottleneck
from imgcls.scratch import scratch_folder
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
TRAIN_BATCH_SIZE: Final = 32


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure what `config.what` names and print one table.

    Raises:
        ConfigError: a flag is wrong, or the source holds no image that can be decoded.
    """
    for name in ("num_images", "repeats"):
        if getattr(config, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1"
            )
    if config.batch_size < 0:
        raise ConfigError(
            f"--batch-size {config.batch_size}: must be at least 1, or 0 to derive it"
        )
    num_cpus = len(os.sched_getaffinity(0))
    set_num_threads(num_cpus)
    if config.what == "train":
        config = replace(config, batch_size=config.batch_size or TRAIN_BATCH_SIZE)
        return bench_train(config, num_cpus, lambda: take_images(config.source, config.num_images))
    memory = PeakMemory()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("bench"))
        images = take_images(config.source, config.num_images)
        bundle, reference = _find_model(config, images, folder)
        stages: list[StageDicts] = []  # of each measurement of the steady rate
        sides, predictor = _make_sides(
            config, bundle, reference, images, folder, num_cpus, stack, stages
        )
        with memory.watched():
            rates = measure(sides, config.repeats)
        agreement = predictor and label_agreement(bundle, predictor, _crops(bundle, images))
    table = tabulate(sides, rates, num_cpus)
    notes = [f"peak memory of all processes: {memory.peak_bytes / 2**30:.2f} GiB"]
    pipeline = reduce(add_stages, stages, StageDicts())
    if pipeline:
        notes.append(f"steady, {describe_bottleneck(pipeline)}")
    if agreement:
        notes.append(
            f"{agreement['num_equal_labels']} of {agreement['num_images']} labels equal those of a "
            "plain eager fp32 loop"
        )
    sys.stdout.write(as_text(table) + "".join(f"{note}\n" for note in notes))
    return {
        "what": config.what,
        "arch": bundle.arch,
        "engine": predictor and predictor.name,
        "batch_size": predictor and predictor.batch_size,
        "num_streams": predictor and predictor.num_streams,
        "num_cpus": num_cpus,
        "load_1m": round(os.getloadavg()[0], 2),
        "num_images": config.num_images,
        "mean_image_bytes": round(statistics.mean(map(len, images))),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "stages": table,
        "pipeline": pipeline,
        "label_agreement": agreement,
        "peak_memory_bytes": memory.peak_bytes,
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
        smooth_HWC = resample(noise_HWC, (0.0, 0.0, float(cells), float(cells)), width_px, width_px)
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
    if config.precision == "int8":
        network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
        crops_BCHW = _crops(bundle, images)
        sample_BCHW = crops_BCHW.repeat(-(-int8.MIN_CALIBRATION // len(crops_BCHW)), 1, 1, 1)
        data = int8.quantize(network, sample_BCHW[: int8.NUM_CALIBRATION])
        bundle = int8.with_network(bundle, data, {})
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
        if isinstance(head.bias, Tensor):
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
    stages: list[StageDicts],
) -> tuple[list[Side], Predictor | None]:
    """Return what to measure, and what predicts; `stages` takes what the steady rate is made of."""
    sides: list[Side] = []
    if config.what != "predict":
        pool = stack.enter_context(
            DecoderPool(bundle.decode_spec, bundle.preprocess_spec, config.num_decoders or num_cpus)
        )
        if config.gpu_decode == "on":
            decoder = make_gpu_decoder(bundle, pick_device(config.device))
            stack.callback(decoder.close)
            pool.share_with(decoder)
        sides += _decode_sides(bundle, images, pool)
    if config.what == "decode":
        return sides, None
    predictor = _make_predictor(config, bundle, num_cpus)
    sides += _predict_sides(bundle, images, predictor)
    if config.what == "score":
        rows = _write_images(images, join(folder, "images"))
        facts = RunFacts(
            run_id="bench",
            date="",
            source="",
            model="bench",
            model_uri="",
            model_digest="",
            spec_digest="",
            counts={},
        )
        provenance = Provenance(
            run=facts,
            class_names=bundle.class_names.names,
            multi_label=bundle.multi_label,
            calibration=bundle.fitted(),
            has_places=bundle.preprocess_spec.fit == "tiles",
        )
        limits = ("decoding alone", "network alone")

        def steady() -> None:
            clock = make_clock(predictor, pool)
            with clock.shard():
                score_shard(
                    rows, predictor=predictor, pool=pool, provenance=provenance, clock=clock
                )
                stages.append(clock.take()[0])

        sides.append(Side("steady: get, decode, predict", len(images), steady, limits))
        outputs = (join(folder, f"out-{number}") for number in range(sys.maxsize))
        sides.append(
            Side(
                "whole run, from start to Parquet",
                len(images),
                lambda: score(_score_config(config, reference, folder, next(outputs))),
                limits,
            )
        )
    return sides, predictor


def _make_predictor(config: BenchConfig, bundle: Bundle, num_cpus: int) -> Predictor:
    """Return the predictor that a worker of a run of `num_images` would have."""
    demand = demand_of_run(
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        num_images=config.num_images,
        num_cores=num_cpus,
    )
    return make_predictor(bundle, demand)


def _crops(bundle: Bundle, images: list[bytes]) -> torch.Tensor:
    """Return uint8 [n,C,H,W], one crop of each distinct image."""
    distinct = dict.fromkeys(images)
    crops = [decode_one(data, bundle.decode_spec, bundle.preprocess_spec)[0] for data in distinct]
    return torch.from_numpy(np.stack([crop.x_CHW for crop in crops]))


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
        gpu_decode=config.gpu_decode,
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
        Side("decoding in one process", len(few), in_this_process, num_cores=1),
        Side("decoding alone", len(images), in_the_pool, ("decoding in one process",)),
    ]


def _predict_sides(bundle: Bundle, images: list[bytes], predictor: Predictor) -> list[Side]:
    x_BCHW = _crops(bundle, list(islice(cycle(dict.fromkeys(images)), predictor.batch_size)))
    num_rows = predictor.batch_size
    x_BCHW = x_BCHW.repeat(-(-num_rows // len(x_BCHW)), 1, 1, 1)[:num_rows]
    num_batches = max(1, len(images) // predictor.batch_size)
    num_images = num_batches * predictor.batch_size

    def network() -> None:
        predictor.run_network(x_BCHW, num_batches)

    def whole() -> None:
        for done in [predictor.submit(x_BCHW) for _ in range(num_batches)]:
            done.result()

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
