"""The model before the first step: new weights, or somebody's, and what of it is trained.

In: an arch and flags. Out: a module on the CPU. Invariant: a function of the seed and the file of
weights; torch's generator is left seeded.
"""

import logging

import torch
from torch import nn

from imgcls.config.training import TrainConfig
from imgcls.model.architectures import build_model
from imgcls.model.networks import onnx_network
from imgcls.model.pretrained import load_weights
from imgcls.training.optim.layer_groups import freeze
from imgcls.training.train_plan import Adopted, TrainPlan

log = logging.getLogger(__name__)


def initial_model(
    config: TrainConfig, num_classes: int, num_channels: int, adopted: Adopted
) -> nn.Module:
    """Build the model of a training.

    Args:
        config: The flags.
        num_classes: Outputs.
        num_channels: Of the input, 3 or 1.
        adopted: Of the backbone, or of the weights that the flags name.

    Raises:
        ConfigError: weights that are missing or do not fit, or more frozen stages than there are.
    """
    torch.manual_seed(config.seed)
    model = _new_model(config, num_classes, num_channels, adopted)
    if config.weights and config.arch != onnx_network.ARCH:
        loaded = load_weights(model, config.arch, config.weights, image_px=config.input_px)
        log.info("%s: %s", config.weights, loaded.summary())
    freeze(model, config.freeze_stages)
    return model


def model_of_plan(plan: TrainPlan) -> nn.Module:
    """Build the model of a plan, with new weights."""
    return _new_model(
        plan.config, len(plan.class_names), plan.decode_spec.num_channels, plan.adopted
    )


def _new_model(
    config: TrainConfig, num_classes: int, num_channels: int, adopted: Adopted
) -> nn.Module:
    if config.arch == onnx_network.ARCH:  # but for its last layer all of it lies in the file
        return onnx_network.OnnxNetwork(adopted.files[onnx_network.FILE], adopted.arch_options)
    return build_model(
        config.arch,
        num_classes,
        in_channels=num_channels,
        image_px=config.input_px,
        options=adopted.arch_options,
    )
