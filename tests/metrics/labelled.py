"""Images of one label each, measured as the package does."""

from typing import Any

import numpy as np

from imgcls.data.class_names import ClassNames
from imgcls.metrics.measures import Labelled, one_hot
from imgcls.metrics.quality import measure_quality


def measure_one(
    label_B: np.ndarray,
    pred_B: np.ndarray,
    names: ClassNames,
    probs_BK: np.ndarray | None = None,
    units: list[str] | None = None,
    **bootstrap: int,
) -> dict[str, Any]:
    """Measure images of one label each."""
    sets = (one_hot(label_B, len(names)), one_hot(pred_B, len(names)))
    data = Labelled(*sets, names, multi_label=False, probs_BK=probs_BK)
    return measure_quality(data, units, **bootstrap)
