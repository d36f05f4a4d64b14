"""`imgcls quantize`: a model's next version, with an int8 network of its own.

In: a registered model, images of the kind to come. Out: the next version of its name: the same
weights, classes, thresholds and papers, and a network in int8 beside them. Invariant: images that
calibrated nothing keep their labels and decisions in MIN_AGREEMENT of all cases, or there is no
such version; every night of it runs these very bytes.

Calibrated once, here, a night starts as fast as any, be it of five images or of a million.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any, Final

import torch

from imgcls.config.scoring import QuantizeConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inference.backends import int8
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.backends.network import Network
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.device import num_cores_here
from imgcls.inference.predictor import make_predictor
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
        from), num_calibrated, num_judged, num_equal, agreement.

    Raises:
        ConfigError: the model is in no registry or takes more than 8 bits, OpenVINO is not
            installed, or too few images.
        BundleError: too many labels or decisions differ from fp32; nothing was registered.
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
    num_equal = _count_equal(int8.with_network(bundle, data, {}), judges_BCHW, num_cores)
    facts = {
        "of": bundle.digest,
        "num_calibrated": len(calibration_BCHW),
        "num_judged": len(judges_BCHW),
        "num_equal": num_equal,
        "agreement": round(num_equal / len(judges_BCHW), 4),
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


def _count_equal(bundle: Bundle, x_BCHW: torch.Tensor, num_cores: int) -> int:
    """Return how many images get the same labels and decision in int8 as in fp32.

    Raises:
        BundleError: too few.
    """
    rule, answers = DecisionRule.of(bundle), []
    for precision in ("fp32", "int8"):
        demand = demand_of_run(
            device="cpu",
            precision=precision,
            batch_size=0,
            num_images=len(x_BCHW),
            num_cores=num_cores,
        )
        with make_predictor(bundle, demand) as predictor:
            answers.append(rule.all_answers(predictor.predict_all(x_BCHW).probs_BK))
    num_equal = sum(map(tuple.__eq__, *answers))
    said = f"{num_equal} of {len(x_BCHW)} images that calibrated nothing keep label and decision"
    if num_equal < int8.MIN_AGREEMENT * len(x_BCHW):
        raise BundleError(
            f"no int8 network for this model: only {said}; {int8.MIN_AGREEMENT:.0%} are needed. "
            "Nothing was registered; score with --precision auto"
        )
    log.info("int8: %s", said)
    return num_equal
