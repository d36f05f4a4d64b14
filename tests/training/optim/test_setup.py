"""When batch statistics are those of all ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.errors import ConfigError
from imgcls.training.optim.setup import synchronises_batch_norm
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import TrainPlan
from tests.training.bars import bars_config

MakeTree = Callable[..., Path]
GPU = torch.device("cuda")


def plan_of(data: Path, **changes: Any) -> TrainPlan:
    return make_plan(
        bars_config(data, num_workers="4", val_fraction=0.1, test_fraction=0, **changes)
    )


def test_auto_synchronises_where_a_rank_has_few_rows(make_tree: MakeTree) -> None:
    data = make_tree(80)
    few, many = (plan_of(data, batch_size=size) for size in (8, 32))
    assert synchronises_batch_norm(few, Place(GPU, 1, 4))
    assert not synchronises_batch_norm(many, Place(GPU, 1, 4))
    assert not synchronises_batch_norm(few, Place(GPU, 0, 1)), "one rank has nobody to ask"


def test_on_and_off_say_so(make_tree: MakeTree, caplog: pytest.LogCaptureFixture) -> None:
    data = make_tree(80)
    on, off = plan_of(data, batch_size=32, sync_bn="on"), plan_of(data, sync_bn="off")
    with caplog.at_level("INFO", "imgcls"):
        assert synchronises_batch_norm(on, Place(GPU, 0, 4))
    assert "--sync-bn on: a worker passes" in caplog.text
    assert not synchronises_batch_norm(off, Place(GPU, 0, 4))


def test_cpus_cannot(make_tree: MakeTree) -> None:
    data = make_tree(80)
    assert not synchronises_batch_norm(plan_of(data), Place(rank=0, world_size=4))
    with pytest.raises(ConfigError, match=r"--sync-bn on: .*between GPUs alone"):
        synchronises_batch_norm(plan_of(data, sync_bn="on"), Place(rank=0, world_size=4))


def test_the_flag_leaves_a_run_that_was_begun_without_it_its_name(make_tree: MakeTree) -> None:
    data = make_tree(80)
    assert plan_of(data, sync_bn="off").fingerprint == plan_of(data).fingerprint
