"""The int8 network of a run: made by its first worker, read by all others and by every resume.

In: a run's plan and bundle. Out: what `int8.quantize` made of images of the run. Invariant: one run
has one such network: it is stored by put_new before a row is predicted with it. Calibrated anew, it
would differ: by the machine, or by an image that has gone since.

A run with too few images to calibrate on takes over the network of the run of the same model that
was published last, if there is one.
"""

import logging
from functools import partial
from itertools import islice

import numpy as np
import torch

from imgcls.errors import ConfigError, ImgclsError, ObjectMissingError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inference.backends.int8 import (
    BATCH_SIZE,
    MIN_CALIBRATION,
    NUM_CALIBRATION,
    quantize,
    require_openvino,
)
from imgcls.inference.backends.network import Network
from imgcls.inference.passes import Failure, Passes
from imgcls.model.bundle import Bundle
from imgcls.runs.plan import PlannedRows
from imgcls.runs.published import list_published
from imgcls.runs.run import Run
from imgcls.scoring.shard.sample import spread_requests
from imgcls.sources.read import get_images
from imgcls.storage.objects import exists, put_first, read

log = logging.getLogger(__name__)

# Images without which `quantize` gives no network.
_MIN_SAMPLE = 2 * MIN_CALIBRATION


def check_can_calibrate(output: str, model_digest: str, num_images: int) -> None:
    """Refuse a run that could have no int8 network, as far as can be told before it is planned.

    Raises:
        ConfigError: there are too few images, and no published run has a network to take over.
    """
    if 0 < num_images < _MIN_SAMPLE and not _find_earlier(output, model_digest):
        raise ConfigError(
            f"--precision int8 needs {_MIN_SAMPLE} images to calibrate with and to judge by, not "
            f"{num_images}, and no published run in {output} has calibrated this model: take "
            "--precision auto"
        )


def read_or_make_int8(planned: PlannedRows, bundle: Bundle, pool: DecoderPool) -> bytes:
    """Return the run's int8 network.

    Raises:
        ConfigError: OpenVINO is not installed, or there are too few images.
        BundleError: too many labels differ from fp32.
        StorageError: the store failed after all retries.
    """
    require_openvino()
    plan = planned.plan
    uri = plan.run.int8_network(plan.model_digest)
    try:
        return read(uri)
    except ObjectMissingError:
        sample_BCHW = take_sample(planned, pool)
    earlier = (
        _find_earlier(plan.output, plan.model_digest) if len(sample_BCHW) < _MIN_SAMPLE else ""
    )
    if earlier:
        told = "int8: %d images are too few to calibrate on; taking over %s"
        log.info(told, len(sample_BCHW), earlier)
        return put_first(uri, read(earlier))
    network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
    make = partial(quantize, network, multi_label=bundle.multi_label)
    try:
        data = make(sample_BCHW)
    except ImgclsError:
        raise
    except Exception:  # noqa: BLE001 - which errors a network raises, nobody knows
        data = make(_without_failing(network, sample_BCHW))
    return put_first(uri, data)


def _without_failing(network: Network, sample_BCHW: torch.Tensor) -> torch.Tensor:
    """Leave out the images that the network raises on; such an image becomes a row later."""
    passes = Passes(BATCH_SIZE, check=lambda _num_rows: None)
    with torch.inference_mode():
        found = passes.run(len(sample_BCHW), lambda rows, _size: network(sample_BCHW[rows]))
    failures = {rows.start: result for rows, result in found if isinstance(result, Failure)}
    reason = next((failure.reason for failure in failures.values()), "")
    log.warning(
        "int8: %d of %d images to calibrate with left out, the model fails on them: %s",
        len(failures),
        len(sample_BCHW),
        reason,
    )
    return sample_BCHW[[row for row in range(len(sample_BCHW)) if row not in failures]]


def _find_earlier(output: str, model_digest: str) -> str:
    """Return the network of the run of this model that was published last, or "" without any."""
    runs = [
        (manifest.published_at, Run(output, manifest.run_id).int8_network(model_digest))
        for _, manifest in list_published(output)
        if manifest.model_digest == model_digest
    ]
    return next((uri for _, uri in sorted(runs, reverse=True) if exists(uri)), "")


def take_sample(planned: PlannedRows, pool: DecoderPool) -> torch.Tensor:
    """Return uint8 [n,C,H,W] of images spread over the plan, in its order.

    Those that cannot be read or decoded are left out; of a multi-frame file there is the first.
    """
    crops = []
    for requests in spread_requests(planned, 2 * NUM_CALIBRATION):
        found = pool.decode_many(get_images(requests, gives_unreadable=True))
        decoded = sorted(found, key=lambda one: one.index)
        crops += [one.crops[0].x_CHW for one in decoded if one.crops]
    kept = list(islice(crops, 2 * NUM_CALIBRATION))
    return torch.from_numpy(np.stack(kept)) if kept else torch.empty(0)
