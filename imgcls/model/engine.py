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
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from imgcls.config.values import Precision
from imgcls.errors import BundleError, ConfigError
from imgcls.image.preprocess import normalize
from imgcls.image.spec import PreprocessSpec
from imgcls.model import int8
from imgcls.model.artifact import GOLDEN_TOLERANCE, Bundle, to_probs

# A golden image may keep its label and move by this much in any class's probability. ResNet-18 in
# bf16 moves by 3e-4 to 3e-3; a confidence is read to two digits.
LOW_PRECISION_TOLERANCE: Final = 0.01
# Multiply-adds per image, in 1e9, below which decoding an image takes longer than the network:
# mobilenet_v3_small (0.06) runs at 500 images/s on 2 cores in fp32, resnet18 (1.8) at 50.
_MIN_GMACS_FOR_LOW_PRECISION: Final = 0.03
# Images that repay importing torch.fx, tracing and folding (0.5 s; 1 to 3 ms saved per image).
_MIN_IMAGES_TO_FOLD: Final = 200
# What compiling costs on 2 cores with an empty cache; with a full one 2 to 5 s.
_COMPILE_S: Final = 20.0
# Core seconds per 1e9 multiply-adds that compiled code saves on a CPU against a folded network:
# resnet18 in the same run on 2 cores, 50 -> 55 images/s in fp32, 91 -> 105 in bf16.
_SAVED_CORE_S_PER_GMAC: Final = {"fp32": 0.002, "bf16": 0.0016}
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Other CPUs emulate bf16, several times slower than fp32. The last one is how Arm calls it.
_BF16_CPU_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Engine:
    """A way to run the network: uint8 [B,C,P,P] on `device` -> logits float32 [B,N]."""

    forward: Callable[[Tensor], Tensor]
    module: nn.Module
    precision: str
    kind: Literal["eager", "folded", "compiled", "openvino"]
    device: torch.device

    @property
    def name(self) -> str:
        """What ran, for logs and results: `compiled bf16 on cpu`."""
        return f"{self.kind} {self.precision} on {self.device.type}"


class Network(nn.Module):
    """The classifier with its normalisation before it and its precision inside it."""

    def __init__(self, classifier: nn.Module, spec: PreprocessSpec, precision: str) -> None:
        super().__init__()
        self.classifier = classifier.to(_DTYPES[precision]).to(memory_format=torch.channels_last)
        self._spec, self._dtype = spec, _DTYPES[precision]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits float32 [B,N] of uint8 [B,C,P,P]."""
        x_BCHW = normalize(x_BCHW, self._spec).to(self._dtype)
        logits_BN: Tensor = self.classifier(x_BCHW.contiguous(memory_format=torch.channels_last))
        return logits_BN.float()


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
    forward = int8.load(int8_network, num_streams)
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


_Kind = Literal["eager", "folded", "compiled"]


def _kinds(
    gmacs: float,
    device: torch.device,
    num_images: int | None,
    num_cores: int,
    embedding: bool,
    notes: list[str],
) -> Callable[[str], tuple[_Kind, ...]]:
    """Return, per precision, the ways to run that repay themselves, the fastest first."""

    def kinds(precision: str) -> tuple[_Kind, ...]:
        if embedding or num_images is None or num_images < _MIN_IMAGES_TO_FOLD:
            return ("eager",)
        if device.type != "cpu" or precision not in _SAVED_CORE_S_PER_GMAC:
            return ("folded", "eager")
        saved_core_s = num_images * gmacs * _SAVED_CORE_S_PER_GMAC[precision]
        saved_s = saved_core_s / num_cores
        repaid = saved_s > _COMPILE_S
        notes.append(
            f"{precision}: compiling would save {saved_s:.0f} s over {num_images} images and "
            f"costs up to {_COMPILE_S:.0f} s"
        )
        return ("compiled", "folded", "eager") if repaid else ("folded", "eager")

    return kinds


def _build(
    trained: Network,
    spec: PreprocessSpec,
    device: torch.device,
    precision: str,
    kind: _Kind,
    notes: list[str],
) -> Engine | None:
    """Build one engine, or note why it cannot be."""
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


def fold_batchnorm(classifier: nn.Module) -> nn.Module:
    """Return a network with every batch norm folded into the convolution before it.

    Raises:
        Exception: whatever torch.fx raises for a network that it cannot trace.
    """
    # Takes half a second to import, and short runs do not fold.
    from torch.fx.experimental.optimization import fuse

    folded: nn.Module = fuse(classifier)
    return folded.eval()


def compile_network(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile for one batch shape, with the weights frozen into the code, at the first call."""
    # torch's own default is a folder below /tmp whose name anybody can guess and take first.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    compiled: Callable[[Tensor], Tensor] = torch.compile(
        network, fullgraph=True, dynamic=False, options={"freezing": True}
    )
    return compiled


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
    labels_BN, expected_labels_BN = (_labels(p, bundle) for p in (probs_BN, expected_BN))
    changed = int((labels_BN != expected_labels_BN).any(dim=1).sum())
    allowed = GOLDEN_TOLERANCE if engine.precision == "fp32" else LOW_PRECISION_TOLERANCE
    if changed:
        return f"{changed} of {len(expected_BN)} golden images change their label"
    # Written so that a NaN is refused too.
    if not moved <= allowed:
        return f"golden probabilities move by {moved:.2g}, allowed {allowed:g}"
    notes.append(
        f"{len(expected_BN)} golden images keep their label and move by {moved:.2g}, "
        f"allowed {allowed:g}"
    )
    return None


def _labels(probs_BN: Tensor, bundle: Bundle) -> Tensor:
    """Return what the probabilities decide: int64 [B,1], or bool [B,N] if multi-label."""
    return probs_BN >= 0.5 if bundle.multi_label else probs_BN.argmax(dim=1, keepdim=True)


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
