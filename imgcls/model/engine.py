"""Choose how a bundle's network runs on this device: precision, folding, compiling.

In: a bundle, a device, the precision asked for, how many images are to come. Out: an Engine, and
one log line that says what was chosen and why. Invariant: the network as it was trained, in fp32,
reproduces the golden probabilities here, or nothing runs; any other engine was checked against them
too, on this device, in the batch shape that it will run.

The choice depends on the bundle, the device and the run's size alone, never on a timing: two
workers alike, or the same run resumed, must not mix engines.

Shape legend: B batch, C channel, P image_px, N classes.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from imgcls.config.values import Precision
from imgcls.errors import BundleError, ConfigError
from imgcls.image.spec import PreprocessSpec
from imgcls.model import int8, openvino_network
from imgcls.model.answers import all_answers
from imgcls.model.artifact import GOLDEN_TOLERANCE, Bundle, to_probs
from imgcls.model.network import Network, compile_network, fold_batchnorm

# A golden image may keep its label and move by this much in any class's probability. ResNet-18 in
# bf16 moves by 3e-4 to 3e-3; a confidence is read to two digits.
LOW_PRECISION_TOLERANCE: Final = 0.01
# Multiply-adds per image, in 1e9, below which decoding an image takes longer than the network:
# mobilenet_v3_small (0.06) runs at 500 images/s on 2 cores in fp32, resnet18 (1.8) at 50.
_MIN_GMACS_FOR_LOW_PRECISION: Final = 0.03
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
# Other CPUs emulate bf16, several times slower than fp32. The last one is how Arm calls it.
_BF16_CPU_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}

_log = logging.getLogger(__name__)


_Kind = Literal["eager", "folded", "compiled", "openvino"]


@dataclass(frozen=True, eq=False)
class Engine:
    """A way to run the network: uint8 [B,C,P,P] on `device` -> logits float32 [B,N]."""

    forward: Callable[[Tensor], Tensor]
    module: nn.Module
    precision: str
    kind: _Kind
    device: torch.device

    @property
    def name(self) -> str:
        """What ran, for logs and results: `compiled bf16 on cpu`."""
        return f"{self.kind} {self.precision} on {self.device.type}"


def choose_engine(
    bundle: Bundle,
    device: torch.device,
    *,
    precision: Precision,
    batch_size: int,
    num_images: int | None,
    num_streams: int,
    num_cores: int,
    embedding: bool,
    int8_network: bytes | None = None,
) -> Engine:
    """Return the fastest engine that gives the bundle's golden probabilities on this device.

    Args:
        bundle: the model and its golden images.
        device: where to run.
        precision: `auto` takes less than fp32 where that is faster here and passes the check; any
            other is taken or refused.
        batch_size: rows of every forward pass.
        num_images: how many will be predicted; None if unknown, which is taken for few.
        num_streams: batches that run at a time.
        num_cores: how many cores all of them share.
        embedding: the input of the last layer is wanted. It has no golden values, so that only the
            network as it was trained gives it.
        int8_network: what `int8.quantize` made of this bundle, for that precision.

    Raises:
        BundleError: fp32 misses the golden probabilities, or the precision asked for does.
        ConfigError: int8 cannot be had here.
    """
    plain = Engine(
        network := Network(bundle.to_model().to(device), bundle.preprocess_spec, "fp32").eval(),
        network,
        "fp32",
        "eager",
        device,
    )
    gmacs = _check_canary(plain, bundle)
    if precision == "int8":
        return _int8_engine(plain, bundle, int8_network, num_streams, embedding)
    notes: list[str] = []
    kinds = _kinds(gmacs, device, num_images, num_cores, embedding, notes)
    candidates = _precisions(precision, gmacs, device, embedding, notes)
    for candidate in candidates:
        for kind in kinds(candidate):
            if (candidate, kind) == ("fp32", "eager"):
                return _chosen(plain, notes)
            if kind == "openvino":
                engine = _build_openvino(network, bundle, candidate, batch_size, num_streams, notes)
            else:
                engine = _build(network, bundle.preprocess_spec, device, candidate, kind, notes)
            if engine is None:
                continue
            miss = _miss(engine, bundle, batch_size, notes)
            if miss is None:
                return _chosen(engine, notes)
            notes.append(f"{engine.name} refused: {miss}")
    raise BundleError(
        f"--precision {precision}: this model does not keep its golden predictions with it: "
        f"{'; '.join(notes)}. Take --precision fp32, or auto."
    )


def _int8_engine(
    plain: Engine, bundle: Bundle, int8_network: bytes | None, num_streams: int, embedding: bool
) -> Engine:
    """Return the engine of a calibrated network, which was judged on more than golden images."""
    if plain.device.type != "cpu":
        raise ConfigError("--precision int8 runs on CPUs: add --device cpu, or take auto")
    if embedding:
        raise ConfigError("--precision int8 gives no embeddings: take --precision fp32")
    if bundle.calibration and bundle.calibration["operating_points"]:
        raise ConfigError(
            "--precision int8 is proven by labels alone, and this model decides by a threshold: "
            "take --precision auto"
        )
    if int8_network is None:
        raise ConfigError("--precision int8 is calibrated on a run's own images: only score can")
    forward = openvino_network.load(int8_network, num_streams, "int8")
    int8.check_agreement(
        forward, plain.module, bundle.golden_x_BCHW, multi_label=bundle.multi_label
    )
    return _chosen(Engine(forward, plain.module, "int8", "openvino", plain.device), [])


def _chosen(engine: Engine, notes: list[str]) -> Engine:
    _log.info("engine: %s (%s)", engine.name, "; ".join(notes) or "as asked")
    return engine


def _precisions(
    precision: Precision, gmacs: float, device: torch.device, embedding: bool, notes: list[str]
) -> tuple[str, ...]:
    """Return the precisions to try in turn, the fastest first."""
    if precision != "auto":
        return (precision,)
    if embedding:
        notes.append("embeddings have no golden values to check another precision with")
        return ("fp32",)
    if gmacs < _MIN_GMACS_FOR_LOW_PRECISION:
        notes.append(f"{gmacs:.3f} GMAC per image are too few to gain from another precision")
        return ("fp32",)
    if device.type == "cuda":
        # fp16 overflows at 65,504, which a few golden images cannot rule out: second choice.
        return ("bf16", "fp16", "fp32") if torch.cuda.is_bf16_supported() else ("fp16", "fp32")
    if not has_fast_bf16():
        notes.append("this CPU has no bf16 arithmetic")
        return ("fp32",)
    return ("bf16", "fp32")


def has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU multiplies in bf16; where it cannot be known, it does not."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _BF16_CPU_FLAGS.isdisjoint(flags.split())
    return False


def _kinds(
    gmacs: float,
    device: torch.device,
    num_images: int | None,
    num_cores: int,
    embedding: bool,
    notes: list[str],
) -> Callable[[str], tuple[_Kind, ...]]:
    """Return, per precision, the ways to run that repay themselves, the best first."""

    def kinds(precision: str) -> tuple[_Kind, ...]:
        if embedding or num_images is None or num_images < _MIN_IMAGES_TO_FOLD:
            return ("eager",)
        repaid: list[_Kind] = []
        for kind in ("openvino", "compiled"):
            saved_core_s_per_gmac = _SAVED_CORE_S_PER_GMAC[kind].get(precision)
            if device.type != "cpu" or saved_core_s_per_gmac is None:
                continue
            if kind == "openvino" and not openvino_network.is_installed():
                continue
            saved_s = num_images * gmacs * saved_core_s_per_gmac / num_cores
            notes.append(
                f"{kind} {precision} would save {saved_s:.0f} s over {num_images} images and costs "
                f"{_COST_S[kind]:.0f} s"
            )
            if saved_s > _COST_S[kind]:
                repaid.append(kind)
        return (*repaid, "folded", "eager")

    return kinds


def _build_openvino(
    trained: Network,
    bundle: Bundle,
    precision: str,
    batch_size: int,
    num_streams: int,
    notes: list[str],
) -> Engine | None:
    """Build an engine of OpenVINO, or note why it cannot be."""
    x_BCHW = pad(bundle.golden_x_BCHW[:batch_size], batch_size)
    try:
        data = openvino_network.convert_once(trained, x_BCHW, bundle.digest)
        forward = openvino_network.load(data, num_streams, precision)
    except Exception as error:  # noqa: BLE001 - any network, any failure: another engine runs
        notes.append(f"not converted to OpenVINO: {type(error).__name__}")
        return None
    return Engine(forward, trained, precision, "openvino", torch.device("cpu"))


def _build(
    trained: Network,
    spec: PreprocessSpec,
    device: torch.device,
    precision: str,
    kind: Literal["eager", "folded", "compiled"],
    notes: list[str],
) -> Engine | None:
    """Build an engine of torch, or note why it cannot be."""
    # Building it anew from the bundle would draw random weights first.
    classifier = copy.deepcopy(trained.classifier)
    if kind == "folded":
        try:
            classifier = fold_batchnorm(classifier)
        except Exception as error:  # noqa: BLE001 - many networks cannot be traced; folding is optional
            notes.append(f"not folded: {type(error).__name__}")
            return None
    network = Network(classifier, spec, precision).eval()
    forward = compile_network(network) if kind == "compiled" else network
    return Engine(forward, network, precision, kind, device)


def _check_canary(plain: Engine, bundle: Bundle) -> float:
    """Prove the network as it was trained; return its multiply-adds per image, in 1e9.

    Raises:
        BundleError: it does not reproduce the golden probabilities.
    """
    macs = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        # Each output of a layer is a sum over one row of its weights.
        macs += output.numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(count)
        for module in plain.module.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    num_golden = len(bundle.golden_x_BCHW)
    probs_BN = golden_probs(plain, bundle, num_golden)
    for hook in hooks:
        hook.remove()
    error = float((probs_BN - bundle.golden_probs_BK).abs().max())
    # Written so that a NaN is refused too.
    if not error <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"the model does not reproduce its golden probabilities on {plain.device}: "
            f"largest difference {error:.2g}, allowed {GOLDEN_TOLERANCE:g}. Made with "
            f"{bundle.training.get('versions')}; this machine runs another torch, or "
            "computes wrongly."
        )
    return macs / num_golden / 1e9


def _miss(engine: Engine, bundle: Bundle, batch_size: int, notes: list[str]) -> str | None:
    """Say how an engine fails the golden check; None, and a note, when it passes."""
    try:
        probs_BN = golden_probs(engine, bundle, batch_size)
    except Exception as error:  # noqa: BLE001 - no compiler, no such operation: another engine runs
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    expected_BN = bundle.golden_probs_BK
    moved = float((probs_BN - expected_BN).abs().max())
    answers, expected = (all_answers(of.numpy(), bundle) for of in (probs_BN, expected_BN))
    changed = sum(now != before for now, before in zip(answers, expected, strict=True))
    allowed = GOLDEN_TOLERANCE if engine.precision == "fp32" else LOW_PRECISION_TOLERANCE
    if changed:
        return f"{changed} of {len(expected_BN)} golden images change their label or decision"
    # Written so that a NaN is refused too.
    if not moved <= allowed:
        return f"golden probabilities move by {moved:.2g}, allowed {allowed:g}"
    notes.append(
        f"{len(expected_BN)} golden images keep their label and move by {moved:.2g}, "
        f"allowed {allowed:g}"
    )
    return None


def golden_probs(engine: Engine, bundle: Bundle, batch_size: int) -> Tensor:
    """Return the engine's probabilities float32 [B,N] of the golden images, on the CPU."""
    parts = []
    for start in range(0, len(bundle.golden_x_BCHW), batch_size):
        golden_BCHW = bundle.golden_x_BCHW[start : start + batch_size]
        # Filled up outside of inference mode: compiled code is compiled anew, for another 20 s, for
        # tensors that were made inside.
        x_BCHW = pad(golden_BCHW, batch_size).to(engine.device)
        with torch.inference_mode():
            logits_BN = engine.forward(x_BCHW)
            probs_BN = to_probs(logits_BN, multi_label=bundle.multi_label)
            parts.append(probs_BN[: len(golden_BCHW)].cpu())
    return torch.cat(parts)


def pad(x_BCHW: Tensor, batch_size: int) -> Tensor:
    """Fill a batch up with black images, so that every forward pass has the same shape."""
    num_rows = len(x_BCHW)
    if num_rows == batch_size:
        return x_BCHW
    return torch.cat([x_BCHW, x_BCHW.new_zeros((batch_size - num_rows, *x_BCHW.shape[1:]))])
