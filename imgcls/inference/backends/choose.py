"""Choose how a bundle's network runs on this device: precision, folding, compiling.

In: a bundle and a demand. Out: a Backend, and one log line that says what was chosen and why.
Invariant: the network as it was trained, in fp32, reproduces the golden probabilities here, or
nothing runs; any other backend was checked against them too, on this device, in the batch shape
that it will run.

What a short run takes depends on the bundle and the demand alone. For a long one the ways that may
be the fastest are timed here, once (measured.py); a run keeps to what its first worker took, and
the demands of others say so, because the rows of a run must not mix backends. Nothing depends on
what memory happens to be free: where it is short, a pass has fewer rows.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Final, Literal

import torch
from torch import Tensor

from imgcls.config.choices import Precision
from imgcls.errors import BundleError, ConfigError, DeviceFailedError
from imgcls.inference.backends import int8, openvino
from imgcls.inference.backends.arithmetic import (
    gpu_has_bf16,
    has_fast_bf16,
    has_tf32,
    set_fp32_arithmetic,
)
from imgcls.inference.backends.backend import Backend, pad
from imgcls.inference.backends.demand import Demand
from imgcls.inference.backends.features import (
    Features,
    Tap,
    TapPoints,
    features_of,
    find_embedding,
    find_tap_points,
    tapped_network,
)
from imgcls.inference.backends.golden_check import check_as_trained, prove
from imgcls.inference.backends.kinds import is_long, likely_kinds
from imgcls.inference.backends.measured import Way, fastest, key_of
from imgcls.inference.backends.network import Network, compile_network, fold_batchnorm
from imgcls.inference.device import set_num_threads
from imgcls.inference.passes import Failure, describe_error
from imgcls.model.bundle import Bundle
from imgcls.model.bundle_files import INT8
from imgcls.model.networks import onnx_network

# Multiply-adds per image, in 1e9, below which decoding an image takes longer than the network:
# mobilenet_v3_small (0.06) runs at 500 images/s on 2 cores in fp32, resnet18 (1.8) at 50.
_MIN_GMACS_FOR_LOW_PRECISION: Final = 0.03

_log = logging.getLogger(__name__)


def choose_backend(bundle: Bundle, demand: Demand) -> Backend:
    """Return the fastest backend that gives the bundle's golden probabilities on this device.

    Raises:
        BundleError: fp32 misses the golden probabilities, or the precision asked for does.
        ConfigError: the precision asked for cannot be had here.
        DeviceFailedError: there is no memory for one image, or the device fails.
    """
    if bundle.arch == onnx_network.ARCH and demand.device.type != "cpu":
        _log.warning("this model is an ONNX network, which runs on the CPU: no GPU is used")
        demand = replace(demand, device=torch.device("cpu"))
    # In a thread like those that will run it: code is compiled for a number of threads.
    with ThreadPoolExecutor(1, "choose", set_num_threads, (demand.num_threads,)) as thread:
        try:
            return thread.submit(_choose, bundle, demand).result()
        except Exception as error:
            if Failure.of(error).is_out_of_memory:
                raise DeviceFailedError(
                    f"out of memory while the model is made ready: {describe_error(error)}"
                ) from error
            raise


def _choose(bundle: Bundle, demand: Demand) -> Backend:
    _check_can_have(demand)
    set_fp32_arithmetic("fp32")
    network = Network(bundle.to_model().to(demand.device), bundle.preprocess_spec, "fp32").eval()
    plain = Backend(network, network, "fp32", "eager", demand, demand.batch_size)
    gmacs = check_as_trained(plain, bundle)
    plain = _with_points(plain, bundle)
    if demand.precision == "int8":
        return _int8_backend(plain, bundle)
    notes: list[str] = []
    long = is_long(gmacs, demand)
    ways = _ways(bundle, demand, gmacs, notes, long=long)

    def make(way: Way) -> Backend | None:
        return _make(plain, bundle, way, notes)

    backend = None
    if long and not demand.kind:
        # An ONNX network is OpenVINO's either way: eager is for where that cannot take it whole.
        is_onnx = bundle.arch == onnx_network.ARCH
        timed = [way for way in ways if way.kind != "eager" or not is_onnx]
        key = key_of(bundle.network_digest, demand)
        backend = fastest(timed, make, bundle.golden_x_BCHW, key, notes)
        ways = [way for way in ways if way not in timed]
    if backend is None:
        backend = next(filter(None, map(make, ways)), None)
    if backend is None:
        raise BundleError(
            f"--precision {demand.precision}: this model does not keep its golden predictions with "
            f"it: {'; '.join(notes)}. Take --precision fp32, or auto."
        )
    return _chosen(backend, notes)


def _ways(
    bundle: Bundle, demand: Demand, gmacs: float, notes: list[str], *, long: bool
) -> list[Way]:
    """Return what may run this network: what the run has settled on, then the likely best."""
    precisions = _precisions(bundle, demand, gmacs, notes, long=long)
    settled = [Way(one, demand.kind) for one in precisions if demand.kind]
    if bundle.arch != onnx_network.ARCH:
        likely = likely_kinds(demand, long=long)
        return settled + [Way(one, kind) for one in precisions for kind in likely]
    # OpenVINO reads it as it is, torch not at all; eager is OpenVINO by way of a module that can be
    # tapped.
    if demand.wants_features:
        return [Way(one, "eager") for one in precisions]
    ways = [Way(one, "openvino") for one in precisions]
    return [*ways, Way("fp32", "eager")] if "fp32" in precisions else ways


def _make(plain: Backend, bundle: Bundle, way: Way, notes: list[str]) -> Backend | None:
    """Return a backend that gives the golden predictions, or note why there is none."""
    precision, kind = way
    set_fp32_arithmetic(precision)
    backend: Backend | None = plain
    if way == ("fp32", "eager"):
        # Proven already; on a CPU it takes no other memory than the images' own.
        if plain.device.type == "cpu":
            return plain
    elif kind == "openvino":
        backend = _build_openvino(plain, bundle, precision, notes)
    else:
        backend = _build(plain, bundle, precision, kind, notes)
    if backend is None:
        return None
    backend, miss = prove(backend, bundle, notes)
    if miss:
        notes.append(f"{backend.name} refused: {miss}")
        return None
    return backend


def _int8_backend(plain: Backend, bundle: Bundle) -> Backend:
    """Return the backend of the bundle's int8 network, which was judged when it was made."""
    demand = plain.demand
    if demand.device.type != "cpu":
        raise ConfigError("--precision int8 runs on CPUs: add --device cpu, or take auto")
    if demand.wants_features:
        raise ConfigError("--precision int8 gives no embeddings: take --precision fp32")
    if why := int8.why_not(bundle):
        raise ConfigError(
            f"--precision int8: this model {why}. Make a version that has one, once: imgcls "
            "quantize --model REGISTRY/NAME@vN --data IMAGES; or take --precision auto"
        )
    forward = openvino.load(bundle.attachments[INT8], demand.num_streams, "int8")
    backend = replace(plain, forward=forward, precision="int8", kind="openvino", points=None)
    backend, miss = prove(backend, bundle, [])
    if miss:
        raise BundleError(miss)
    return _chosen(backend, [])


