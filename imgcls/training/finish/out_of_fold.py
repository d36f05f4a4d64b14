"""What the models of the folds say of the images that they have not seen.

In: a fold that is trained. Out: out_of_fold.npz in its run's folder, and all of them joined as if
one model had said it. Invariant: the file is there only when the fold is done, so that a command
that was killed does only the folds that are missing.

Shape legend: B image, K class.
"""

import io
import json
from typing import Any, Final

import numpy as np

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.inference.collect import Collected, NoPrediction
from imgcls.schema import Status
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import exists, put, read
from imgcls.storage.uri import join
from imgcls.training.planning.folds import fold_plans
from imgcls.training.train_plan import OUT_OF_FOLD, TrainPlan

FILE: Final = "out_of_fold.npz"


def is_measured(fold: TrainPlan) -> bool:
    """Say whether a fold is done."""
    return exists(join(fold.run_uri, FILE))


def write_out_of_fold(fold: TrainPlan, found: Collected, metrics: dict[str, Any]) -> None:
    """Keep what the model of a fold says of its images.

    Args:
        fold: Its plan.
        found: Of its test split.
        metrics: Of the same, for the spread.
    """
    uris = [sample.uri for sample in fold.learnt("test")]
    failures = [(uris[each.index], each.status, each.reason) for each in found.failures]
    facts = {
        "uris": [uris[index] for index in found.index_B.tolist()],
        "failures": failures,
        "numbers": {name: metrics.get(name) for name in ("num_images", "accuracy", "auroc_macro")},
    }
    buffer = io.BytesIO()
    np.savez(buffer, probs_BK=found.probs_BK, facts=np.array(json.dumps(facts)))
    put(join(fold.run_uri, FILE), buffer.getvalue())


def read_out_of_fold(plan: TrainPlan) -> tuple[Collected, list[dict[str, Any]]]:
    """Return what the folds say, in the order of the training split, and the numbers of each fold.

    Raises:
        ObjectMissingError: a fold is not there.
    """
    index_by_uri = {sample.uri: i for i, sample in enumerate(plan.learnt("train"))}
    index, probs, failures, numbers = list[int](), [], list[NoPrediction](), []
    for fold in fold_plans(plan):
        uri = join(fold.run_uri, FILE)
        try:
            stored = np.load(io.BytesIO(read(uri)), allow_pickle=False)
        except ObjectMissingError as error:
            raise ObjectMissingError(f"{uri} is missing: give the same command again") from error
        facts = parse_object(str(stored["facts"]), uri, SourceError)
        index += [index_by_uri[each] for each in facts["uris"]]
        probs.append(stored["probs_BK"])
        failures += [
            NoPrediction(index_by_uri[each], Status(status), reason)
            for each, status, reason in facts["failures"]
        ]
        numbers.append({"fold": fold.fold, **facts["numbers"]})
    order = np.argsort(index, kind="stable")
    found = Collected(
        np.array(index, np.int64)[order], np.concatenate(probs)[order], failures=failures
    )
    return found, numbers


def samples_of(plan: TrainPlan, split: str) -> list[Any]:
    """Return what a split's predictions are of: images, or units."""
    return list(plan.learnt("train" if split == OUT_OF_FOLD else split))
