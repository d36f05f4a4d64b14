"""What a decoder process has loaded before its sandbox closes, each of them once more."""

import subprocess
import sys

import pytest

PROGRAM = (
    "import sys; from imgcls.image.decoders import child;"
    "child.load_everything();"
    "print(*(name for name, module in sys.modules.items() if module is not None))"
)
# Decoding needs none of them; each costs every decoder process 5 to 300 MiB.
NEVER = {"torch", "torchvision", "pyarrow", "duckdb", "pandas", "scipy", "ray", "botocore"}
NETWORK = {"requests", "urllib3", "obstore", "google"}


def test_a_decoder_loads_its_formats_and_nothing_that_reaches_the_network() -> None:
    pytest.importorskip("pydicom")
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"pydicom.charset", "pydicom.pixels.processing", "PIL.PngImagePlugin"} <= loaded
    assert not (NEVER | NETWORK) & loaded
