"""`train --head linear`: the backbone stays as it is, its last layer is fitted on its features.

In: a plan, a state with the backbone's weights, the loaders. Out: the same state, with the fitted
last layer as its best weights. Invariants: each image goes through the backbone once, and not at
all where an earlier run of this backbone saw the same pixels; validation and test images decide
nothing.

Shape legend: N image, E embedding, K classes.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from imgcls.errors import ConfigError
from imgcls.image.decoders.pool import Decoded
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.collect import collect
from imgcls.inference.predictor import Predictor, make_predictor
from imgcls.model.architectures import find_head
from imgcls.model.bundle import Bundle, to_probs
from imgcls.model.bundle_files import ONNX
from imgcls.progress import Progress
from imgcls.storage.uri import join
from imgcls.training.data.loader import SplitLoader
from imgcls.training.finish.finish import unmeasured_bundle
from imgcls.training.finish.measure import decoded_images
from imgcls.training.head.feature_store import FeatureStore, key_of
from imgcls.training.head.solver import LinearHead, balanced_weights, fit_linear_head
from imgcls.training.optim.train_state import TrainState, copy_to_cpu
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import TrainPlan, work_dir

# A last layer that is linear in the embedding gives the probabilities of `fit` to rounding.
_TOLERANCE = 1e-3

log = logging.getLogger(__name__)


def fit_head(
    plan: TrainPlan, state: TrainState, loaders: dict[str, SplitLoader], place: Place
) -> None:
    """Fit the last layer; the state is that of a finished training then.

    Raises:
        ConfigError: the backbone gives no embedding, or its last layer is not linear in it.
        BudgetExceededError: too many images give no pixels.
    """
    start_s = time.monotonic()
    # A start that was killed finds the version that an earlier one registered.
    state.run_id = f"head-{plan.fingerprint}"
    state.best = copy_to_cpu(state.model.state_dict())
    loader = loaders["train"]
    bundle = unmeasured_bundle(plan, state)
    demand = demand_of_run(
        device=place.device,
        precision="fp32",
        batch_size=0,
        num_images=len(loader.samples),
        num_cores=torch.get_num_threads(),
        embedding=True,
    )
    digest = _backbone_digest(bundle)
    store = FeatureStore(join(work_dir(plan.config), "features", digest[:16]))
    with make_predictor(bundle, demand) as predictor:
        if predictor.why_no_features:
            raise ConfigError(f"--head linear: {predictor.why_no_features}")
        index_N, features_NE = _features(loader, predictor, store)
    num_new = store.num_new
    store.save()
    log.info(
        "features of %d images: %d computed by %s, %d known from earlier",
        len(index_N),
        num_new,
        predictor.name,
        len(index_N) - num_new,
    )
    features_s = time.monotonic() - start_s
    head = _fit(plan, loader, index_N, features_NE)
    state.best |= _as_tensors(bundle, head)
    state.train_s = time.monotonic() - start_s
    log.info(
        "head fitted in %.1f s after %.1f s of features; strength %g by folds: log loss %s",
        state.train_s - features_s,
        features_s,
        head.strength,
        head.loss_by_strength or "unknown, too few groups",
    )
    state.best_metrics = {"epoch": 0}
    state.facts["head"] = {
        "kind": "linear",
        "strength": head.strength,
        "fold_log_loss": head.loss_by_strength,
        "num_features": len(index_N),
        "num_computed": num_new,
        "features_by": predictor.name,
        "features_s": round(features_s, 3),
    }
    _prove(plan, state, loaders, head, features_NE, index_N)


def _features(
    loader: SplitLoader, predictor: Predictor, store: FeatureStore
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return which images have features, and those."""
    keys: dict[int, bytes] = {}

    def unknown() -> Iterator[Decoded]:
        with (
            Progress("features", len(loader.samples), "images") as progress,
            closing(decoded_images(loader, predictor.batch_size)) as images,
        ):
            for image in images:
                keys[image.index] = key = key_of(image.crops)
                if key not in store:
                    yield image
                progress.advance(1)

    found = collect(unknown(), predictor, [sample.uri for sample in loader.samples])
    for failure in found.failures:
        uri = loader.samples[failure.index].uri
        log.warning("train split: left out %s: %s", uri, failure.reason)
    if found.embedding_BE is not None:
        for index, embedding_E in zip(found.index_B.tolist(), found.embedding_BE, strict=True):
            store.add(keys[index], embedding_E)
    index = sorted(index for index, key in keys.items() if key in store)
    if not index:
        raise ConfigError("--head linear: no training image has features, see the log")
    return np.array(index), np.stack([store[keys[one]] for one in index])


