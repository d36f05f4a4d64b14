"""One rank of a small training in torch's process group, without Ray: `rank_main.py ARGS.json`.

Writes its history and, on rank 0, the final weights to the folder in ARGS. Also imported by the
tests, which run the same function as the only rank.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed, nn

from imgcls.data.dataset import read_dataset
from imgcls.errors import ConfigError, RunStoppedError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import build_model
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.data.loader import SplitLoader
from imgcls.training.instances.labels import InstanceTargets
from imgcls.training.optim.loop import StepReport, fit
from imgcls.training.optim.optimizer import build_optimizer
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.ranks.stop_request import StopRequest
from imgcls.training.train_plan import Recipe

SIDE_PX = 12
GLOBAL_BATCH_SIZE = 16


def make_recipe(world_size: int, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "epochs": 2,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "batch_size": GLOBAL_BATCH_SIZE // world_size,
        "optimizer": "adamw",
        "lr": 3e-3,
        "weight_decay": 0.01,
        "warmup_fraction": 0.1,
        "label_smoothing": 0.0,
        "augment": build_recipe("light"),
        "preprocess": PreprocessSpec.for_image_px(SIDE_PX),
        "best_by": "loss",
        "seed": 3,
    }
    return Recipe(**values | changes)


class MeetsInForward(nn.Module):
    """Adds up over the ranks in each forward pass of the training, as SyncBatchNorm does."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if self.training:
            total = torch.ones(3)
            distributed.all_reduce(total)
            assert total.tolist() == [distributed.get_world_size()] * 3, "met something else"
        return x_BCHW


class BreaksOnTheLastRank(nn.Module):
    """Gives no finite number in the third forward pass of the training, on one rank alone."""

    def __init__(self) -> None:
        super().__init__()
        self.num_passes = 0

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        self.num_passes += self.training
        is_last = distributed.get_rank() == distributed.get_world_size() - 1
        return x_BCHW * torch.inf if self.num_passes == 3 and is_last else x_BCHW


def make_model(name: str, num_classes: int) -> nn.Module:
    """`plain` computes each image by itself; `simple_cnn` has batch norm and dropout."""
    torch.manual_seed(5)
    if name in ("plain", "collective", "breaks"):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(200, num_classes)
        )
        before = {"collective": MeetsInForward(), "breaks": BreaksOnTheLastRank()}
        return model if name == "plain" else nn.Sequential(before[name], model)
    return build_model(name, num_classes)


@contextmanager
def count_compilations() -> Iterator[list[list[list[int]]]]:
    """Have torch.compile note the shapes of the images it compiles for, and compile nothing."""
    seen: list[list[list[int]]] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append([list(x.shape) for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 4])
        return graph.forward

    compile_as_usual = torch.compile
    torch.compile = partial(compile_as_usual, backend=note)  # type: ignore[assignment]
    try:
        yield seen
    finally:
        torch.compile = compile_as_usual


def run_rank(data: str, model_name: str, place: Place, **changes: Any) -> TrainState:
    """Train on the folder tree `data` and return the state."""
    return run_and_list_bad(data, model_name, place, **changes)[0]


def run_and_list_bad(
    data: str,
    model_name: str,
    place: Place,
    *,
    stop_rank: int = -1,
    slow_s: float = 0.0,
    compile_model: bool = False,
    **changes: Any,
) -> tuple[TrainState, list[str]]:
    """Train; return the state, and the bad images that this rank knows of.

    `stop_rank` is asked to stop after its second step. Rank 0 is busy for `slow_s` before the first
    step, after it, and after each epoch.
    """

    def be_busy() -> None:
        if place.rank == 0:
            time.sleep(slow_s)

    if changes.get("pooling"):
        preprocess = PreprocessSpec(SIDE_PX, SIDE_PX, fit="tiles", overlap_px=4)
        changes |= {"preprocess": preprocess, "background": 0}
    recipe = make_recipe(place.world_size, **changes)
    dataset = read_dataset(
        data, val_fraction=0.25, test_fraction=0, seed=0, multi_label=recipe.multi_label
    )
    model = make_model(model_name, len(dataset.class_names))
    optimizer = build_optimizer(model, recipe.optimizer, lr=recipe.lr, weight_decay=0.01)
    state = TrainState(model, optimizer)
    stop = StopRequest()

    def after_step(_: StepReport) -> None:
        stop.requested = place.rank == stop_rank and state.total_steps == 2
        if state.total_steps == 1:
            be_busy()

    num_classes = len(dataset.class_names)
    targets = InstanceTargets(num_classes, 0, multi_label=False) if recipe.pooling else None
    with DecoderPool(DecodeSpec(), recipe.preprocess, 1) as pool:
        train, val = (
            SplitLoader(
                split,
                dataset.of_split(split),
                num_classes=num_classes,
                shape_CHW=(3, SIDE_PX, SIDE_PX),
                pool=pool,
                cache=None,
                max_bad_fraction=0.1,
                targets=targets,
            )
            for split in ("train", "val")
        )
        be_busy()
        fit(
            state,
            train,
            val,
            recipe,
            place,
            after_step=after_step,
            after_epoch=lambda numbers: be_busy(),
            compile_model=compile_model,
            stop=stop,
        )
    return state, sorted(train.bad)


def main(args: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = distributed.FileStore(str(Path(args["out"]) / "store"), args["world_size"])
    distributed.init_process_group(
        "gloo",
        store=store,
        rank=args["rank"],
        world_size=args["world_size"],
        timeout=timedelta(seconds=args["changes"].pop("limit_s", 120.0)),
    )
    place = Place.of_process_group(torch.device("cpu"))
    out = Path(args["out"])
    try:
        with count_compilations() as compilations:
            state, bad = run_and_list_bad(args["data"], args["model"], place, **args["changes"])
    except (RunStoppedError, ConfigError) as error:
        (out / f"history-{place.rank}.json").write_text(json.dumps([str(error)]))
        return
    (out / f"bad-{place.rank}.json").write_text(json.dumps(bad))
    (out / f"compilations-{place.rank}.json").write_text(json.dumps(compilations))
    (out / f"history-{place.rank}.json").write_text(json.dumps(state.history))
    if place.rank == 0:
        save_file({k: v.contiguous() for k, v in state.model.state_dict().items()}, out / "weights")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
