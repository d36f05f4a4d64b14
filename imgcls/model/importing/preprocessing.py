"""What timm and Hugging Face say of how pictures are prepared, in the words of a preprocess spec.

In: their configurations. Out: a PreprocessSpec. Invariant: what a spec cannot express, or what this
file does not know, is refused by its name and never approximated; the proof of an import then
compares pixels, so that a wrong translation is refused too.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from imgcls.errors import BundleError, ConfigError
from imgcls.image.spec import Filter, PreprocessSpec

# PIL.Image.Resampling, as Hugging Face's processors number it.
_PIL_FILTERS: Final[dict[int, Filter]] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
_NAMED_FILTERS: Final = tuple(_PIL_FILTERS.values())
# What a processor may say that changes no pixel.
_IDLE: Final = frozenset(
    [
        "_processor_class",
        "_valid_processor_keys",
        "image_processor_type",
        "processor_class",
        "feature_extractor_type",
        "return_tensors",
        "data_format",
        "input_data_format",
        "device",
        "disable_grouping",
        "image_seq_length",
        "default_to_square",
        "backend",
        "auto_map",
        "resample_method",
        "model_input_names",
        "size_divisor",
        "return_row_col_info",
    ]
)
_KNOWN: Final = frozenset(
    [
        "do_resize",
        "size",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "do_convert_rgb",
        "crop_pct",
    ]
)
# Processors whose rule is written here; any other is refused by name.
_SHORTEST_OR_EXACT: Final = frozenset(
    {
        "ViTImageProcessor", "BitImageProcessor", "SiglipImageProcessor", "CLIPImageProcessor",
        "DeiTImageProcessor", "ViTFeatureExtractor", "DeiTFeatureExtractor", "LevitImageProcessor",
        "MobileNetV1ImageProcessor", "MobileNetV2ImageProcessor", "PoolFormerImageProcessor",
        "DINOv3ViTImageProcessor", "BeitImageProcessor", "PvtImageProcessor",
    }
)  # fmt: skip
_CONVNEXT: Final = frozenset({"ConvNextImageProcessor", "ConvNextFeatureExtractor"})
# From this side on ConvNeXt's processor squeezes instead of cutting.
_CONVNEXT_WHOLE_PX: Final = 384


def timm_spec(data: Mapping[str, Any]) -> PreprocessSpec:
    """Translate what `timm.data.resolve_data_config` returns.

    Raises:
        ConfigError: names what a spec cannot express.
    """
    channels, height, width = data["input_size"]
    fraction = float(data.get("crop_pct") or 0.875)
    mode = data.get("crop_mode") or "center"
    values: dict[str, Any] = {
        "height_px": height,
        "width_px": width,
        "filter": _filter(str(data["interpolation"])),
        "mean": _per_channel(data["mean"], channels),
        "std": _per_channel(data["std"], channels),
        "channels": channels,
    }
    if mode == "squash":
        values |= {"fit": "stretch", "resize": "exact", "crop_fraction": fraction}
    elif mode == "border":
        color = tuple(round(255 * value) for value in values["mean"])
        values |= {"fit": "pad", "resize": "longest", "crop_fraction": fraction, "pad_color": color}
    elif mode != "center":
        raise ConfigError(
            f"timm prepares pictures by crop_mode {mode!r}, which imgcls does not know"
        )
    elif height == width:
        values["resize_px"] = math.floor(height / fraction)
    else:
        values["crop_fraction"] = fraction
    return _spec(values)


def processor_spec(config: Mapping[str, Any]) -> PreprocessSpec:
    """Translate a preprocessor_config.json of Hugging Face.

    Raises:
        ConfigError: names the processor, or what of it a spec cannot express.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast")
    if kind not in _SHORTEST_OR_EXACT | _CONVNEXT:
        raise ConfigError(
            f"preprocessor_config.json: pictures are prepared by {kind or 'no processor named'}, "
            "whose rule imgcls does not know; convert the model to ONNX and give its "
            "preprocessing by --preprocess FILE"
        )
    odd = sorted(key for key in set(config) - _KNOWN - _IDLE if config[key] not in (None, False))
    if odd:
        said = ", ".join(f"{key}={config[key]!r}" for key in odd)
        raise ConfigError(
            f"preprocessor_config.json: {said} cannot be expressed in a preprocess spec"
        )
    if not config.get("do_resize", True):
        raise ConfigError("preprocessor_config.json: do_resize is false, so no size is known")
    size, crop = _size(config["size"]), _crop(config)
    values = _values(config)
    if kind in _CONVNEXT:
        return _spec(values | _convnext(size, float(config.get("crop_pct") or 224 / 256)))
    if isinstance(size, int):
        height, width = crop or (size, size)
        if crop is None:
            raise ConfigError(
                "preprocessor_config.json: the shortest edge is resized and nothing is cut, so "
                "that every picture has another size: a model of one size cannot take that"
            )
        return _spec(
            values
            | {"height_px": height, "width_px": width, "resize_px": size}
            | {"crop_place": "center_floor"}
        )
    if crop is not None and crop != size:
        raise ConfigError(
            f"preprocessor_config.json: pictures are squeezed to {size} and cut to {crop}, which "
            "a preprocess spec cannot express"
        )
    height, width = size
    return _spec(
        values | {"height_px": height, "width_px": width, "fit": "stretch", "resize": "exact"}
    )


