"""How a training's pictures are fitted into the model's input, from its flags.

In: a TrainConfig. Out: a preprocess spec. Invariant: where nobody asks, nothing of a picture is cut
away.
"""

import logging
from dataclasses import replace
from typing import Any, Final

from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.image.fit.seen import Seen
from imgcls.image.spec import PreprocessSpec
from imgcls.model.architectures import default_size
from imgcls.model.networks.timm_archs import shown_size

# All of the picture, and round things stay round, whatever shape the next picture has.
DEFAULT_FIT: Final = "pad"
# From this side on a cut leaves 7/8 of the shorter side, as ImageNet models are evaluated.
_MIN_CROPPED_PX: Final = 96
_CROP_FRACTION: Final = 0.875

log = logging.getLogger(__name__)


def with_own_size(config: TrainConfig) -> TrainConfig:
    """Return the flags with the size of the input said: `auto` is that of the architecture.

    Raises:
        ConfigError: unknown arch.
    """
    if config.image_px != "auto":
        return config
    return replace(config, image_px=shown_size(default_size(config.arch)))


def build_preprocess_spec(
    config: TrainConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> PreprocessSpec:
    """Return the preprocess spec; it travels in the bundle.

    Args:
        config: the fit, the size of the input, and the overlap of tiles.
        mean: per channel, of values 0..1; padding has this colour, for it is 0 to the model.
        std: per channel.
    """
    height_px, width_px = config.input_px
    fit = DEFAULT_FIT if config.fit == "auto" else config.fit
    if fit == "crop" and height_px == width_px:
        return PreprocessSpec.for_image_px(height_px, mean=mean, std=std)
    spec: dict[str, Any] = {"mean": mean, "std": std, "channels": len(mean)}
    match fit:
        case "crop":
            is_cropped = min(height_px, width_px) >= _MIN_CROPPED_PX
            fraction = _CROP_FRACTION if is_cropped else 1.0
            return PreprocessSpec(height_px, width_px, crop_fraction=fraction, **spec)
        case "stretch":
            return PreprocessSpec(height_px, width_px, fit="stretch", resize="exact", **spec)
        case "pad":
            color = tuple(min(255, max(0, round(255 * value))) for value in mean)
            return PreprocessSpec(
                height_px, width_px, fit="pad", resize="longest", pad_color=color, **spec
            )
        case "tiles":
            return PreprocessSpec(
                height_px, width_px, fit="tiles", overlap_px=config.overlap, **spec
            )


def measuring_spec(config: TrainConfig, num_channels: int) -> PreprocessSpec:
    """Return the spec by which the images' colours are measured: padding is not one of them."""
    zeros, ones = (0.0,) * num_channels, (1.0,) * num_channels
    spec = build_preprocess_spec(config, zeros, ones)
    return replace(spec, fit="stretch", resize="exact") if spec.fit == "pad" else spec


def check_seen(config: TrainConfig, seen: Seen) -> None:
    """Say what the model will see; refuse to cut off much that nobody asked to be cut off.

    Raises:
        ConfigError: less than --min-seen-fraction reaches the model.
    """
    log.info("%s", seen.describe())
    is_source = config.augment_from == "source"
    if config.augment != "none" and (is_source or seen.shrink > 1):
        log.info(
            "--augment %s zooms into %s",
            config.augment,
            "the pictures themselves: each is read and decoded in every epoch"
            if is_source
            else "the model's input, not into the picture: it shows no more detail than the input "
            "has; --augment-from source does, and decodes each picture in every epoch",
        )
    if seen.median_fraction < config.min_seen_fraction:
        raise ConfigError(
            f"{seen.describe()}. Take --fit pad or --fit stretch, which cut nothing off, another "
            f"shape by --image-px, or say that it may be: --min-seen-fraction "
            f"{max(0.0, seen.median_fraction - 0.005):.2f}"
        )
