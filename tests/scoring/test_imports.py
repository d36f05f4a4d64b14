"""What a small run costs: the modules that it imports decide its memory and its start."""

from pathlib import Path

from tests.scoring.nights import make_night, run_and_list_modules

# Each takes 10 to 165 MiB and up to 1.5 s; sympy and torch._dynamo come by way of torch.
HEAVY = {
    "torchvision", "ray", "sklearn", "scipy", "matplotlib", "openvino", "mlflow", "tensorboard",
    "onnx", "sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes",
}  # fmt: skip


def test_a_small_run_imports_nothing_heavy_but_torch(tmp_path: Path) -> None:
    night = make_night(tmp_path, num_images=9)
    flags = ["--source", night.source, "--model", night.model, "--output", night.output]
    flags += ["--executor", "local", "--num-decoders", "1"]
    result, modules = run_and_list_modules("score", *flags)
    assert result["rows_ok"] == 9
    assert "torch" in modules
    assert not HEAVY & modules
