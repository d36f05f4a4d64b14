"""A finished training that is given another target: new thresholds, no new weights.

In: a plan, and the result of the finished training of the same weights. Out: the result of the
version that has what the flags ask for now. Invariant: the network is the finished one to the bit;
what is applied after the last epoch (`AT_THE_END`) is applied again, to the same images.
"""

import logging
from dataclasses import replace
from typing import Any

import torch

from imgcls.image.decoders.pool import DecoderPool
from imgcls.model.bundle import Bundle, read_bundle, read_facts
from imgcls.model.registry import ModelVersion, list_versions, register
from imgcls.training.finish.finish import (
    describe_model,
    measure_bundle,
    with_numbers,
    without_places,
)
from imgcls.training.optim.setup import make_loaders
from imgcls.training.ranks.rank import Place
from imgcls.training.record.finished import write_finished
from imgcls.training.record.run_record import changed_at_the_end
from imgcls.training.train_plan import TrainPlan

log = logging.getLogger(__name__)


def recalibrate(plan: TrainPlan, finished: dict[str, Any], place: Place) -> dict[str, Any]:
    """Fit thresholds and numbers of a finished training again, and register them.

    Args:
        plan: With other flags AT_THE_END than the finished training.
        finished: Its result.
        place: Where to measure.
    """
    earlier = read_bundle(finished["uri"])
    found = _find_version(plan, earlier)
    if found is None:
        log.info(
            "%s has these weights already: nothing is trained, thresholds and numbers are fitted "
            "again as the flags ask now",
            finished["model"],
        )
        bundle = _measured_again(plan, earlier, place)
        found = register(plan.config.registry, plan.config.name, bundle)
    bundle = read_bundle(found.uri)
    result = {**finished, **describe_model(bundle, found), "recalibrated": True}
    write_finished(plan, result)
    return result


def _find_version(plan: TrainPlan, earlier: Bundle) -> ModelVersion | None:
    """Return a version of these weights that has what is asked for, from an earlier command."""
    for model in reversed(list_versions(plan.config.registry, plan.config.name)):
        facts = read_facts(model.uri).training
        is_same_run = facts.get("run_id") == earlier.training.get("run_id")
        if is_same_run and not changed_at_the_end(plan, facts["config"]):
            return model
    return None


def _measured_again(plan: TrainPlan, earlier: Bundle, place: Place) -> Bundle:
    held_out = replace(plan, splits={**plan.splits, "train": []})
    num_decoders = plan.config.num_decoders or torch.get_num_threads()
    with DecoderPool(plan.decode_spec, plan.preprocess_spec, num_decoders) as pool:
        loaders = make_loaders(held_out, pool, place)
        measured, facts = measure_bundle(earlier, plan, loaders, place)
        kept = {k: v for k, v in earlier.training.items() if k != "no_operating_point"}
        training = kept | facts | {"config": without_places(plan.config)}
        return with_numbers(replace(earlier, training=training), plan, measured, loaders)
