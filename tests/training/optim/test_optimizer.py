from itertools import pairwise

import pytest
import torch
from torch import nn

from imgcls.training.optim.optimizer import build_optimizer, lr_at, set_lr


def test_warm_up_rises_to_the_peak_and_the_cosine_ends_near_zero() -> None:
    lrs = [lr_at(step, 100, peak_lr=1.0, warmup_fraction=0.1) for step in range(100)]
    assert lrs[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(lrs) == lrs[10] == 1.0
    assert all(a > b for a, b in pairwise(lrs[10:]))
    assert 0 < lrs[-1] < 1e-3


def test_step_schedule_divides_by_ten_twice() -> None:
    lrs = [
        lr_at(step, 100, peak_lr=1.0, warmup_fraction=0.0, schedule="step") for step in range(100)
    ]
    assert [lrs[0], lrs[49], lrs[50], lrs[74], lrs[75], lrs[99]] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )


def test_onecycle_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=101)
    for step in range(101):
        ours = lr_at(step, 101, peak_lr=0.5, warmup_fraction=0.0, schedule="onecycle")
        # Their turning point lies at 0.3 * 101 - 1 steps, ours at 0.3 of the way.
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=0.03)
        optimizer.step()
        theirs.step()


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert lr_at(0, 10, peak_lr=0.5, warmup_fraction=0.0) == 0.5


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_norms_and_biases(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = build_optimizer(model, name, lr=0.1, weight_decay=0.5)  # type: ignore[arg-type]  # parametrised
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for parameter_name, parameter in model.named_parameters():
        is_weight = parameter_name in ("0.weight", "3.weight")
        assert decay[id(parameter)] == (0.5 if is_weight else 0.0)
    assert len(decay) == len(list(model.parameters()))


def test_set_lr_scales_the_next_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(model, "sgd", lr=9.0, weight_decay=0.0)
    set_lr(optimizer, 0.25)
    before = model.weight.item()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert model.weight.item() == pytest.approx(before - 0.25)
