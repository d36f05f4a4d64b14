"""What a plan costs: the modules that it imports decide its memory and its start."""

import json
import subprocess
import sys

from imgcls.config.scoring import NightlyConfig

# Of each the import alone takes 60 to 500 MiB.
HEAVY = ("torch", "torchvision", "ray", "sklearn", "matplotlib", "openvino")


def test_plan_imports_neither_torch_nor_ray(night: NightlyConfig) -> None:
    program = (
        "import json, sys; from imgcls.cli import main;"
        "code = main(sys.argv[1:]);"
        "print(json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    command = [sys.executable, "-c", program, "plan", "--source", night.source]
    command += ["--model", night.model, "--output", night.output]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, result, imported = done.stdout.splitlines()
    assert json.loads(result)["to_score"] == 70
    code, modules = json.loads(imported)
    assert code == 0
    assert not set(HEAVY) & set(modules)
