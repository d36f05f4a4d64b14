import pytest
import torch
from torch import nn

from imgcls.errors import ConfigError
from imgcls.model.architectures import build_model
from imgcls.training.optim.layer_groups import find_stages, freeze, to_train_mode
from imgcls.training.optim.optimizer import build_optimizer, set_lr


@pytest.mark.parametrize(
    ("arch", "first", "last", "num_stages"),
    [
        ("resnet18", "conv1", "fc", 6),
        ("simple_cnn", "features.0", "classifier", 3),
        ("convnext_tiny", "features.0", "classifier", 9),
        ("vit_b_32", "conv_proj", "heads", 14),
        ("efficientnet_b0", "features.0", "classifier", 10),
        ("swin_t", "features.0", "head", 9),
        ("regnet_y_400mf", "stem", "fc", 6),
    ],
)
def test_stages_run_from_the_image_to_the_head_and_hold_every_parameter(
    arch: str, first: str, last: str, num_stages: int
) -> None:
    model = build_model(arch, 3)
    stages = find_stages(model)
    assert (stages[0].name, stages[-1].name, len(stages)) == (first, last, num_stages)
    parameters = [p for stage in stages for p in stage.parameters]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))


def test_frozen_stages_keep_weights_and_batch_statistics() -> None:
    torch.manual_seed(0)
    model = build_model("simple_cnn", 3)
    freeze(model, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, "sgd", lr=0.1, weight_decay=0.1)
    to_train_mode(model)
    model(torch.rand(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert not {name for name in changed if name.startswith(("features.0.", "features.1."))}
    assert {"features.4.weight", "features.5.running_mean", "classifier.1.weight"} <= changed


def test_freezing_everything_is_refused_with_the_stages() -> None:
    with pytest.raises(ConfigError, match=r"--freeze-stages 3: .*features\.0.*2 at most"):
        freeze(build_model("simple_cnn", 3), 3)


def test_early_stages_learn_more_slowly() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(model, "sgd", lr=1.0, weight_decay=0.0, layer_decay=0.5)
    set_lr(optimizer, 0.8)
    lr_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert [lr_of[id(layer.weight)] for layer in model] == pytest.approx([0.2, 0.4, 0.8])
