"""Weigh a training worker: does its memory grow over epochs, or with the number of images?

In: a number of images. Out: MiB after each epoch, for that many and for more. Invariant: what is
weighed is a process of its own that trains with every part of a training but the bundle.

Own memory is what cannot be dropped; pages of files (the disk cache, libraries) can.
"""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from imgcls.config.training import TrainConfig
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.png import encode_png
from imgcls.inference.device import set_num_threads
from imgcls.training.optim.loop import fit
from imgcls.training.optim.setup import make_loaders, make_state
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.ranks.rank import Place

ARCH: Final = "simple_cnn"
NUM_EPOCHS: Final = 4
TIMES: Final = (1, 4)  # of the given number of images


def measure_memory(num_images: int, batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """Return a worker's memory after each epoch, for growing numbers of images, by cache.

    Args:
        num_images: of the smallest data set.
        batch_size: of the training.
        folder: for the data sets.
    """
    context = multiprocessing.get_context("spawn")
    rows = []
    for times in TIMES:
        data = folder / f"data-{times}"
        _write_tree(data, num_images * times)
        for cache in ("ram", "disk"):
            ours, theirs = context.Pipe(duplex=False)
            args = (str(data), str(folder / "registry"), cache, batch_size, theirs)
            process = context.Process(target=_train_and_weigh, args=args, daemon=True)
            process.start()
            theirs.close()
            epochs = ours.recv()
            process.join()
            rows.append({"cache": cache, "num_images": num_images * times, "epochs": epochs})
    return rows


def _write_tree(folder: Path, num_images: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(num_images):
        path = folder / f"class{index % 2}" / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))


def _train_and_weigh(
    data: str, registry: str, cache: str, batch_size: int, pipe: Connection
) -> None:
    """Train ARCH at 64 px with every part of a training; send memory after each epoch."""
    set_num_threads(1)
    plan = make_plan(
        TrainConfig(
            data=data,
            registry=registry,
            name="bench",
            arch=ARCH,
            image_px="64",
            epochs=NUM_EPOCHS,
            batch_size=batch_size,
            cache=cast(Any, cache),
            val_fraction=0.0,
            test_fraction=0.0,
            num_decoders=1,
        )
    )
    weighed: list[dict[str, float]] = []
    with DecoderPool(plan.decode_spec, plan.preprocess_spec, 1) as pool:
        loaders, state = make_loaders(plan, pool, Place()), make_state(plan, Place())
        fit(
            state,
            loaders["train"],
            None,
            plan.recipe,
            Place(),
            after_step=lambda _: None,
            after_epoch=lambda _: weighed.append(read_memory()),
        )
    pipe.send(weighed)


def read_memory() -> dict[str, float]:
    """Return this process's memory in MiB: its own, and pages of files, which can be dropped."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kib = {line[0].rstrip(":"): int(line[1]) for line in lines if line[0].startswith("Rss")}
    own_kib = kib["RssAnon"] + kib["RssShmem"]
    return {"own_mib": round(own_kib / 1024, 1), "file_mib": round(kib["RssFile"] / 1024, 1)}


def memory_as_text(memory: list[dict[str, Any]]) -> str:
    """Return the rows as lines of text."""
    line = "{:<6} {:>8}  {}\n"
    text = "\n" + line.format("cache", "images", "own memory (file pages) after each epoch, MiB")
    for row in memory:
        epochs = ", ".join(f"{e['own_mib']:.0f} ({e['file_mib']:.0f})" for e in row["epochs"])
        text += line.format(row["cache"], row["num_images"], epochs)
    return text
