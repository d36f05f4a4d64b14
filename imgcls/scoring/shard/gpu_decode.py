"""Let the GPU decode JPEGs too, where it is shown to give the same answers.

In: a worker's plan, bundle, decoder pool and predictor. Out: the pool, sharing its work with the
GPU. Invariant: nothing is decoded on a GPU before this very one was compared with the decoder
processes, on images of the run.

Which images the GPU takes depends on how fast either side is, so two runs over the same images may
differ in their last digits; the share of equal answers is what MIN_AGREEMENT asks for.
"""

import json
import logging
from typing import Any, Final

import numpy as np
import torch

from imgcls.errors import BundleError, ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.filters import Kernel
from imgcls.image.gpu.nvjpeg import DeviceJpegDecoder
from imgcls.image.gpu.resample import can_resample
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.predictor import Predictor
from imgcls.model.bundle import Bundle
from imgcls.runs.plan import PlannedRows
from imgcls.scoring.shard.sample import spread_requests
from imgcls.sources.read import get_images
from imgcls.storage.objects import put_first

log = logging.getLogger(__name__)

MIN_AGREEMENT: Final = 0.99
NUM_COMPARED: Final = 128
# Where it may run; the tests add the CPU.
DEVICES: Final = {"cuda"}


def share_with_gpu(
    planned: PlannedRows, bundle: Bundle, pool: DecoderPool, predictor: Predictor
) -> DeviceJpegDecoder | None:
    """Have `pool` share its work with the predictor's GPU; None where the run has nothing for it.

    The first worker's comparison is kept beside the plan, as gpu_decode.json.

    Raises:
        ConfigError: the model does not run on a GPU, or nvImageCodec is not installed.
        BundleError: too many answers differ.
        StorageError: the store failed after all retries.
    """
    decoder = make_gpu_decoder(bundle, predictor.device)
    try:
        found = _compare(_read_plain(planned, decoder), decoder, pool, predictor, bundle)
    except BaseException:
        decoder.close()
        raise
    if not found:
        log.info("--gpu-decode on: of the images looked at, none is for the GPU; it decodes none")
        decoder.close()
        return None
    told = (
        f"{found['equal_answers']} of {found['images']} images get the same answer when the GPU "
        f"decodes them; probabilities move by {found['max_prob_change']:.2g} at most, pixels by "
        f"{found['max_pixel_change']} of 255, on average by {found['mean_pixel_change']:.2g}"
    )
    if found["equal_answers"] < MIN_AGREEMENT * found["images"]:
        decoder.close()
        raise BundleError(
            f"--gpu-decode on refused: only {told}; {MIN_AGREEMENT:.0%} equal answers are needed. "
            "Use --gpu-decode off, with another --run-id."
        )
    log.info("gpu-decode: %s", told)
    put_first(planned.plan.run.gpu_decode, json.dumps(found).encode())
    pool.share_with(decoder)
    return decoder


def make_gpu_decoder(bundle: Bundle, device: torch.device) -> DeviceJpegDecoder:
    """Return what decodes for a bundle on a GPU.

    Raises:
        ConfigError: no GPU, nvImageCodec is not installed, or the model takes tiles, or more than 8
            bits, or resizes by a filter that is not computed there.
    """
    if bundle.preprocess_spec.fit == "tiles":
        raise ConfigError(
            "--gpu-decode on: this model takes pictures in tiles, which only the CPU cuts; use "
            "--gpu-decode off"
        )
    if bundle.decode_spec.pixel_type != "uint8":
        raise ConfigError(
            "--gpu-decode on: this model was trained with --depth 16, and a GPU decodes to 8 bits; "
            "use --gpu-decode off"
        )
    if device.type not in DEVICES:
        raise ConfigError(
            f"--gpu-decode on: the model runs on {device.type} here, and only a CUDA device can "
            "decode; use --gpu-decode off"
        )
    if not can_resample(Kernel.of(bundle.preprocess_spec)):
        raise ConfigError(
            f"--gpu-decode on: this model's images are resized by Pillow's "
            f"{bundle.preprocess_spec.filter} filter, which a GPU does not compute as Pillow does; "
            "use --gpu-decode off"
        )
    return DeviceJpegDecoder(bundle.decode_spec, bundle.preprocess_spec, device)


def _read_plain(planned: PlannedRows, decoder: DeviceJpegDecoder) -> list[bytes]:
    """Return up to NUM_COMPARED images of the run that the GPU would take."""
    files: list[bytes] = []
    for requests in spread_requests(planned, 2 * NUM_COMPARED):
        read = get_images(requests, gives_unreadable=True)
        files += [data for _, data in read if isinstance(data, bytes) and decoder.is_plain(data)]
    return files[:NUM_COMPARED]


def _compare(
    files: list[bytes],
    decoder: DeviceJpegDecoder,
    pool: DecoderPool,
    predictor: Predictor,
    bundle: Bundle,
) -> dict[str, Any]:
    """Return how the two ways of decoding differ; empty if no file could be decoded both ways."""
    here = {one.index: one.crops for one in pool.decode_many(enumerate(files))}
    there = dict(enumerate(decoder.decode(files))) if files else {}
    pairs = [
        (crop.x_CHW, other.x_CHW)
        for index, crops in there.items()
        for crop, other in zip(here[index], crops or [], strict=False)
    ]
    if not pairs:
        return {}
    by_cpu_BCHW, by_gpu_BCHW = (np.stack(of) for of in zip(*pairs, strict=True))
    change = np.abs(by_cpu_BCHW.astype(np.int16) - by_gpu_BCHW)
    found = [predictor.predict_all(of) for of in (by_cpu_BCHW, by_gpu_BCHW)]
    # An image that the model gives nothing for says nothing of decoding.
    has_both_B = found[0].ok_B & found[1].ok_B
    if not has_both_B.any():
        return {}
    probs_BK, gpu_probs_BK = (of.probs_BK[has_both_B] for of in found)
    rule = DecisionRule.of(bundle)
    answers, gpu_answers = (rule.all_answers(of) for of in (probs_BK, gpu_probs_BK))
    return {
        "images": len(answers),
        "equal_answers": sum(one == other for one, other in zip(answers, gpu_answers, strict=True)),
        "max_prob_change": float(np.abs(probs_BK - gpu_probs_BK).max()),
        "max_pixel_change": int(change.max()),
        "mean_pixel_change": float(change.mean()),
    }
