"""The int8 network of a run: made by its first worker, read by all others and by every resume.

In: a run's plan and bundle. Out: what `int8.quantize` made of images of the run. Invariant: one run
has one such network: it is stored by put_new before a row is predicted with it. Calibrated anew, it
would differ: by the machine, or by an image that has gone since.
"""

from itertools import islice

import numpy as np
import torch

from imgcls.errors import ObjectExistsError, ObjectMissingError
from imgcls.image.pool import DecoderPool
from imgcls.model.artifact import Bundle
from imgcls.model.engine import Network
from imgcls.model.int8 import NUM_CALIBRATION, quantize, require_openvino
from imgcls.scoring.plan import Plan, read_shard_rows, run_uri
from imgcls.scoring.shard import get_requests
from imgcls.storage.objects import put_new, read
from imgcls.storage.transfer import get_many
from imgcls.storage.uri import join

# Shards that give images: a few from all over the source, for neighbours are alike.
_MAX_SHARDS = 16


def read_or_make_int8(output: str, plan: Plan, bundle: Bundle, pool: DecoderPool) -> bytes:
    """Return the run's int8 network.

    Raises:
        ConfigError: OpenVINO is not installed, or there are too few images.
        BundleError: too many labels differ from fp32.
        StorageError: the store failed after all retries.
    """
    require_openvino()
    uri = join(run_uri(output, plan.run_id), f"int8-{plan.model_digest[:16]}.zip")
    try:
        return read(uri)
    except ObjectMissingError:
        network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
        sample_BCHW = take_sample(output, plan, pool)
        data = quantize(network, sample_BCHW, multi_label=bundle.multi_label)
    try:
        put_new(uri, data)
    except ObjectExistsError:  # another worker was faster
        return read(uri)
    return data


def take_sample(output: str, plan: Plan, pool: DecoderPool) -> torch.Tensor:
    """Return uint8 [n,C,P,P] of images spread over the plan, in its order.

    Those that cannot be read or decoded are left out; of a multi-frame file there is the first.
    """
    shards = list(plan.shards())
    shards = shards[:: -(-len(shards) // _MAX_SHARDS)]
    num_per_shard = -(-2 * NUM_CALIBRATION // len(shards))
    crops = []
    for shard in shards:
        rows = read_shard_rows(output, plan, shard)
        taken = rows.take(list(range(0, rows.num_rows, -(-rows.num_rows // num_per_shard))))
        found = pool.decode_many(get_many(get_requests(taken)))
        decoded = sorted(found, key=lambda one: one.index)
        crops += [one.crops[0].x_CHW for one in decoded if one.crops]
    kept = list(islice(crops, 2 * NUM_CALIBRATION))
    return torch.from_numpy(np.stack(kept)) if kept else torch.empty(0)
