"""Measure the training loop beside the bare step, two ranks beside one, and a worker's memory.

In: a BenchConfig. Out: two tables on stdout, and every figure in the result. Invariant: the loop
measured is the one that trains (`fit`, its loader, its cache); the bare step is the same network,
optimizer and batch size on one batch that lies ready in memory.

    bare step   one batch, normalised before the clock starts
    cached      uint8 images from the RAM cache through the loader
    2 ranks     processes of one thread each over gloo, beside one such process

On a CUDA device ResNet-50 instead, channels_last, as `train` computes by default and in bf16,
compiled: its batch on the device, from the RAM cache, and from JPEG files on the local disk.
"""

import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from imgcls.bench.memory import measure_memory, memory_as_text
from imgcls.bench.table import Side, as_text, measure, tabulate
from imgcls.config.choices import TrainPrecision
from imgcls.config.operations import BenchConfig
from imgcls.config.training import TrainConfig
from imgcls.data.dataset import Sample
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import build_model
from imgcls.scratch import scratch_folder
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.data.image_cache import ImageCache, num_bytes, private_buffer
from imgcls.training.data.loader import SplitLoader
from imgcls.training.optim.loop import fit
from imgcls.training.optim.optimizer import build_optimizer
from imgcls.training.optim.precision import autocast, compile_steps, set_arithmetic
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import Recipe

NUM_CLASSES: Final = 10
SMALL_ARCH, SMALL_PX = "simple_cnn", 32
CUDA_ARCH = "resnet50"
# An epoch of the small network is over soon: it gets more images than the large one.
SMALL_TIMES: Final = 8
_RANKS_WAIT: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class Job:
    """What to train on: `num_images` noise images of a size, in steps of `batch_size`."""

    arch: str
    image_px: int
    num_images: int
    batch_size: int
    precision: TrainPrecision = TrainConfig.precision
    compile: bool = TrainConfig.compile
    augment: str = "none"

    def recipe(self, world_size: int = 1) -> Recipe:
        """Return how: one epoch of steps of equal size, at a learning rate that changes little."""
        return Recipe(
            preprocess=PreprocessSpec.for_image_px(self.image_px),
            augment=build_recipe(cast(Any, self.augment)),
            epochs=1,
            global_batch_size=self.batch_size * world_size,
            batch_size=self.batch_size,
            seed=0,
            lr=1e-5,
            precision=self.precision,
            channels_last=True,
        )


class Loop:
    """The training loop over images in the RAM cache, or over files.

    Args:
        job: what to train on.
        place: where.
        uris: image files to read at each epoch; none for noise that lies in the cache.
        num_decoders: decoder processes for the files.
    """

    def __init__(
        self, job: Job, place: Place, uris: list[str] | None = None, num_decoders: int = 1
    ) -> None:
        self._job, self._place = job, place
        self._recipe = job.recipe(place.world_size)
        self.waited_fractions: list[float] = []
        num_images = job.num_images * place.world_size
        names = uris or [f"noise-{index}" for index in range(num_images)]
        samples = [
            Sample(uri, (index % NUM_CLASSES,), "", "train", group="", key=uri, weight=1.0)
            for index, uri in enumerate(names)
        ]
        shape_CHW = self._recipe.preprocess.shape_CHW
        self._pool = DecoderPool(DecodeSpec(), self._recipe.preprocess, num_decoders)
        self._loader = SplitLoader(
            "train",
            samples,
            num_classes=NUM_CLASSES,
            shape_CHW=shape_CHW,
            pool=self._pool,
            cache=None if uris else _noise_cache(num_images, shape_CHW),
            max_bad_fraction=0.0,
            pin_memory=place.device.type == "cuda",
        )
        self._state = make_bench_state(job, place)
        self._num_images = len(samples)

    @property
    def num_images(self) -> int:
        """Images of an epoch, over all ranks."""
        return self._num_images

    def run(self) -> None:
        """Train an epoch."""
        self._state.epoch = self._state.step = 0
        fit(
            self._state,
            self._loader,
            None,
            self._recipe,
            self._place,
            after_step=lambda _: None,
            is_due=lambda _: False,
            after_epoch=lambda n: self.waited_fractions.append(n["waited_fraction"]),
            compile_model=self._job.compile,
        )

    def close(self) -> None:
        """End the decoder processes."""
        self._pool.close()


