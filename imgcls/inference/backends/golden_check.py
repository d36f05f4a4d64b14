"""Prove that a backend gives the answers of the trained model, by the bundle's golden images.

In: a backend, a bundle. Out: how it misses them, "" if it does not. Invariant: the check runs on
this device, in the very batch shape that will run; fp32 reproduces the golden probabilities, any
other arithmetic keeps labels and decisions.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from imgcls.errors import BundleError, DeviceFailedError
from imgcls.inference.backends import int8
from imgcls.inference.backends.backend import Backend, pad
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.passes import Failure, run_in_memory
from imgcls.model.bundle import GOLDEN_TOLERANCE, Bundle, to_probs
from imgcls.model.networks.onnx_network import OnnxNetwork

# A golden image may keep its label and move by this much in any class's probability. ResNet-18 in
# bf16 moves by 3e-4 to 3e-3; a confidence is read to two digits. TF32 keeps three bits more.
LOW_PRECISION_TOLERANCE: Final = 0.01


def check_as_trained(plain: Backend, bundle: Bundle) -> float:
    """Prove the network as it was trained; return its multiply-adds per image, in 1e9.

    Raises:
        BundleError: it does not reproduce the golden probabilities.
        DeviceFailedError: there is no memory for one image, or the device fails.
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
    probs_BK, num_rows = run_in_memory(probs, num_golden, [])
    for hook in hooks:
        hook.remove()
    error = float((probs_BK - bundle.golden_probs_BK).abs().max())
    # Written so that a NaN is refused too.
    if not error <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"the model does not reproduce its golden probabilities on {plain.device}: "
            f"largest difference {error:.2g}, allowed {GOLDEN_TOLERANCE:g}. Made with "
            f"{bundle.training.get('versions')}; this machine runs another torch, or "
            "computes wrongly."
        )
    num_run = -(-num_golden // num_rows) * num_rows
    of_file = sum(one.gmacs for one in plain.module.modules() if isinstance(one, OnnxNetwork))
    return macs / num_run / 1e9 + of_file


def prove(backend: Backend, bundle: Bundle, notes: list[str]) -> tuple[Backend, str]:
    """Return a backend with the rows a pass that memory holds, and how it misses the golden ones.

    Raises:
        DeviceFailedError: there is no memory for one image, or the device fails.
    """
    check = partial(describe_miss, backend, bundle)
    try:
        (miss, moved), batch_size = run_in_memory(check, backend.batch_size, notes)
    except DeviceFailedError:
        raise
    except Exception as error:  # noqa: BLE001 - no compiler, no such operation: another backend runs
        return backend, Failure.of(error).reason
    if moved:
        notes.append(moved)
    return replace(backend, batch_size=batch_size), miss


def describe_miss(backend: Backend, bundle: Bundle, batch_size: int) -> tuple[str, str]:
    """Return how a backend misses the golden answers, "" if it does not; and how far it moves.

    Args:
        backend: runs passes of `batch_size` rows.
        bundle: its weights are not looked at.
        batch_size: rows of a pass.

    Raises:
        Exception: whatever the backend raises.
    """
    if backend.precision == "int8":
        return _int8_miss(backend, bundle), ""
    probs_BK = golden_probs(backend, bundle, batch_size)
    expected_BK = bundle.golden_probs_BK
    moved = float((probs_BK - expected_BK).abs().max())
    rule = DecisionRule.of(bundle)
    answers, expected = (rule.all_answers(of.numpy()) for of in (probs_BK, expected_BK))
    changed = sum(now != before for now, before in zip(answers, expected, strict=True))
    allowed = GOLDEN_TOLERANCE if backend.precision == "fp32" else LOW_PRECISION_TOLERANCE
    if changed:
        return f"{changed} of {len(expected_BK)} golden images change their label or decision", ""
    # Written so that a NaN is refused too.
    if not moved <= allowed:
        return f"golden probabilities move by {moved:.2g}, allowed {allowed:g}", ""
    return "", (
        f"{len(expected_BK)} golden images keep their label and move by {moved:.2g}, "
        f"allowed {allowed:g}"
    )


def _int8_miss(backend: Backend, bundle: Bundle) -> str:
    """Judge by labels alone: its probabilities move further than any other's."""
    try:
        int8.check_agreement(
            backend.forward, backend.module, bundle.golden_x_BCHW, multi_label=bundle.multi_label
        )
    except BundleError as error:
        return str(error)
    return ""


def golden_probs(backend: Backend, bundle: Bundle, batch_size: int) -> Tensor:
    """Return the backend's probabilities float32 [B,K] of the golden images, on the CPU."""
    parts = []
    for start in range(0, len(bundle.golden_x_BCHW), batch_size):
        golden_BCHW = bundle.golden_x_BCHW[start : start + batch_size]
        # Filled up outside of inference mode: for tensors that were made inside, compiled code is
        # compiled again, for another 20 s.
        x_BCHW = pad(golden_BCHW, batch_size).to(backend.device)
        with torch.inference_mode():
            logits_BK = backend.forward(x_BCHW)
            probs_BK = to_probs(logits_BK, multi_label=bundle.multi_label)
            parts.append(probs_BK[: len(golden_BCHW)].cpu())
    return torch.cat(parts)