def _fit(
    plan: TrainPlan,
    loader: SplitLoader,
    index_N: npt.NDArray[np.int64],
    features_NE: npt.NDArray[np.float32],
) -> LinearHead:
    samples = [plan.splits["train"][index] for index in index_N.tolist()]
    target_NK = np.zeros((len(samples), len(plan.class_names)), bool)
    for row, sample in enumerate(samples):
        target_NK[row, list(sample.labels)] = True
    weight_N = np.array([sample.weight for sample in samples], np.float32)
    multi_label = plan.config.multi_label
    if plan.config.balance == "weights" and not multi_label:
        weight_N = weight_N * balanced_weights(target_NK)
    _, group_N = np.unique([sample.group or sample.uri for sample in samples], return_inverse=True)
    return fit_linear_head(
        features_NE,
        target_NK,
        weight_N=weight_N,
        group_N=group_N,
        multi_label=multi_label,
        seed=plan.config.seed,
    )


def _as_tensors(bundle: Bundle, head: LinearHead) -> dict[str, torch.Tensor]:
    """Return the last layer's tensors by name."""
    name, layer = find_head(bundle.to_model())
    if layer.bias is None:
        raise ConfigError(f"--head linear: the last layer of {bundle.arch} has no bias")
    weight = torch.from_numpy(head.weight_KE)
    return {
        f"{name}.weight": weight if isinstance(layer, nn.Linear) else weight[:, :, None, None],
        f"{name}.bias": torch.from_numpy(head.bias_K),
    }


def _backbone_digest(bundle: Bundle) -> str:
    """Return the digest of all that makes features of pixels: weights but the last layer's."""
    name, _ = find_head(bundle.to_model())
    backbone = {
        key: tensor.contiguous()
        for key, tensor in sorted(bundle.state_dict.items())
        if not key.startswith(f"{name}.")
    }
    digest = hashlib.sha256(safetensors.torch.save(backbone))
    digest.update(bundle.attachments.get(ONNX, b""))
    decisive: list[Any] = [bundle.arch, bundle.preprocess_spec.to_dict()]
    options = {k: v for k, v in bundle.arch_options.items() if k != "new_head"}
    spec = json.dumps([*decisive, options] if options else decisive, sort_keys=True)
    digest.update(spec.encode())
    return digest.hexdigest()


def _prove(
    plan: TrainPlan,
    state: TrainState,
    loaders: dict[str, SplitLoader],
    head: LinearHead,
    features_NE: npt.NDArray[np.float32],
    index_N: npt.NDArray[np.int64],
) -> None:
    """Refuse a network whose last layer is not what was fitted: more than linear, or one of two."""
    rows = slice(0, 4)
    images = {
        image.index: image.crops[0].x_CHW
        for image in decoded_images(loaders["train"], 4, index_N[rows])
    }
    x_BCHW = torch.from_numpy(np.stack([images[index] for index in index_N[rows].tolist()]))
    bundle = unmeasured_bundle(plan, state)
    with make_predictor(
        bundle,
        demand_of_run(device="cpu", precision="fp32", batch_size=4, num_images=4, num_cores=1),
    ) as predictor:
        probs_BK = predictor.predict_all(x_BCHW).probs_BK
    logits_BK = torch.from_numpy(features_NE[rows] @ head.weight_KE.T + head.bias_K)
    expected_BK = to_probs(logits_BK, multi_label=plan.config.multi_label).numpy()
    if not np.abs(probs_BK - expected_BK).max() <= _TOLERANCE:
        raise ConfigError(
            f"--head linear: what {plan.config.arch} does after its embedding is more than one "
            "linear layer; take another backbone, or --head full"
        )