def _check_can_have(demand: Demand) -> None:
    if demand.precision == "tf32" and not has_tf32(demand.device):
        raise ConfigError(
            f"--precision tf32: {demand.device.type} has no such arithmetic here, only NVIDIA GPUs "
            "from Ampere on have; take --precision auto or fp32"
        )


def _chosen(backend: Backend, notes: list[str]) -> Backend:
    points = backend.points
    if points is not None and backend.features is None and _can_be_tapped(backend, points):
        backend = replace(backend, features=Tap(backend.module, points).read)
    _log.info("backend: %s (%s)", backend.name, "; ".join(notes) or "as asked")
    if backend.demand.sketch and backend.features is None:
        _log.info("%s gives no embeddings beside its answers", backend.name)
    if backend.why_no_features:
        _log.warning("features that were asked for are not there: %s", backend.why_no_features)
    return backend


def _with_points(plain: Backend, bundle: Bundle) -> Backend:
    """Return the same backend with where to tap it, or with the reason why it cannot be."""
    demand = plain.demand
    if not demand.wants_features:
        if not demand.sketch or bundle.arch == onnx_network.ARCH:
            return plain
        return replace(plain, points=find_embedding(plain.module))
    of_file = [m for m in plain.module.modules() if isinstance(m, onnx_network.OnnxNetwork)]
    if why := next((one.why_no_embedding for one in of_file), ""):
        return replace(plain, why_no_features=why)
    points = find_tap_points(plain.module, bundle.golden_x_BCHW[:1].to(plain.device))
    why = points.why_no_map if plain.demand.feature_map else ""
    return replace(plain, points=points, why_no_features=why)


