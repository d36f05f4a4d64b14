"""Make `27535e0.tar.xz`: what commit 27535e0 left behind, for every later commit to read.

Run it with the code and the environment of that commit, which need not know this file:

    git worktree add ../base 27535e0 && cd ../base && python3 -m venv .venv
    .venv/bin/pip install -e '.[test]'
    PYTHONPATH=. .venv/bin/python .../tests/upgrade/make_fixture.py .../tests/upgrade/27535e0.tar.xz

Plans hold the absolute paths of their images, so all of it lies at one fixed place, ROOT:

    incoming/       36 images: PNG, one of them of 16 bits, a TIFF of three frames, two that fail
    labelled/       40 images of two classes
    registry/       bars: v1, v2, and production -> v1; below _training, a training that was killed
    predictions/    nightly-2026-11-22, published; nightly-2026-11-23, killed between two commits
    base.safetensors   the weights that every training started from
    expected/       what the killed ones came to where nobody killed them: rows.parquet, head.json
    mtimes.json     of every file, in nanoseconds, which a tar file does not keep
    registry/_training/bars/run-*/checkpoints   of the killed training, two of them

The networks are small on disk because all layers but the last are frozen, alike in every file, and
of few different values: that is what xz packs well.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from imgcls.config.scoring import NightlyConfig
from imgcls.config.training import TrainConfig
from imgcls.model.architectures import build_model
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import promote
from imgcls.nightly import nightly
from imgcls.scoring import driver
from imgcls.storage.stores import local
from imgcls.training.driver import train

ROOT = Path("/tmp/imgcls-upgrade-27535e0")  # noqa: S108 - the fixed place, part of the fixture
ARCH, SIDE_PX, NUM_STEPS = "shufflenet_v2_x0_5", 32, 16.0
SHARD_SIZE = 4

TRAINING: dict[str, Any] = {
    "data": str(ROOT / "labelled"),
    "registry": str(ROOT / "registry"),
    "name": "bars",
    "arch": ARCH,
    "weights": str(ROOT / "base.safetensors"),
    "freeze_stages": 5,
    "frames": "all",
    "image_px": SIDE_PX,
    "batch_size": 8,
    "lr": 0.0002,
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "checkpoint_every": "3",
}
FIRST: dict[str, Any] = TRAINING | {"epochs": 8}
SECOND: dict[str, Any] = TRAINING | {"epochs": 8, "seed": 1}
KILLED: dict[str, Any] = TRAINING | {"epochs": 8, "seed": 2}
NIGHT: dict[str, Any] = {
    "source": str(ROOT / "incoming"),
    "model": str(ROOT / "registry/bars@production"),
    "output": str(ROOT / "predictions"),
    "executor": "local",
}
LAST_NIGHT: dict[str, Any] = NIGHT | {"date": "2026-11-23", "shard_size": SHARD_SIZE}


def bars(label: int, number: int) -> np.ndarray:
    """Return uint8 [32,32]: a bright bar whose place tells the class, in noise."""
    image_HW = np.random.default_rng(number).integers(0, 60, (8, 8)).repeat(4, 0).repeat(4, 1)
    image_HW[12 * label : 12 * label + 8] += 150
    return image_HW.astype(np.uint8)


def write(name: str, image: Image.Image, **options: Any) -> None:
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_images(first: int, count: int) -> None:
    for number in range(first, first + count):
        write(
            f"incoming/lot-{number % 3}/{number:03d}.png", Image.fromarray(bars(number % 3, number))
        )


def write_first_night() -> None:
    """18 files: 14 plain ones, one of 16 bits, one of three frames, two that give no pixels."""
    write_images(0, 14)
    deep_HW = bars(1, 500).astype(np.uint16) * 257
    write("incoming/lot-0/deep.png", Image.fromarray(deep_HW))
    frames = [Image.fromarray(bars(number % 3, 600 + number)) for number in range(3)]
    write("incoming/lot-1/frames.tiff", frames[0], save_all=True, append_images=frames[1:])
    (ROOT / "incoming/lot-1/cut.png").write_bytes(
        (ROOT / "incoming/lot-0/000.png").read_bytes()[:90]
    )
    (ROOT / "incoming/lot-2/video.png").write_bytes(b"\0\0\0 ftypisom\0\0\2\0" + b"\0" * 64)


def write_base() -> None:
    """Save weights of few different values, of a network that tells images apart all the same."""
    torch.manual_seed(0)
    model = build_model(ARCH, 1000)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            step = parameter.data.std() * 4 / NUM_STEPS
            parameter.data = (parameter.data / step).round().clamp(-8, 7) * step
    # The batch statistics of these images: without them nothing of an image reaches the last layer.
    images_BHW = np.stack([bars(number % 3, number) for number in range(64)])
    x_BCHW = torch.from_numpy(images_BHW)[:, None].expand(-1, 3, -1, -1) / 255
    model.train()
    for _ in range(60):
        model(x_BCHW)
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith("fc.")}
    save_file(tensors, ROOT / "base.safetensors")


def run_killed(what: str) -> None:
    """Run one half of this program in a process of its own, which kills itself."""
    result = subprocess.run([sys.executable, __file__, what], check=False)
    assert result.returncode == -signal.SIGKILL, f"{what} was not killed"


def die_after(number: int, marks: str) -> None:
    """Have this process killed once the `number`-th file of such a name is written."""
    real, seen = local.put_new, 0

    def put_new(path: str, data: bytes) -> str:
        nonlocal seen
        etag = real(path, data)
        seen += marks in path
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return etag

    local.put_new = put_new


def killed_night() -> None:
    die_after(1, "/commits/")
    nightly(NightlyConfig(**LAST_NIGHT))


def killed_training() -> None:
    die_after(5, "SHA256SUMS")
    train(TrainConfig(**KILLED))


def make() -> None:
    for label in range(2):
        for number in range(20):
            write(
                f"labelled/class{label}/{number:03d}.png",
                Image.fromarray(bars(label, 1000 + 50 * label + number)),
            )
    write_base()
    train(TrainConfig(**FIRST))
    train(TrainConfig(**SECOND))
    promote(f"{NIGHT['model'].partition('@')[0]}@v1", "production")
    write_first_night()
    nightly(
        NightlyConfig(**NIGHT, date="2026-11-22", shard_size=SHARD_SIZE, max_failed_fraction=1.0)
    )
    write_images(100, 17)
    write("incoming/lot-0/000.png", Image.fromarray(bars(2, 700)))
    oracle = ROOT / "oracle"
    shutil.copytree(ROOT / "predictions", oracle)
    nightly(NightlyConfig(**LAST_NIGHT | {"output": str(oracle)}))
    (ROOT / "expected").mkdir()
    [part] = oracle.glob("date=2026-11-23/run=*/part-*.parquet")
    shutil.copy(part, ROOT / "expected/rows.parquet")
    shutil.rmtree(oracle)
    run_killed("night")
    undisturbed = train(TrainConfig(**KILLED | {"registry": str(ROOT / "oracle")}))
    head = read_bundle(undisturbed["uri"]).state_dict
    values = {name: t.tolist() for name, t in head.items() if name.startswith("fc.")}
    (ROOT / "expected/head.json").write_text(json.dumps(values))
    shutil.rmtree(ROOT / "oracle")
    run_killed("training")


def pack(target: str) -> None:
    files = sorted(path for path in ROOT.rglob("*") if path.is_file())
    mtimes = {str(path.relative_to(ROOT)): path.stat().st_mtime_ns for path in files}
    with tarfile.open(target, "w:xz", preset=9) as tar:
        for path in files:
            tar.add(path, path.relative_to(ROOT))
        data = json.dumps(mtimes).encode()
        info = tarfile.TarInfo("mtimes.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def main(what: str) -> None:
    torch.set_num_threads(1)
    driver.MIN_SHARD_SIZE = SHARD_SIZE
    if what == "night":
        killed_night()
    elif what == "training":
        killed_training()
    else:
        ROOT.mkdir()
        make()
        pack(what)


if __name__ == "__main__":
    main(sys.argv[1])
