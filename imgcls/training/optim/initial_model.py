"""The model before the first step: new weights, or somebody's, and what of it is trained.

In: an arch and flags. Out: a module on the CPU. Invariant: a function of the seed and the file of
weights; torch's generator is left seeded.
"""

import logging

import torch
from torch import nn

from imgcls.config.training import TrainConfig
from imgcls.model.architectures import build_model
from imgcls.model.pretrained import load_weights
from imgcls.training.optim.layer_groups import freeze

log = logging.getLogger(__name__)


def initial_model(config: TrainConfig, num_classes: int, num_channels: int) -> nn.Module:
    """Build the model of a training.

    Raises:
        ConfigError: weights that are missing or do not fit, or more frozen stages than there are.
    """
    torch.manual_seed(config.seed)
    model = build_model(
        config.arch, num_classes, in_channels=num_channels, image_px=config.input_px
    )
    if config.weights:
        loaded = load_weights(model, config.arch, config.weights, image_px=config.input_px)
        log.info("%s: %s", config.weights, loaded.summary())
    freeze(model, config.freeze_stages)
    return model