def bench_train(
    config: BenchConfig, num_cpus: int, photos: Callable[[], list[bytes]]
) -> dict[str, Any]:
    """Measure training and print a table of speed and one of memory.

    Args:
        config: its arch, image_px, num_images, batch_size and repeats.
        num_cpus: cores of this machine.
        photos: returns JPEG bytes, for a CUDA device.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(scratch_folder("bench")))
        use_cuda = config.device != "cpu" and torch.cuda.is_available()
        loops: dict[str, Loop] = {}
        if use_cuda:
            sides = _cuda_sides(config, folder, photos(), num_cpus, loops)
        else:
            sides = _cpu_sides(config, folder, loops, stack)
        for loop in loops.values():
            stack.callback(loop.close)
        rates = measure(sides, config.repeats)
        memory = measure_memory(config.num_images, config.batch_size, folder)
    table = tabulate(sides, rates, num_cpus)
    for row in table:
        fractions = loops[row["stage"]].waited_fractions[1:] if row["stage"] in loops else []
        row["waited_fraction"] = round(statistics.median(fractions), 3) if fractions else None
    sys.stdout.write(as_text(table) + _waiting_as_text(table) + memory_as_text(memory))
    return {
        "what": config.what,
        "device": torch.cuda.get_device_name() if use_cuda else "cpu",
        "num_cpus": num_cpus,
        "load_1m": round(os.getloadavg()[0], 2),
        "batch_size": config.batch_size,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "stages": table,
        "memory": memory,
    }


def _cpu_sides(
    config: BenchConfig, folder: Path, loops: dict[str, Loop], stack: ExitStack
) -> list[Side]:
    small = Job(SMALL_ARCH, SMALL_PX, config.num_images * SMALL_TIMES, config.batch_size)
    large = Job(config.arch, config.image_px, config.num_images, config.batch_size)
    sides = []
    jobs = {(job.arch, job.image_px): job for job in (small, large)}
    for job in jobs.values():
        name = f"{job.arch} {job.image_px} px"
        bare = f"{name}, bare step"
        sides.append(Side(bare, job.num_images, bare_step(job, torch.device("cpu"))))
        for augment in ("none", "light"):
            label = f"{name}, cached" + (", light" if augment == "light" else "")
            loops[label] = Loop(replace(job, augment=augment), Place())
            sides.append(Side(label, job.num_images, loops[label].run, (bare,)))
    ranks = [stack.enter_context(Ranks(large, n, folder / f"ranks-{n}")) for n in (1, 2)]
    one = "1 rank of 1 thread"
    return [
        *sides,
        Side(one, large.num_images, ranks[0].run, num_cores=1),
        Side("2 ranks of 1 thread", 2 * large.num_images, ranks[1].run, (one,), num_cores=2),
    ]


def _cuda_sides(
    config: BenchConfig, folder: Path, photos: list[bytes], num_cpus: int, loops: dict[str, Loop]
) -> list[Side]:
    """Return the sides for one CUDA device; the first run of each compiles and is thrown away.

    Once as `train` computes by default, once as fast as its flags let it.
    """
    device = torch.device("cuda")
    uris = [str(folder / f"{number:06d}.jpg") for number in range(config.num_images)]
    for uri, data in zip(uris, photos, strict=True):
        Path(uri).write_bytes(data)
    sides = []
    for name, job in cuda_jobs(config).items():
        of_job = {
            f"{name}, RAM cache": Loop(job, Place(device)),
            f"{name}, JPEG on disk": Loop(
                job, Place(device), uris, config.num_decoders or num_cpus
            ),
        }
        loops |= of_job
        bare = f"{name}, synthetic"
        sides.append(Side(bare, job.num_images, bare_step(job, device)))
        sides += [Side(label, job.num_images, loop.run, (bare,)) for label, loop in of_job.items()]
    return sides


def cuda_jobs(config: BenchConfig) -> dict[str, Job]:
    """Return what to train on a CUDA device, by the flags of `train` that stand for it."""
    default = Job(CUDA_ARCH, 224, config.num_images, config.batch_size)
    return {
        f"{CUDA_ARCH}": default,
        f"{CUDA_ARCH} --precision bf16 --compile": replace(default, precision="bf16", compile=True),
    }


def bare_step(job: Job, device: torch.device) -> Callable[[], None]:
    """Return a function that takes an epoch's steps on one batch that lies on the device."""
    recipe, state = job.recipe(), make_bench_state(job, Place(device))
    set_arithmetic(recipe.precision, device)
    model = compile_steps(state.model) if job.compile else state.model
    model.train()
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn((job.batch_size, 3, job.image_px, job.image_px), generator=generator)
    x_BCHW = x_BCHW.to(device).contiguous(memory_format=torch.channels_last)
    label_B = torch.arange(job.batch_size, device=device) % NUM_CLASSES

    def run() -> None:
        for _ in range(max(1, job.num_images // job.batch_size)):
            state.optimizer.zero_grad(set_to_none=True)
            with autocast(recipe, device):
                logits_BK = model(x_BCHW)
            loss = cross_entropy(logits_BK.float(), label_B)
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            state.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def make_bench_state(job: Job, place: Place) -> TrainState:
    """Return a new network and its optimizer, as training builds them."""
    torch.manual_seed(0)
    model = build_model(job.arch, NUM_CLASSES, image_px=job.image_px).to(place.device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, "adamw", lr=1e-5, weight_decay=0.01)
    return TrainState(model, optimizer)


def _noise_cache(num_images: int, shape_CHW: tuple[int, int, int]) -> ImageCache:
    size_bytes = num_bytes(num_images, shape_CHW)
    cache = ImageCache(private_buffer("ram", size_bytes), num_images, shape_CHW)
    rng = np.random.default_rng(0)
    for index in range(num_images):
        cache.put(index, rng.integers(0, 256, shape_CHW, dtype=np.uint8))
    return cache


class Ranks:
    """Processes of one thread each, in one process group, that train an epoch when told to.

    Args:
        job: what each of them trains on: the images grow with the ranks.
        world_size: how many.
        folder: for their meeting point; made.
    """

    def __init__(self, job: Job, world_size: int, folder: Path) -> None:
        folder.mkdir()
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            args = (job, rank, world_size, str(folder / "store"), theirs)
            process = context.Process(target=_run_rank, args=args, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self) -> None:
        """Let all ranks train one epoch."""
        for pipe in self._pipes:
            pipe.send(True)
        for pipe in self._pipes:
            pipe.recv()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join()


def _run_rank(job: Job, rank: int, world_size: int, store: str, pipe: Connection) -> None:
    """Serve a Ranks in a process of its own, until its end of the pipe closes."""
    torch.set_num_threads(1)
    place = Place()
    if world_size > 1:
        distributed.init_process_group(
            "gloo",
            store=distributed.FileStore(store, world_size),  # type: ignore[attr-defined]  # torch
            rank=rank,
            world_size=world_size,
            timeout=_RANKS_WAIT,
        )
        place = Place.of_process_group(torch.device("cpu"))
    loop = Loop(job, place)
    try:
        while pipe.recv():
            loop.run()
            pipe.send(True)
    except EOFError:
        loop.close()


def _waiting_as_text(table: list[dict[str, Any]]) -> str:
    rows = [row for row in table if row["waited_fraction"] is not None]
    return "\n" + "".join(
        f"{row['stage']:<34} {row['waited_fraction']:>7.1%} of the time waiting for data\n"
        for row in rows
    )
