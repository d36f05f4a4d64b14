"""The stages of a network, from the image to the head: what to freeze, what to train slowly.

In: a model of any architecture. Out: its parameters in stages, from the image to the head.
Invariant: every parameter is in exactly one stage; the last stage holds the head. timm says itself
how its models are grouped; of others a block of layers as torchvision groups them is one stage.
Norms that stand alone belong to the stage before them.
"""

import itertools
from dataclasses import dataclass, field

from torch import nn

from imgcls.errors import ConfigError
from imgcls.model.networks.timm_archs import layer_groups

# Containers whose children are stages of their own, by the names torchvision gives them.
_CONTAINERS = ("features", "blocks", "trunk_output", "layers", "encoder.layers")
# Vision transformers define these beside their first layer.
_OF_THE_STEM = {"class_token": "conv_proj", "encoder.pos_embedding": "conv_proj"}


@dataclass(slots=True)
class Stage:
    """A part of the network, by the dotted name of its modules."""

    name: str
    parameters: list[nn.Parameter] = field(default_factory=list)


def find_stages(model: nn.Module) -> list[Stage]:
    """Return the stages from the image to the head."""
    groups = layer_groups(model)
    if groups is not None:
        parameter_of = dict(model.named_parameters())
        return [
            Stage(_common_name(names), [parameter_of[name] for name in names]) for names in groups
        ]
    stages: list[Stage] = []
    for name, parameter in model.named_parameters():
        key = _stage_name(name)
        known = next((stage for stage in stages if stage.name == key), None)
        if known is None:
            known = Stage(key)
            stages.append(known)
        known.parameters.append(parameter)
    return _with_norms_merged(stages)


def freeze(model: nn.Module, num_stages: int) -> None:
    """Keep the weights of the first stages as they are.

    Raises:
        ConfigError: there would be nothing left to train but the head, or not even that.
    """
    stages = find_stages(model)
    if num_stages >= len(stages):
        names = ", ".join(stage.name for stage in stages)
        raise ConfigError(
            f"--freeze-stages {num_stages}: the model has {len(stages)} stages ({names}); "
            f"freeze {len(stages) - 1} at most"
        )
    for stage in stages[:num_stages]:
        for parameter in stage.parameters:
            parameter.requires_grad_(False)


def to_train_mode(model: nn.Module) -> None:
    """Switch to training, but for frozen modules: their batch statistics stay as they are, too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def _common_name(names: list[str]) -> str:
    """Return the module that all of these parameters lie in, or else that of the first."""
    modules = [name.split(".")[:-1] or [name] for name in names]
    shared = [parts[0] for parts in itertools.takewhile(_are_equal, zip(*modules, strict=False))]
    return ".".join(shared or modules[0])


def _are_equal(parts: tuple[str, ...]) -> bool:
    return len(set(parts)) == 1


def _stage_name(parameter_name: str) -> str:
    if parameter_name in _OF_THE_STEM:
        return _OF_THE_STEM[parameter_name]
    for container in _CONTAINERS:
        if parameter_name.startswith(f"{container}."):
            return f"{container}.{parameter_name[len(container) + 1 :].split('.')[0]}"
    return parameter_name.split(".")[0]


def _with_norms_merged(stages: list[Stage]) -> list[Stage]:
    merged: list[Stage] = []
    for stage in stages:
        if merged and all(parameter.ndim < 2 for parameter in stage.parameters):
            merged[-1].parameters += stage.parameters
        else:
            merged.append(stage)
    return merged
