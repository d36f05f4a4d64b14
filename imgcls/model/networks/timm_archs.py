"""Architectures of timm, by the name `timm:NAME`; NAME may carry the tag of published weights.

In: a name, number of classes, channels, input size. Out: what timm builds, knows and publishes.
Invariant: head, stem, layer groups, input size, mean and standard deviation are what timm itself
says of the architecture; nothing about any of them is written down here. timm is imported when the
first such name is met, never before.
"""

import dataclasses
import difflib
import operator
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from imgcls.errors import ConfigError

PREFIX: Final = "timm:"
# Sides worth trying where one is refused: timm's windows and patches divide one of these.
_STEPS_PX: Final = (32, 28, 16, 14)
_MAX_SUGGESTED: Final = 2


def is_timm(arch: str) -> bool:
    """Tell whether an architecture is one of timm's."""
    return arch.startswith(PREFIX)


def refuse_unknown(arch: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigError: names the closest matches; or the tags, where only that is unknown.
    """
    import timm

    name, _, tag = _name(arch).partition(".")
    if not timm.is_model(name):
        archs = timm.list_models()
        close = difflib.get_close_matches(name.lower(), archs, n=3, cutoff=0.5)
        hint = " or ".join(PREFIX + one for one in close) or f"for example {PREFIX}{archs[0]}"
        raise ConfigError(f"unknown arch {arch!r}; did you mean {hint}? timm has {len(archs)}")
    tags = timm.models.list_pretrained(f"{name}.*")
    if tag and f"{name}.{tag}" not in tags:
        known = ", ".join(PREFIX + one for one in tags) or "none"
        raise ConfigError(f"unknown arch {arch!r}: published weights of {name} are {known}")


def build(
    arch: str,
    num_classes: int,
    *,
    in_channels: int,
    size_px: tuple[int, int],
    options: Mapping[str, Any],
) -> nn.Module:
    """Build an architecture with new weights from torch's seed.

    Args:
        arch: `timm:NAME`.
        num_classes: Outputs of the last layer; 0 for the embedding.
        in_channels: 3 or 1.
        size_px: Height and width of the input.
        options: Further arguments of timm's own, as `model_args` of a local folder has them.

    Raises:
        ConfigError: timm does not build it so; the message says why.
    """
    import timm

    arguments = dict(options) | {"num_classes": num_classes, "in_chans": in_channels}
    known = input_config(arch)
    if known.get("fixed_input_size") and size_px != tuple(known["input_size"][1:]):
        arguments["img_size"] = size_px
    try:
        model: nn.Module = timm.create_model(_name(arch), pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"timm does not build {arch} with {arguments}: {_first_line(error)}"
        ) from error
    head_of(model)
    return model


def refuse_size(
    arch: str, size_px: tuple[int, int], in_channels: int, options: Mapping[str, Any]
) -> None:
    """Refuse an input that the architecture cannot take, found by a pass without any memory.

    Raises:
        ConfigError: names sizes near it that it takes.
    """
    why = _why_not(arch, size_px, in_channels, options)
    if not why:
        return
    own: tuple[int, int] = tuple(input_config(arch)["input_size"][1:])
    height, width = size_px
    near = {
        ((height // step + dy) * step, (width // step + dx) * step)
        for step in _STEPS_PX
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1))
    } | {own}
    by_distance = sorted(near, key=lambda one: (abs(one[0] - height) + abs(one[1] - width), one))
    fitting: list[str] = []
    for one in by_distance:
        is_square = one[0] == one[1] or height != width
        if is_square and min(one) > 0 and not _why_not(arch, one, in_channels, options):
            fitting.append(shown_size(one))
        if len(fitting) == _MAX_SUGGESTED:
            break
    raise ConfigError(
        f"{arch} does not take images of {shown_size(size_px)} px ({why}); "
        f"take {' or '.join(fitting) or shown_size(own)}"
    )


def shown_size(size_px: tuple[int, int]) -> str:
    """Return a size as --image-px takes it: 224, or 400x1600 for height by width."""
    height, width = size_px
    return str(height) if height == width else f"{height}x{width}"


def input_config(arch: str) -> dict[str, Any]:
    """Return what timm says of an architecture's weights and input: `pretrained_cfg` as a dict.

    Among it `input_size` (C,H,W), `mean` and `std` of values 0..1, `fixed_input_size`, `license`.
    """
    import timm

    refuse_unknown(arch)
    found = timm.models.get_pretrained_cfg(_name(arch), allow_unregistered=True)
    config = dataclasses.asdict(found) if found is not None else {}
    return {"input_size": (3, 224, 224)} | {k: v for k, v in config.items() if v is not None}


def head_of(model: nn.Module) -> nn.Module | None:
    """Return the last layer, which gives the logits; None where the model is not one of timm's."""
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return None
    head = get_classifier()
    if isinstance(head, (tuple, list, nn.ModuleList)):
        raise ConfigError(
            f"{type(model).__name__} has {len(head)} heads, such as distilled models have: "
            "take an architecture with one"
        )
    found: nn.Module = head
    return found


def load_published(
    arch: str,
    file: str,
    *,
    num_classes: int | None = None,
    in_channels: int,
    size_px: tuple[int, int],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Return published weights by name, fitted to the channels and the input size by timm.

    Args:
        arch: `timm:NAME`.
        file: A local file of weights, or "" to download those that NAME's tag means.
        num_classes: Classes of the file; None for those that timm knows.
        in_channels: 3 or 1; the stem is summed for 1.
        size_px: Height and width; positions are interpolated.
        options: What else timm built it with.

    Raises:
        ConfigError: they cannot be had, or do not fit.
    """
    import timm

    config = input_config(arch)
    arguments: dict[str, Any] = {**options, "in_chans": in_channels}
    if config.get("fixed_input_size"):
        arguments["img_size"] = size_px
    if file:
        arguments["pretrained_cfg_overlay"] = {"file": file}
    if num_classes is not None:
        arguments.setdefault("pretrained_cfg_overlay", {})["num_classes"] = num_classes
    try:
        # A donor with the classes of the file: timm loads such a one strictly.
        donor = timm.create_model(_name(arch), pretrained=True, **arguments)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        where = f"from {file}" if file else "by download"
        raise ConfigError(
            f"weights of {arch} cannot be had {where}: {_first_line(error)}; download them "
            "elsewhere and give the folder (config.json and model.safetensors)"
        ) from error
    state: dict[str, Tensor] = donor.state_dict()
    return state


def layer_groups(model: nn.Module) -> list[list[str]] | None:
    """Return the names of the parameters from the image to the head, as timm groups them.

    None where the model does not say.
    """
    group_matcher = getattr(model, "group_matcher", None)
    if group_matcher is None:
        return None
    from timm.models import group_parameters

    groups: dict[Any, list[str]] = group_parameters(model, group_matcher(coarse=True))
    return list(groups.values())


def find_weights_file(folder: Path) -> Path:
    """Return the file of weights in a local folder of timm or Hugging Face.

    Raises:
        ConfigError: there is none that can be read without running code.
    """
    for name in ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder} has no model.safetensors (nor pytorch_model.bin)")


def _why_not(
    arch: str, size_px: tuple[int, int], in_channels: int, options: Mapping[str, Any]
) -> str:
    """Return why the architecture does not take an input of this size, "" if it does."""
    try:
        with torch.device("meta"):
            model = build(arch, 2, in_channels=in_channels, size_px=size_px, options=options)
            model.eval()(torch.empty(1, in_channels, *size_px))
    except NotImplementedError:  # it computes with tensors while it is built: training will tell
        return ""
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises is the reason
        return _first_line(error)
    patch_px = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch_px, tuple) and any(map(operator.mod, size_px, patch_px)):
        return f"it cuts them into patches of {shown_size(patch_px)} px and drops the rest"
    return ""


def _name(arch: str) -> str:
    return arch.removeprefix(PREFIX)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
