"""Which ways of running a network are worth a try, for a run of this length.

In: the network's work per image, the run's length, what is installed. Out: kinds of backends, the
likely best first. Invariant: what is cheap to make comes without a measurement; what costs seconds
to make, and the seconds of a measurement, are only for runs that are minutes or more of work.
"""

from typing import Final

from imgcls.inference.backends import openvino
from imgcls.inference.backends.demand import Demand, Kind

# Images that repay importing torch.fx, tracing and folding (0.5 s; 1 to 3 ms saved per image).
_MIN_IMAGES_TO_FOLD: Final = 200
# Multiply-adds for each core, in 1e9: on a core of 2023 in fp32 half a minute of work. Measuring
# takes 1 to 3 s, and to convert a network for OpenVINO 2 to 10 s, both once.
_MIN_CORE_GMACS: Final = 1_500
# What compiling costs with an empty cache, and the least share of a run's time that it saves.
_COMPILE_S: Final = 20.0
_SAVED_BY_COMPILING: Final = 0.05


def is_long(gmacs: float, demand: Demand) -> bool:
    """Tell whether a run repays a measurement of what runs it fastest."""
    return (demand.num_images or 0) * gmacs / demand.num_cores >= _MIN_CORE_GMACS


def likely_kinds(demand: Demand, *, long: bool) -> tuple[Kind, ...]:
    """Return the kinds to try, the likely best first."""
    tried: list[Kind] = ["eager"]
    # Folded code calls no module that could be tapped.
    if (demand.num_images or 0) >= _MIN_IMAGES_TO_FOLD and not demand.wants_features:
        tried.insert(0, "folded")
    if long and demand.device.type == "cpu" and openvino.is_installed():
        tried.insert(0, "openvino")
    if long and demand.device.type == "cpu" and not demand.wants_features:
        tried.append("compiled")  # where it is seen to repay itself
    return tuple(tried)


def repays_compiling(demand: Demand, kind: Kind, images_per_s: float) -> bool:
    """Tell whether compiling saves a run at this rate more than it costs; not beside OpenVINO."""
    return kind != "openvino" and (
        _SAVED_BY_COMPILING * (demand.num_images or 0) > _COMPILE_S * images_per_s
    )
