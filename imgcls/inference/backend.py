"""Choose how a bundle's network runs on this device: precision, folding, compiling.

In: a bundle, a device, the precision asked for, how many images are to come. Out: an Engine, and
one log line that says what was chosen and why. Invariant: the network as it was trained, in fp32,
reproduces the golden probabilities here, or nothing runs; any other engine was checked against them
too, on this device, in the batch shape that it will run.

The choice depends on the bundle, the device and the run's size alone, never on a timing, and never
on what memory happens to be free: two workers alike, or the same run resumed, must not mix engines.
Where memory is short, a pass has fewer rows.

Shape legend: B batch, C channel, P image_px, N classes.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Final, Literal

import torch
from torch import Tensor, nn

from imgcls.config.choices import Precision
from imgcls.errors import BundleError, ConfigError, DeviceFailedError
from imgcls.image.spec import PreprocessSpec
from imgcls.inference import int8, openvino
from imgcls.inference.arithmetic import (
    gpu_has_bf16,
    has_fast_bf16,
    has_tf32,
    set_fp32_arithmetic,
)
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.kinds import Kind, repaid_kinds
from imgcls.inference.network import Network, compile_network, fold_batchnorm
from imgcls.inference.passes import Failure, run_in_memory
from imgcls.model.bundle import GOLDEN_TOLERANCE, Bundle, to_probs

# Multiply-adds per image, in 1e9, below which decoding an image takes longer than the network:
# mobilenet_v3_small (0.06) runs at 500 images/s on 2 cores in fp32, resnet18 (1.8) at 50.
_MIN_GMACS_FOR_LOW_PRECISION: Final = 0.03
# A golden image may keep its label and move by this much in any class's probability. ResNet-18 in
# bf16 moves by 3e-4 to 3e-3; a confidence is read to two digits. TF32 keeps three bits more.
LOW_PRECISION_TOLERANCE: Final = 0.01

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Engine:
    """A way to run the network: uint8 [B,C,P,P] on `device` -> logits float32 [B,N].

    It was checked with B = `batch_size`: what was asked for, or less where memory is short.
    """

    forward: Callable[[Tensor], Tensor]
    module: nn.Module
    precision: str
    kind: Kind
    device: torch.device
    batch_size: int = 1

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
        batch_size: rows of a forward pass; the engine takes fewer where memory is short.
        num_images: how many will be predicted; None if unknown, which is taken for few.
        num_streams: batches that run at a time.
        num_cores: how many cores all of them share.
        embedding: the input of the last layer is wanted. It has no golden values, so that only the
            network as it was trained gives it.
        int8_network: what `int8.quantize` made of this bundle, for that precision.

    Raises:
        BundleError: fp32 misses the golden probabilities, or the precision asked for does.
        ConfigError: the precision asked for cannot be had here.
        DeviceFailedError: there is no memory for one image, or the device fails.
    """
    _check_can_have(precision, device)
    set_fp32_arithmetic("fp32")
    plain = Engine(
        network := Network(bundle.to_model().to(device), bundle.preprocess_spec, "fp32").eval(),
        network,
        "fp32",
        "eager",
        device,
        batch_size,
    )
    gmacs = _check_canary(plain, bundle)
    if precision == "int8":
        return _int8_engine(plain, bundle, int8_network, num_streams, embedding)
    notes: list[str] = []
    kinds = repaid_kinds(gmacs, device, num_images, num_cores, embedding, notes)
    candidates = _precisions(precision, gmacs, device, embedding, notes)
    for candidate in candidates:
        for kind in kinds(candidate):
            set_fp32_arithmetic(candidate)
            engine: Engine | None = plain
            if (candidate, kind) == ("fp32", "eager"):
                if device.type == "cpu":  # proven above, and no other memory than the images' own
                    return _chosen(plain, notes)
            elif kind == "openvino":
                engine = _build_openvino(network, bundle, candidate, batch_size, num_streams, notes)
            else:
                engine = _build(plain, bundle.preprocess_spec, candidate, kind, notes)
            if engine is None:
                continue
            engine, miss = _prove(engine, bundle, notes)
            if not miss:
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
    forward = openvino.load(int8_network, num_streams, "int8")
    engine = replace(plain, forward=forward, precision="int8", kind="openvino")
    engine, miss = _prove(engine, bundle, [])
    if miss:
        raise BundleError(miss)
    return _chosen(engine, [])


def _check_can_have(precision: Precision, device: torch.device) -> None:
    if precision == "tf32" and not has_tf32(device):
        raise ConfigError(
            f"--precision tf32: {device.type} has no such arithmetic here, only NVIDIA GPUs from "
            "Ampere on have; take --precision auto or fp32"
        )


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
        has = {"bf16": gpu_has_bf16(device), "fp16": True, "tf32": has_tf32(device), "fp32": True}
        return tuple(name for name, is_there in has.items() if is_there)
    if not has_fast_bf16():
        notes.append("this CPU has no bf16 arithmetic")
        return ("fp32",)
    return ("bf16", "fp32")


