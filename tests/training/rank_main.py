"""One rank of a small training in torch's process group, without Ray: `rank_main.py ARGS.json`.

Writes its history and, on rank 0, the final weights to the folder in ARGS. Also imported by the
tests, which run the same function as the only rank.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed, nn

from imgcls.errors import RunStoppedError
from imgcls.image.augment import build_recipe
from imgcls.image.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.build import build_model
from imgcls.model.dataset import read_dataset
from imgcls.training.loader import SplitLoader
from imgcls.training.loop import StepReport, fit
from imgcls.training.optimizer import build_optimizer
from imgcls.training.place import Place
from imgcls.training.recipe import Recipe
from imgcls.training.state import TrainState
from imgcls.training.stop import StopRequest

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


def make_model(name: str, num_classes: int) -> nn.Module:
    """`plain` computes each image by itself; `simple_cnn` has batch norm and dropout."""
    torch.manual_seed(5)
    if name == "plain":
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(200, num_classes)
        )
    return build_model(name, num_classes)


def run_rank(data: str, model_name: str, place: Place, **changes: Any) -> TrainState:
    """Train on the folder tree `data` and return the state."""
    return run_and_list_bad(data, model_name, place, **changes)[0]


def run_and_list_bad(
    data: str, model_name: str, place: Place, *, stop_rank: int = -1, **changes: Any
) -> tuple[TrainState, list[str]]:
    """Train; return the state, and the bad images that this rank knows of.

    `stop_rank` is asked to stop after its second step.
    """
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

    with DecoderPool(DecodeSpec(), recipe.preprocess, 1) as pool:
        train, val = (
            SplitLoader(
                split,
                dataset.of_split(split),
                num_classes=len(dataset.class_names),
                shape_CHW=(3, SIDE_PX, SIDE_PX),
                pool=pool,
                cache=None,
                max_bad_fraction=0.1,
            )
            for split in ("train", "val")
        )
        fit(
            state,
            train,
            val,
            recipe,
            place,
            after_step=after_step,
            after_epoch=lambda numbers: None,
            stop=stop,
        )
    return state, sorted(train.bad)


def main(args: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = distributed.FileStore(str(Path(args["out"]) / "store"), args["world_size"])
    distributed.init_process_group(
        "gloo", store=store, rank=args["rank"], world_size=args["world_size"]
    )
    place = Place.of_process_group(torch.device("cpu"))
    out = Path(args["out"])
    try:
        state, bad = run_and_list_bad(args["data"], args["model"], place, **args["changes"])
    except RunStoppedError as error:
        (out / f"history-{place.rank}.json").write_text(json.dumps([str(error)]))
        return
    (out / f"bad-{place.rank}.json").write_text(json.dumps(bad))
    (out / f"history-{place.rank}.json").write_text(json.dumps(state.history))
    if place.rank == 0:
        save_file({k: v.contiguous() for k, v in state.model.state_dict().items()}, out / "weights")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
