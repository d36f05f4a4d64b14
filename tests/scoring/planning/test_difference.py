"""What a plan costs: the modules that it imports decide its memory and its start."""

from imgcls.config.scoring import NightlyConfig
from tests.scoring.nights import run_and_list_modules

# Of each the import alone takes 60 to 500 MiB.
HEAVY = {"torch", "torchvision", "ray", "sklearn", "matplotlib", "openvino"}


def test_plan_imports_neither_torch_nor_ray(night: NightlyConfig) -> None:
    flags = ["--source", night.source, "--model", night.model, "--output", night.output]
    result, modules = run_and_list_modules("plan", *flags)
    assert result["to_score"] == 70
    assert not HEAVY & modules
