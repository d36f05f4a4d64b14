"""Ctrl-C ends every command in every phase with words and exit code 5, never with a traceback."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgcls.model.registry import register
from tests.scoring.tiny import make_bundle, write_images

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 400


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images in class folders, and labels of them."""
    folder = tmp_path_factory.mktemp("world")
    register(f"{folder}/reg", "m", make_bundle(num_classes=2))
    for number in range(2):
        write_images(f"{folder}/data/class-{number}", NUM_IMAGES // 2)
    return folder


COMMANDS = {
    "train": "--data {w}/data --registry {o}/reg --name m --arch simple_cnn --image-px 32"
    " --batch-size 16 --num-decoders 1 --epochs 50 --allow-leaks",
    "score": "--source {w}/data --model {w}/reg/m@v1 --output {o}/out --num-decoders 1",
    "nightly": "--source {w}/data --model {w}/reg/m@v1 --output {o}/out --num-decoders 1",
    "evaluate": "--model {w}/reg/m@v1 --data {w}/data --split all --num-decoders 1",
    "plan": "--source {w}/data --model {w}/reg/m@v1 --output {o}/out",
    "export": "--model {w}/reg/m@v1 --output {o}/m.onnx",
    "bench": "decode --num-images 2000 --num-decoders 1",
}


def interrupt(command: str, world: Path, output: Path, after_s: float) -> tuple[int, str, str]:
    flags = COMMANDS[command].format(w=world, o=output).split()
    process = subprocess.Popen(
        [sys.executable, "-m", "imgcls.cli", command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def check(command: str, code: int, out: str, err: str) -> None:
    if code == -signal.SIGINT and "in main" not in err and "in run" not in err:
        return  # Python itself, before the command line was loaded
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err + out
    if code == 0:  # it was done before
        return
    assert code == 5, err
    result = json.loads(out.splitlines()[-1])
    assert result["error"] == "RunStoppedError"
    assert result["message"].startswith("stopped by Ctrl-C; ")
    assert result["exit_code"] == 5
    again = "finish the run" if command in ("train", "score", "nightly") else "from the start"
    assert again in result["message"]


@pytest.mark.parametrize(
    ("command", "after_s"), [("train", 5.0), ("score", 2.0), ("evaluate", 3.0), ("plan", 1.0)]
)
def test_ctrl_c_is_said_in_words(command: str, after_s: float, world: Path, tmp_path: Path) -> None:
    check(command, *interrupt(command, world, tmp_path, after_s))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_in_every_phase_of_every_command(command: str, world: Path, tmp_path: Path) -> None:
    for number in range(16):
        after_s = 0.6 + 0.4 * number
        check(command, *interrupt(command, world, tmp_path / str(number), after_s))


def test_a_signal_that_python_drops_in_a_destructor_is_sent_again(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from imgcls import cli\n"
        "import imgcls.scoring.publishing.retention as cleanup\n"
        "class Freed:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGNAL)\n"
        "        time.sleep(0.1)\n"
        "def work(config):\n"
        "    Freed()\n"
        "    time.sleep(30)\n"
        "cleanup.gc = work\n"
        "cli._be_process_of(lambda: cli.main(['gc', '--output', 'x']))\n"
    )
    for name in ("SIGINT", "SIGTERM"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("SIGNAL", name)], cwd=ROOT, timeout=25, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 5, done.stderr
        assert "Traceback" not in done.stderr
        assert json.loads(done.stdout)["error"] == "RunStoppedError"


def test_ctrl_c_is_left_ignored_in_the_background(world: Path, tmp_path: Path) -> None:
    flags = COMMANDS["plan"].format(w=world, o=tmp_path).split()
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from imgcls.cli import main\n"
        f"code = main(['plan', *{flags!r}])\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_an_error_that_a_library_makes_of_the_signal_is_a_stop_too(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from imgcls import cli\n"
        "import imgcls.scoring.publishing.retention as cleanup\n"
        "def interrupted(config):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        raise RuntimeError('Query interrupted') from None\n"
        "cleanup.gc = interrupted\n"
        "cli._be_process_of(lambda: cli.main(['gc', '--output', 'x']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    check("gc", done.returncode, done.stdout, done.stderr)
    assert done.returncode == 5
