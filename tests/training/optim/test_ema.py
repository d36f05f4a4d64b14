import copy

import pytest
import torch
from torch import nn

from imgcls.model.architectures import build_model
from imgcls.training.optim.ema import copy_for_average, follow


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


def test_all_tensors_move_at_once_by_the_numbers_of_one_by_one() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenet_v3_small", 3)
    average = copy_for_average(model)
    expected = copy.deepcopy(average)
    for num_steps in range(1, 4):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)
        follow(average, model, decay=0.9, num_steps=num_steps)
        rate = 1.0 - min(0.9, (1.0 + num_steps) / (10.0 + num_steps))
        for name, tensor in expected.state_dict().items():
            theirs = model.state_dict()[name]
            tensor.lerp_(theirs, rate) if tensor.is_floating_point() else tensor.copy_(theirs)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(average.state_dict()[name], tensor), name


def test_a_step_looks_nothing_up_by_name() -> None:
    """Which takes 50 ms for a ResNet-50."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = copy_for_average(model)
    follow(average, model, decay=0.9, num_steps=1)
    looked_up: list[str] = []
    for module in (model, average):
        module.register_state_dict_pre_hook(lambda *_: looked_up.append("a model"))
    with torch.no_grad():
        model[0].weight.add_(1.0)
    follow(average, model, decay=0.0, num_steps=10**9)
    assert looked_up == []
    assert torch.equal(average[0].weight, model[0].weight), "and the weights are those of now"


def test_weights_that_a_checkpoint_or_a_device_replaced_are_followed() -> None:
    model = nn.Linear(1, 1)
    average = copy_for_average(model)
    follow(average, model, decay=0.9, num_steps=1)
    model.load_state_dict({"weight": torch.full((1, 1), 5.0), "bias": torch.zeros(1)})
    average.double().float()  # replaces the memory of every parameter
    follow(average, model, decay=0.0, num_steps=10**9)
    assert average.weight.item() == 5.0
