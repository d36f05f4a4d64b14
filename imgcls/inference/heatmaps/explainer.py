"""How the answers of a model are explained: by class activation where that is exact, or occlusion.

In: a bundle, and the predictor that runs it. Out: an Explainer. Invariant: the predictor stays as
fast as it was chosen: class activation has a network of its own, in fp32, which sees only inputs
that get a map. (To ask the fast backend for its feature map would cost every image of a night its
bf16, int8 or compiled code: see `Demand.wants_features`.)
"""

import logging
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imgcls.image.decoded import Pixels
from imgcls.inference.backends.features import find_tap_points
from imgcls.inference.backends.network import Network
from imgcls.inference.heatmaps.class_activation import ClassActivation, find_readout, find_shift
from imgcls.inference.heatmaps.occlusion import Occlusion
from imgcls.inference.predictor import Predictor
from imgcls.model.bundle import Bundle
from imgcls.model.networks import onnx_network

_log = logging.getLogger(__name__)


class Explainer(Protocol):
    """Makes maps of inputs: which places speak for a label."""

    name: str
    """How it does that, for people."""

    @property
    def num_passes(self) -> int:
        """Forward passes that a map costs at most."""
        ...

    @property
    def shift_px(self) -> tuple[float, float]:
        """How far right and below of its cell lies what a place of a map saw."""
        ...

    def maps(self, x_BCHW: Pixels, label_B: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float32]]:
        """Return a map [h,w] of each input, above zero where its place speaks for the label."""
        ...


def make_explainer(bundle: Bundle, predictor: Predictor) -> Explainer:
    """Return what explains a bundle's answers, and say how it does.

    Args:
        bundle: with its weights.
        predictor: of this bundle.
    """
    explainer = _class_activation(bundle, predictor) or Occlusion(
        lambda x_NCHW: predictor.predict_all(x_NCHW).probs_BK,
        bundle.preprocess_spec.shape_CHW,
        multi_label=bundle.multi_label,
    )
    if explainer.num_passes == 1:
        _log.info("heatmaps of this model (%s): by class activation, one pass each", bundle.arch)
    else:
        _log.info(
            "heatmaps of this model (%s): by occlusion, %d passes each at most, since its last "
            "layers are not a pooling of places and one linear layer%s",
            bundle.arch,
            explainer.num_passes,
            " that can be seen: it gives logits alone" if bundle.arch == onnx_network.ARCH else "",
        )
    return explainer


def _class_activation(bundle: Bundle, predictor: Predictor) -> ClassActivation | None:
    if bundle.arch == onnx_network.ARCH:
        return None
    network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
    network = network.to(predictor.device)
    x_BCHW = bundle.golden_x_BCHW.to(predictor.device)
    points = find_tap_points(network, x_BCHW[:1])
    readout = find_readout(network, points, x_BCHW)
    if readout is None:
        return None
    shift_px = find_shift(network, points, x_BCHW)
    return ClassActivation(
        network, points, readout, multi_label=bundle.multi_label, shift_px=shift_px
    )
