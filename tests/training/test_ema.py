import pytest
import torch
from torch import nn

from imgcls.training.ema import copy_for_average, follow


def test_the_average_follows_the_weights_and_buffers() -> None:
    model = nn.BatchNorm1d(1)
    average = copy_for_average(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(2.0)
        model.num_batches_tracked.fill_(7)
    follow(average, model, decay=0.9, num_steps=1000)
    assert average.weight.item() == pytest.approx(1.0 * 0.9 + 3.0 * 0.1)
    assert average.running_mean.item() == pytest.approx(0.2)
    assert average.num_batches_tracked.item() == 7
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_first_steps_move_it_fast() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = copy_for_average(model)
    with torch.no_grad():
        model.weight += 1.0
    gap = (model.weight - average.weight).item()
    follow(average, model, decay=0.999, num_steps=1)
    assert (model.weight - average.weight).item() == pytest.approx(gap * 2 / 11)
