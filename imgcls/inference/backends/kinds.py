"""Which ways of running a network repay what they cost to make, for a run of this length.

In: the network's work per image, the run's length, the machine. Out: kinds of backends, the best
first. Invariant: nothing is timed, so that two workers alike come to the same answer.
"""

from collections.abc import Callable
from typing import Final

from imgcls.inference.backends import openvino
from imgcls.inference.backends.backend import Kind
from imgcls.inference.backends.demand import Demand

# Images that repay importing torch.fx, tracing and folding (0.5 s; 1 to 3 ms saved per image).
_MIN_IMAGES_TO_FOLD: Final = 200
# What OpenVINO costs once it has converted the network for this user: converting takes 2 to 10 s
# more, the first night. And what compiling costs with an empty cache; with a full one 2 to 5 s.
_COST_S: Final = {"openvino": 2.0, "compiled": 20.0}
# Core seconds per 1e9 multiply-adds that they save on a CPU against a folded network: resnet18 on 2
# cores, OpenVINO 52 -> 57 images/s in fp32 and 105 -> 120 in bf16 in one run, compiled 50 -> 55 and
# 91 -> 105 in another.
_SAVED_CORE_S_PER_GMAC: Final = {
    "openvino": {"fp32": 0.0019, "bf16": 0.0014},
    "compiled": {"fp32": 0.002, "bf16": 0.0016},
}


def repaid_kinds(
    gmacs: float, demand: Demand, notes: list[str]
) -> Callable[[str], tuple[Kind, ...]]:
    """Return, per precision, the ways to run that repay themselves, the best first."""
    num_images = demand.num_images

    def kinds(precision: str) -> tuple[Kind, ...]:
        if num_images is None or num_images < _MIN_IMAGES_TO_FOLD:
            return ("eager",)
        repaid: list[Kind] = []
        for kind in ("openvino", "compiled"):
            saved_core_s_per_gmac = _SAVED_CORE_S_PER_GMAC[kind].get(precision)
            if demand.device.type != "cpu" or saved_core_s_per_gmac is None:
                continue
            if kind == "openvino" and not openvino.is_installed():
                continue
            saved_s = num_images * gmacs * saved_core_s_per_gmac / demand.num_cores
            notes.append(
                f"{kind} {precision} would save {saved_s:.0f} s over {num_images} images and costs "
                f"{_COST_S[kind]:.0f} s"
            )
            if saved_s > _COST_S[kind]:
                repaid.append(kind)
        if demand.wants_features:  # folded and compiled code calls no module that could be tapped
            return (*(kind for kind in repaid if kind == "openvino"), "eager")
        return (*repaid, "folded", "eager")

    return kinds