def _build_openvino(
    trained: Network,
    bundle: Bundle,
    precision: str,
    batch_size: int,
    num_streams: int,
    notes: list[str],
) -> Engine | None:
    """Build an engine of OpenVINO, or note why it cannot be."""

    @cache
    def of_size(num_rows: int) -> Callable[[Tensor], Tensor]:
        x_BCHW = pad(bundle.golden_x_BCHW[:num_rows], num_rows)
        data = openvino.convert_once(trained, x_BCHW, bundle.digest)
        return openvino.load(data, num_streams, precision)

    try:
        of_size(batch_size)
    except Exception as error:  # noqa: BLE001 - any network, any failure: another engine runs
        _note_skipped("not converted to OpenVINO", error, notes)
        return None
    return Engine(
        lambda x_BCHW: of_size(len(x_BCHW))(x_BCHW),
        trained,
        precision,
        "openvino",
        torch.device("cpu"),
        batch_size,
    )


def _build(
    plain: Engine,
    spec: PreprocessSpec,
    precision: str,
    kind: Literal["eager", "folded", "compiled"],
    notes: list[str],
) -> Engine | None:
    """Build an engine of torch, or note why it cannot be."""
    assert isinstance(plain.module, Network)
    # Building it anew from the bundle would draw random weights first.
    classifier = copy.deepcopy(plain.module.classifier)
    if kind == "folded":
        try:
            classifier = fold_batchnorm(classifier)
        except Exception as error:  # noqa: BLE001 - many networks cannot be traced; folding is optional
            _note_skipped("not folded", error, notes)
            return None
    network = Network(classifier, spec, precision).eval()
    forward = compile_network(network) if kind == "compiled" else network
    return replace(plain, forward=forward, module=network, precision=precision, kind=kind)


def _note_skipped(told: str, error: Exception, notes: list[str]) -> None:
    """Note why there is no such engine; want of memory is not a reason to take another one.

    Raises:
        DeviceFailedError: there is no memory for it.
    """
    failure = Failure.of(error)
    if failure.is_out_of_memory:
        raise DeviceFailedError(f"out of memory while the model is made ready: {failure.reason}")
    notes.append(f"{told}: {type(error).__name__}")


def _check_canary(plain: Engine, bundle: Bundle) -> float:
    """Prove the network as it was trained; return its multiply-adds per image, in 1e9.

    Raises:
        BundleError: it does not reproduce the golden probabilities.
        DeviceFailedError: as for `choose_engine`.
    """
    macs = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        # Each output of a layer is a sum over one row of its weights.
        macs += output.numel() * module.weight[0].numel()

    def probs(num_rows: int) -> Tensor:
        nonlocal macs
        macs = 0
        return golden_probs(plain, bundle, num_rows)

    hooks = [
        module.register_forward_hook(count)
        for module in plain.module.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    num_golden = len(bundle.golden_x_BCHW)
    probs_BN, num_rows = run_in_memory(probs, num_golden, [])
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
    num_run = -(-num_golden // num_rows) * num_rows
    return macs / num_run / 1e9


def _prove(engine: Engine, bundle: Bundle, notes: list[str]) -> tuple[Engine, str]:
    """Return an engine with the rows a pass that memory holds, and how it fails the golden check.

    Raises:
        DeviceFailedError: as for `choose_engine`.
    """
    check = partial(describe_miss, engine, bundle)
    try:
        (miss, told), batch_size = run_in_memory(check, engine.batch_size, notes)
    except DeviceFailedError:
        raise
    except Exception as error:  # noqa: BLE001 - no compiler, no such operation: another engine runs
        return engine, Failure.of(error).reason
    if told:
        notes.append(told)
    return replace(engine, batch_size=batch_size), miss


def describe_miss(engine: Engine, bundle: Bundle, batch_size: int) -> tuple[str, str]:
    """Return how an engine misses the golden answers, "" if it does not; and how far it moves.

    Args:
        engine: runs passes of `batch_size` rows.
        bundle: its weights are not looked at.
        batch_size: rows of a pass.

    Raises:
        Exception: whatever the engine raises.
    """
    if engine.precision == "int8":
        return _int8_miss(engine, bundle), ""
    probs_BN = golden_probs(engine, bundle, batch_size)
    expected_BN = bundle.golden_probs_BK
    moved = float((probs_BN - expected_BN).abs().max())
    rule = DecisionRule.of(bundle)
    answers, expected = (rule.all_answers(of.numpy()) for of in (probs_BN, expected_BN))
    changed = sum(now != before for now, before in zip(answers, expected, strict=True))
    allowed = GOLDEN_TOLERANCE if engine.precision == "fp32" else LOW_PRECISION_TOLERANCE
    if changed:
        return f"{changed} of {len(expected_BN)} golden images change their label or decision", ""
    # Written so that a NaN is refused too.
    if not moved <= allowed:
        return f"golden probabilities move by {moved:.2g}, allowed {allowed:g}", ""
    return "", (
        f"{len(expected_BN)} golden images keep their label and move by {moved:.2g}, "
        f"allowed {allowed:g}"
    )


def _int8_miss(engine: Engine, bundle: Bundle) -> str:
    """Judge by labels alone: its probabilities move further than any other's."""
    try:
        int8.check_agreement(
            engine.forward, engine.module, bundle.golden_x_BCHW, multi_label=bundle.multi_label
        )
    except BundleError as error:
        return str(error)
    return ""


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
