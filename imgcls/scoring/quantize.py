"""`imgcls quantize`: a model's next version, with an int8 network of its own.

In: a registered model, images of the kind to come. Out: the next version of its name: the same
weights, classes, thresholds and papers, and a network in int8 beside them. Invariant: of images
that calibrated nothing MIN_AGREEMENT keep label and decision, and as many keep their probabilities
within MAX_MOVED, or there is no such version; every night of it runs these very bytes.

Calibrated once, here, a night starts as fast as any, be it of five images or of a million.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any, Final

import numpy as np
import torch

from imgcls.config.choices import Precision
from imgcls.config.scoring import QuantizeConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inference.backends import int8
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.backends.network import Network
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.device import num_cores_here
from imgcls.inference.predictor import Predictions, make_predictor
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.registry import name_of, register, resolve
from imgcls.scoring.planning.listing import list_source
from imgcls.scoring.planning.staging import stage
from imgcls.sources.read import get_images
from imgcls.sources.requests import requests_of
from imgcls.storage.bulk_get import GetRequest

# As many judge as there are beyond those that calibrate; more hardly change the verdict.
_MAX_JUDGES: Final = 1_000
_ROWS_AT_A_TIME: Final = 8192

log = logging.getLogger(__name__)


def quantize(config: QuantizeConfig) -> dict[str, Any]:
    """Run `imgcls quantize`.

    Returns:
        JSON-able: model (REGISTRY/NAME@v<N>), uri, version, digest, of (the version it was made
        from), num_calibrated, num_judged, num_equal, agreement, largest_move of a probability,
        usual_move (99 % of the images move less).

    Raises:
        ConfigError: the model is in no registry or takes more than 8 bits, OpenVINO is not
            installed, or too few images.
        BundleError: too many labels, decisions or probabilities differ from fp32's; nothing was
            registered.
        StorageError: the store failed after all retries.
    """
    int8.require_openvino()
    registry, name = name_of(config.model)
    bundle = read_bundle(resolve(config.model))
    if bundle.decode_spec.pixel_type != "uint8":
        raise ConfigError(
            f"{config.model} was trained with --depth 16: an int8 network would round its pixels "
            "to 8 bits"
        )
    num_cores = num_cores_here()
    torch.set_num_threads(num_cores)
    with DecoderPool(
        bundle.decode_spec, bundle.preprocess_spec, config.num_decoders or num_cores
    ) as pool:
        x_BCHW = _take_images(config.data, pool)
    calibration_BCHW, judges_BCHW = _divide(x_BCHW)
    log.info("calibrating on %d images, judging by %d", len(calibration_BCHW), len(judges_BCHW))
    network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
    data = int8.quantize(network, calibration_BCHW)
    facts = {
        "of": bundle.digest,
        "num_calibrated": len(calibration_BCHW),
        **_judge(int8.with_network(bundle, data, {}), judges_BCHW, num_cores),
    }
    model = register(registry, name, int8.with_network(bundle, data, facts))
    return {
        "model": model.reference,
        "uri": model.uri,
        "version": model.version,
        "digest": model.digest,
        **facts,
        "of": config.model,
    }


def _take_images(source: str, pool: DecoderPool) -> torch.Tensor:
    """Return [n,C,H,W] pixels of images from all over a source, in order of its listing.

    Those that cannot be read or decoded are left out; of a file of several crops there is the
    first.
    """
    requests = _spread_requests(source, int8.NUM_CALIBRATION + _MAX_JUDGES)
    found = sorted(_first_crops(requests, pool), key=lambda one: one[0])
    if len(found) < 2 * int8.MIN_CALIBRATION:
        raise ConfigError(
            f"imgcls quantize needs {2 * int8.MIN_CALIBRATION} images that decode, to calibrate "
            f"with and to judge by; {source} gives {len(found)}"
        )
    return torch.stack([x_CHW for _, x_CHW in found])


def _spread_requests(source: str, num_images: int) -> list[GetRequest]:
    """Return what to read of about so many images, one in every so many of the sorted listing."""
    requests: list[GetRequest] = []
    with stage(list_source(source)) as staging:
        every, start = max(1, staging.count() // num_images), 0
        for table in staging.sorted_tables(repeat(_ROWS_AT_A_TIME)):
            taken = table.take(list(range(-start % every, table.num_rows, every)))
            requests += requests_of(taken)
            start += table.num_rows
    return [replace(one, index=index) for index, one in enumerate(requests[:num_images])]


def _first_crops(
    requests: list[GetRequest], pool: DecoderPool
) -> Iterator[tuple[int, torch.Tensor]]:
    for image in pool.decode_many(get_images(requests, gives_unreadable=True)):
        if image.crops:
            yield image.index, torch.from_numpy(image.crops[0].x_CHW)


def _divide(x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what calibrates and what judges: images that take turns."""
    num_calibration = min(int8.NUM_CALIBRATION, len(x_BCHW) // 2)
    every = len(x_BCHW) // num_calibration
    calibrates = torch.zeros(len(x_BCHW), dtype=torch.bool)
    calibrates[: num_calibration * every : every] = True
    return x_BCHW[calibrates], x_BCHW[~calibrates]


def _judge(bundle: Bundle, x_BCHW: torch.Tensor, num_cores: int) -> dict[str, Any]:
    """Return what the int8 network makes of images, beside fp32, as facts for the bundle.

    An image that the network fails on in fp32 judges nothing: no night has a label of it.

    Raises:
        BundleError: too few images keep label, decision and probabilities.
    """
    exact, found = (_predict(bundle, x_BCHW, name, num_cores) for name in ("fp32", "int8"))
    judges_B = exact.ok_B
    num_judged = int(judges_B.sum())
    if num_judged < int8.MIN_CALIBRATION:
        raise BundleError(
            f"the model fails on {len(x_BCHW) - num_judged} of {len(x_BCHW)} images that were to "
            f"judge its int8 network; {int8.MIN_CALIBRATION} are needed. Nothing was registered"
        )
    rule = DecisionRule.of(bundle)
    both = [rule.all_answers(one.probs_BK[judges_B]) for one in (exact, found)]
    is_equal_B = np.array(list(map(tuple.__eq__, *both))) & found.ok_B[judges_B]
    moved_B = np.abs(found.probs_BK - exact.probs_BK)[judges_B].max(axis=1)
    usual = float(np.quantile(moved_B, int8.MIN_AGREEMENT, method="higher"))
    num_equal = int(is_equal_B.sum())
    of = f"of {num_judged} images that calibrated nothing"
    said = f"{num_equal} {of} keep label and decision"
    moved = f"probabilities {of} move by up to {moved_B.max():.2g}, those of 99 % by {usual:.2g}"
    why = ""
    if num_equal < int8.MIN_AGREEMENT * num_judged:
        why = f"only {said}; {int8.MIN_AGREEMENT:.0%} are needed"
    elif not usual <= int8.MAX_MOVED:  # written so that a NaN is refused too
        why = f"{moved}; allowed is {int8.MAX_MOVED:g}, although {said}"
    if why:
        raise BundleError(
            f"no int8 network for this model: {why}. Nothing was registered; score with "
            "--precision auto"
        )
    log.info("int8: %s; %s", said, moved)
    return {
        "num_judged": num_judged,
        "num_equal": num_equal,
        "agreement": round(num_equal / num_judged, 4),
        "largest_move": round(float(moved_B.max()), 4),
        "usual_move": round(usual, 4),
    }


def _predict(
    bundle: Bundle, x_BCHW: torch.Tensor, precision: Precision, num_cores: int
) -> Predictions:
    demand = demand_of_run(
        device="cpu",
        precision=precision,
        batch_size=0,
        num_images=len(x_BCHW),
        num_cores=num_cores,
    )
    with make_predictor(bundle, demand) as predictor:
        return predictor.predict_all(x_BCHW)
