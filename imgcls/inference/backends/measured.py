"""Which way of running a network is the fastest here: tried on that network, and remembered.

In: ways to run it, what makes a backend of one. Out: the fastest backend that could be made.
Invariant: what is compared ran on this machine, as many batches at a time as the run will have; one
network, asked for alike, is measured once a month, so that nights after it begin at once.

A second or three for ResNet-18 on 2 cores. Rates are kept below this user's cache folder.

Shape legend: B batch, C channels, H height, W width.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from imgcls.config.choices import Precision
from imgcls.errors import ConfigError
from imgcls.inference.backends.arithmetic import set_fp32_arithmetic
from imgcls.inference.backends.backend import Backend, pad
from imgcls.inference.backends.demand import Demand, Kind
from imgcls.inference.backends.kinds import repays_compiling
from imgcls.inference.backends.network import cache_folder, write_cache
from imgcls.inference.device import set_num_threads
from imgcls.inference.passes import Failure
from imgcls.storage.json_text import parse_object

# How much faster than fp32 a coarser arithmetic must be to be worth it.
MIN_SPEEDUP: Final = 1.1
# Kinds of one precision differ by less than this: where a coarser one leads by more, those of fp32
# that are left are not tried.
_CLEAR_LEAD: Final = 1.5
_WINDOW_S: Final = 0.25
_MAX_AGE_S: Final = 30 * 86_400
_LIBRARIES: Final = ("torch", "openvino")
_CPU_NAMES: Final = ("model name", "CPU part", "flags", "Features")

_log = logging.getLogger(__name__)


class Way(NamedTuple):
    """An arithmetic and what runs it."""

    precision: Precision
    kind: Kind

    @property
    def name(self) -> str:
        """As a backend is named, without its device."""
        return f"{self.kind} {self.precision}"


def fastest(
    ways: Sequence[Way],
    make: Callable[[Way], Backend | None],
    x_BCHW: Tensor,
    key: str,
    notes: list[str],
) -> Backend | None:
    """Return the fastest backend of those that can be made; None if none can.

    Args:
        ways: what to try; of equally fast ones the first is taken.
        make: a way -> a backend that was proven, or None.
        x_BCHW: uint8, what to run them on.
        key: what `key_of` returned, under which rates are kept; "" keeps none.
        notes: takes in what was measured.
    """
    if known := recall(key):
        notes.append(f"measured here before, images/s: {_in_words(known)}")
        in_turn = sorted(ways, key=lambda way: -_worth(way, known))
        return next(filter(None, map(make, in_turn)), None)
    rates, best, best_worth = dict[str, float](), None, 0.0
    for way in ways:
        if way.kind == "eager" and f"folded {way.precision}" in rates:
            continue  # what it does, and more
        if way.kind == "compiled" and not _repays_compiling(best, rates):
            continue
        if way.precision == "fp32" and _is_beaten(rates):
            continue
        backend = make(way)
        if backend is None:
            continue
        rates[way.name] = images_per_s(backend, x_BCHW)
        # Only the best so far is held: each has weights of its own.
        if best is None or _worth(way, rates) > best_worth:
            best, best_worth = backend, _worth(way, rates)
    if best is not None:
        set_fp32_arithmetic(best.precision)
        notes.append(f"measured here, images/s: {_in_words(rates)}")
        keep(key, rates)
    return best


def images_per_s(backend: Backend, x_BCHW: Tensor) -> float:
    """Run a backend for a moment, as many batches at a time as it is for; 0 where it fails."""
    demand, size = backend.demand, backend.batch_size
    x_BCHW = pad(x_BCHW[:size], size).to(backend.device)
    all_warm = threading.Barrier(demand.num_streams, timeout=300)

    def run(_stream: int) -> float:
        try:
            _pass(backend, x_BCHW)
        except BaseException:
            all_warm.abort()
            raise
        all_warm.wait()
        start_s, num_passes = time.perf_counter(), 0
        while (took_s := time.perf_counter() - start_s) < _WINDOW_S or not num_passes:
            _pass(backend, x_BCHW)
            num_passes += 1
        return num_passes * size / took_s

    set_fp32_arithmetic(backend.precision)
    with ThreadPoolExecutor(
        demand.num_streams, "measure", set_num_threads, (demand.num_threads,)
    ) as threads:
        try:
            return sum(threads.map(run, range(demand.num_streams)))
        except Exception as error:  # noqa: BLE001 - whatever it is, another way is taken
            _log.info("%s cannot be measured: %s", backend.name, Failure.of(error).reason)
            return 0.0


def _pass(backend: Backend, x_BCHW: Tensor) -> None:
    with torch.inference_mode():
        backend.forward(x_BCHW)
    if backend.device.type == "cuda":
        torch.cuda.synchronize(backend.device)


def key_of(network: str, demand: Demand) -> str:
    """Return what rates are kept under: a network, a machine, its libraries, and what is asked.

    Args:
        network: the bundle's `network_digest`; "" is never kept.
        demand: of the run.
    """
    if not network:
        return ""
    device = demand.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    asked = (demand.precision, demand.batch_size, demand.num_streams, demand.num_cores)
    facts = [network, device.type, machine, *asked, demand.wants_features]
    facts += [_version(name) for name in _LIBRARIES]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def recall(key: str) -> dict[str, float]:
    """Return the images/s by name of a way that were kept under a key; {} where none are."""
    path = _path(key)
    try:
        if not key or time.time() - path.stat().st_mtime > _MAX_AGE_S:
            return {}
        found = parse_object(path.read_bytes(), path.name, ConfigError)
        return {name: float(rate) for name, rate in found.items()}
    except (OSError, ConfigError, ValueError, TypeError):  # damaged, or never written
        return {}


def keep(key: str, rates: dict[str, float]) -> None:
    """Keep images/s by name of a way."""
    if key:
        write_cache(_path(key), json.dumps(rates).encode())


def _path(key: str) -> Path:
    return cache_folder() / "speed" / f"{key}.json"


def _worth(way: Way, rates: dict[str, float]) -> float:
    return rates.get(way.name, 0.0) * (MIN_SPEEDUP if way.precision == "fp32" else 1.0)


def _is_beaten(rates: dict[str, float]) -> bool:
    """Tell whether fp32 was measured, and something coarser leads it clearly."""
    exact = [rate for name, rate in rates.items() if name.endswith(" fp32")]
    return bool(exact) and max(rates.values()) > _CLEAR_LEAD * max(exact)


def _repays_compiling(best: Backend | None, rates: dict[str, float]) -> bool:
    if best is None:
        return False
    rate = rates[f"{best.kind} {best.precision}"]
    return repays_compiling(best.demand, best.kind, rate)


def _in_words(rates: dict[str, float]) -> str:
    ranked = sorted(rates.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} {rate:.4g}" for name, rate in ranked)


def _cpu() -> str:
    """Return what the kernel says of the first core: its model, and what it can do."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return ""
    return "\n".join(line for line in first.splitlines() if line.startswith(_CPU_NAMES))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