def _convnext(size: Any, crop_fraction: float) -> dict[str, Any]:  # noqa: ANN401  (int or pair)
    if not isinstance(size, int):
        raise ConfigError(f"preprocessor_config.json: size {size!r} names no shortest edge")
    values: dict[str, Any] = {"height_px": size, "width_px": size}
    if size >= _CONVNEXT_WHOLE_PX:
        return values | {"fit": "stretch", "resize": "exact"}
    return values | {"resize_px": int(size / crop_fraction), "crop_place": "center_floor"}


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return filter, range, mean and standard deviation."""
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    is_normalized = config.get("do_normalize", True)
    mean = config.get("image_mean") if is_normalized else None
    std = config.get("image_std") if is_normalized else None
    high = 255 * factor
    resample = config.get("resample", 2)
    if resample not in _PIL_FILTERS:
        raise ConfigError(
            f"preprocessor_config.json: resample={resample!r} is not a filter of Pillow's"
        )
    return {
        "filter": _PIL_FILTERS[resample],
        # 255 * (1 / 255) is not 1 in every case.
        "input_range": (0.0, 1.0 if math.isclose(high, 1.0) else high),
        "mean": tuple(map(float, mean)) if mean else (0.0,),
        "std": tuple(map(float, std)) if std else (1.0,),
    }


def _size(size: Any) -> int | tuple[int, int]:  # noqa: ANN401  (a JSON value)
    """Return the shortest edge, or height and width."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise ConfigError(
        f"preprocessor_config.json: size={size!r} cannot be expressed in a preprocess spec"
    )


def _crop(config: Mapping[str, Any]) -> tuple[int, int] | None:
    if not config.get("do_center_crop") or "crop_size" not in config:
        return None
    size = _size(config["crop_size"])
    return (size, size) if isinstance(size, int) else size


def _filter(name: str) -> Filter:
    if name not in _NAMED_FILTERS:
        raise ConfigError(
            f"timm prepares pictures by the filter {name!r}, which imgcls does not know"
        )
    found: Filter = name
    return found


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:  # noqa: ANN401  (numbers)
    numbers = tuple(map(float, values))
    return (sum(numbers) / len(numbers),) if channels == 1 and len(numbers) > 1 else numbers


def _spec(values: dict[str, Any]) -> PreprocessSpec:
    try:
        return PreprocessSpec(**values)
    except BundleError as error:
        raise ConfigError(f"the model's preprocessing: {error}") from error
