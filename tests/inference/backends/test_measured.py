"""What runs a long run is what was seen to be the fastest here, and that is remembered."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imgcls.config.choices import Precision
from imgcls.inference.backends import choose, measured, openvino
from imgcls.inference.backends.backend import Backend
from imgcls.inference.backends.choose import choose_backend
from imgcls.inference.backends.demand import Demand, Kind
from imgcls.inference.backends.measured import Way, fastest, keep, key_of, recall
from imgcls.model.bundle import Bundle, read_bundle, write_bundle
from tests.inference.resnet import make_resnet

# Of a ResNet-18 at 64 px, 0.15e9 multiply-adds each.
MANY = 100_000
CPU = Demand(torch.device("cpu"), batch_size=4, num_images=MANY, num_streams=2)
X_BCHW = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)


class Made:
    """Backends that take as long as they are told to, and which of them were asked for."""

    def __init__(self, seconds: dict[Way, float]) -> None:
        self.seconds, self.asked = seconds, list[Way]()

    def __call__(self, way: Way) -> Backend | None:
        self.asked.append(way)
        if way not in self.seconds:
            return None

        def forward(x_BCHW: Tensor) -> Tensor:
            if self.seconds[way] == float("inf"):
                raise RuntimeError("no such operation")
            time.sleep(self.seconds[way])
            return x_BCHW

        return Backend(forward, nn.Identity(), way.precision, way.kind, CPU, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "_WINDOW_S", 0.05)
    return tmp_path / "cache"


def ways(*names: str) -> list[Way]:
    both = [name.split() for name in names]
    return [Way(precision, kind) for kind, precision in both]  # type: ignore[arg-type]


def test_the_fastest_is_taken_and_the_next_start_makes_no_other(cache: Path) -> None:
    slow, fast, gone, broken = ways("openvino bf16", "folded bf16", "compiled bf16", "eager bf16")
    make, notes = Made({slow: 0.5, fast: 0.01, broken: float("inf")}), list[str]()
    found = fastest([broken, slow, gone, fast], make, X_BCHW, "a", notes)
    assert found is not None
    assert found.kind == "folded"
    assert "measured here, images/s: folded bf16" in notes[0]
    assert set(recall("a")) == {"folded bf16", "openvino bf16", "eager bf16"}
    again = Made(make.seconds)
    assert fastest([broken, slow, gone, fast], again, X_BCHW, "a", notes).kind == "folded"  # type: ignore[union-attr]
    assert again.asked == [fast]
    again.seconds.pop(fast)
    assert fastest([broken, slow, gone, fast], again, X_BCHW, "a", notes).kind == "openvino"  # type: ignore[union-attr]
    other = Made({slow: 0.01, fast: 0.5})
    assert fastest([slow, fast], other, X_BCHW, "b", notes).kind == "openvino"  # type: ignore[union-attr]
    [file] = [path for path in cache.rglob("*.json") if path.stem == "a"]
    os.utime(file, (0, 0))
    assert recall("a") == {}, "of a month ago"
    file.write_text("{")
    assert recall("a") == {}


@pytest.mark.parametrize(
    ("exact", "precision", "num_tried"), [(95.0, "fp32", 4), (80.0, "bf16", 4), (60.0, "bf16", 3)]
)
def test_a_coarser_arithmetic_must_be_clearly_faster(
    exact: float, precision: str, num_tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    likely = ways("openvino bf16", "folded bf16", "openvino fp32", "folded fp32")
    rates = dict(zip(likely, (100.0, 70.0, exact, exact - 10), strict=True))
    monkeypatch.setattr(
        measured, "images_per_s", lambda one, _x_BCHW: rates[Way(one.precision, one.kind)]
    )
    make = Made(dict.fromkeys(likely, 0.0))
    found = fastest(likely, make, X_BCHW, "", [])
    assert found is not None
    assert (found.precision, found.kind) == (precision, "openvino")
    assert len(make.asked) == num_tried, "what cannot win any more is not tried"


def saved(tmp_path: Path) -> Bundle:
    write_bundle(make_resnet(1.0), str(tmp_path / "bundle"))
    return read_bundle(str(tmp_path / "bundle"))


@pytest.mark.parametrize(("winner", "precision"), [("folded", "bf16"), ("folded", "fp32")])
def test_a_long_run_is_run_by_what_was_fastest_here(
    winner: Kind, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "has_fast_bf16", lambda: True)
    bundle, demand = saved(tmp_path), replace(CPU, precision="auto")
    keep(key_of(bundle.network_digest, demand), {"folded fp32": 1, f"{winner} {precision}": 2})
    found = choose_backend(bundle, demand)
    assert (found.kind, found.precision) == (winner, precision)
    short = choose_backend(bundle, replace(demand, num_images=10))
    assert (short.kind, short.precision) == ("eager", "bf16"), "which is not worth a measurement"
    settled = choose_backend(bundle, replace(demand, precision="fp32", kind="eager"))
    assert (settled.kind, settled.precision) == ("eager", "fp32")


def test_a_long_run_measures_its_own_network_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, demand = saved(tmp_path), replace(CPU, precision="auto")
    found = choose_backend(bundle, demand)
    assert "measured here, images/s: " in caplog.text
    rates = recall(key_of(bundle.network_digest, demand))
    assert f"{found.kind} {found.precision}" in rates
    assert ("openvino fp32" in rates) is openvino.is_installed()
    assert len(rates) >= 1 + openvino.is_installed()
    again = choose_backend(bundle, demand)
    assert (again.kind, again.precision) == (found.kind, found.precision)
    assert "measured here before" in caplog.text
    assert key_of(bundle.network_digest, replace(demand, num_streams=1)) != key_of(
        bundle.network_digest, demand
    )