def _precisions(
    bundle: Bundle, demand: Demand, gmacs: float, notes: list[str], *, long: bool
) -> tuple[Precision, ...]:
    """Return the precisions that the device has, the likely fastest first."""
    if demand.precision != "auto":
        return (demand.precision,)
    if bundle.decode_spec.pixel_type != "uint8":
        notes.append("a model of --depth 16: other precisions round its pixels to 8 or 10 bits")
        return ("fp32",)
    if demand.wants_features:
        notes.append("features have no golden values to check another precision with")
        return ("fp32",)
    if gmacs < _MIN_GMACS_FOR_LOW_PRECISION and not long:
        notes.append(f"{gmacs:.3f} GMAC per image are too few to gain from another precision")
        return ("fp32",)
    device = demand.device
    if device.type == "cuda":
        # fp16 overflows at 65,504, which a few golden images cannot rule out: second choice.
        has: dict[Precision, bool] = {
            "bf16": gpu_has_bf16(device),
            "fp16": True,
            "tf32": has_tf32(device),
            "fp32": True,
        }
        return tuple(name for name, is_there in has.items() if is_there)
    if not has_fast_bf16():
        notes.append("this CPU has no bf16 arithmetic")
        return ("fp32",)
    return ("bf16", "fp32")


def _build_openvino(
    plain: Backend, bundle: Bundle, precision: str, notes: list[str]
) -> Backend | None:
    """Build a backend of OpenVINO, or note why it cannot be."""
    found = _convert_to_openvino(plain, bundle, precision, notes)
    if found is None and plain.points is not None and not plain.demand.wants_features:
        untapped = replace(plain, points=None)
        return _convert_to_openvino(untapped, bundle, precision, notes)
    return found


def _convert_to_openvino(
    plain: Backend, bundle: Bundle, precision: str, notes: list[str]
) -> Backend | None:
    key = bundle.network_digest
    if plain.points is not None:
        what = "features" if plain.demand.wants_features else "embedding"
        key = key and f"{key}-{what}"

    @cache
    def of_size(num_rows: int) -> openvino.Compiled:
        x_BCHW = pad(bundle.golden_x_BCHW[:num_rows], num_rows)
        with tapped_network(plain.module, plain.points) as network:
            data = openvino.convert_once(network, x_BCHW, key)
        return openvino.load(data, plain.demand.num_streams, precision)

    try:
        of_size(plain.batch_size)
    except Exception as error:  # noqa: BLE001 - any network, any failure: another backend runs
        _note_skipped("not converted to OpenVINO", error, notes)
        return None
    of_thread = threading.local()

    def forward(x_BCHW: Tensor) -> Tensor:
        of_thread.compiled = of_size(len(x_BCHW))
        logits_BK: Tensor = of_thread.compiled(x_BCHW)
        return logits_BK

    def features() -> Features:
        return features_of(of_thread.compiled.rest())

    return replace(
        plain,
        forward=forward,
        features=features if plain.points is not None else None,
        precision=precision,
        kind="openvino",
    )


def _build(
    plain: Backend,
    bundle: Bundle,
    precision: str,
    kind: Literal["eager", "folded", "compiled"],
    notes: list[str],
) -> Backend | None:
    """Build a backend of torch, or note why it cannot be."""
    assert isinstance(plain.module, Network)
    # To build it once more from the bundle would draw random weights first.
    classifier = copy.deepcopy(plain.module.classifier)
    if kind == "folded":
        try:
            classifier = fold_batchnorm(classifier)
        except Exception as error:  # noqa: BLE001 - many networks cannot be traced; folding is optional
            _note_skipped("not folded", error, notes)
            return None
    network = Network(classifier, bundle.preprocess_spec, precision).eval()
    forward: Callable[[Tensor], Tensor] = network
    if kind == "compiled":
        forward = compile_network(network)
    return replace(
        plain,
        forward=forward,
        module=network,
        precision=precision,
        kind=kind,
    )


def _can_be_tapped(backend: Backend, points: TapPoints) -> bool:
    """Tell whether a backend of torch calls the layer that is tapped.

    Compiled code calls none. What torch.fx has folded calls a plain layer, and of any other the
    parts.
    """
    if backend.kind != "folded":
        return backend.kind == "eager"
    head = dict(backend.module.named_modules()).get(points.head)
    return type(head) in (torch.nn.Linear, torch.nn.Conv2d) and not points.last_map


def _note_skipped(what: str, error: Exception, notes: list[str]) -> None:
    """Note why there is no such backend; want of memory is not a reason to take another one.

    Raises:
        DeviceFailedError: there is no memory for it.
    """
    failure = Failure.of(error)
    if failure.is_out_of_memory:
        raise DeviceFailedError(f"out of memory while the model is made ready: {failure.reason}")
    notes.append(f"{what}: {type(error).__name__}")
