"""Architectures by name.

In: arch, number of classes, channels, image size, options of a model made elsewhere. Out: a module,
float32 [B,C,H,W] -> logits_BK. Invariant: the module is a function of exactly these values, so a
bundle that holds them can be built again; its initial weights depend on torch's seed alone.
Auxiliary heads (googlenet, inception_v3) are never built.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from imgcls.errors import ConfigError
from imgcls.model.networks import timm_archs, transformers_archs
from imgcls.model.networks.own_archs import SimpleCnn, SpotCnn

DEFAULT_IMAGE_PX = 224
SIMPLE_CNN = "simple_cnn"
_OWN: dict[str, type[nn.Module]] = {SIMPLE_CNN: SimpleCnn, "spot_cnn": SpotCnn}
_ANY_CLASSES = 2  # of a head that is cut off

# Smallest image side in pixels of which an architecture's strides leave anything, by the start of
# its name; measured with torchvision 0.29 by forward passes, proved by tests. Not listed: 1 px.
_MIN_IMAGE_PX = {
    SIMPLE_CNN: 4,
    "alexnet": 63,
    "convnext_": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception_v3": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_": 4,
    "vgg": 32,
}
# Architectures whose shapes depend on the image: the side must be a multiple of this many pixels.
_IMAGE_PX_MULTIPLE = {
    "maxvit_": 224,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "vit_l_16": 16,
    "vit_l_32": 32,
    "vit_h_14": 14,
}


def is_own(arch: str) -> bool:
    """Tell whether an architecture is one of ours, of which nobody publishes weights."""
    return arch in _OWN


def list_archs() -> list[str]:
    """Return every architecture by name: our own, then torchvision's classification models."""
    import torchvision

    return [*_OWN, *torchvision.models.list_models(module=torchvision.models)]


def check_arch(arch: str) -> None:
    """Refuse a name that is not an architecture.

    Raises:
        ConfigError: unknown; names the closest matches.
    """
    # Importing torchvision takes 165 MiB and half a second, by way of torch's compiler.
    if is_own(arch):
        return
    if timm_archs.is_timm(arch):
        timm_archs.refuse_unknown(arch)
        return
    archs = list_archs()
    if arch in archs:
        return
    close = difflib.get_close_matches(arch.lower(), archs, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"for example {', '.join(archs[:4])}"
    raise ConfigError(
        f"unknown arch {arch!r}; {hint} ({len(archs)} are known, and timm's as timm:NAME)"
    )


def check_input_size(
    arch: str,
    image_px: int | tuple[int, int],
    *,
    in_channels: int = 3,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a size of the input that the architecture cannot take.

    Raises:
        ConfigError: too small, or no multiple of what the architecture needs; unknown arch.
    """
    check_arch(arch)
    size_px = to_size(image_px)
    if timm_archs.is_timm(arch):
        timm_archs.refuse_size(arch, size_px, in_channels, options or {})
        return
    min_px = _by_prefix(_MIN_IMAGE_PX, arch)
    if min(size_px) < min_px:
        raise ConfigError(
            f"{arch} needs images of at least {min_px} px, image_px is {min(size_px)}"
        )
    multiple = _by_prefix(_IMAGE_PX_MULTIPLE, arch)
    for side_px in size_px:
        if side_px % multiple:
            below = side_px // multiple * multiple
            sizes = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ConfigError(
                f"{arch} needs an image_px that is a multiple of {multiple}, not {side_px}; "
                f"take {sizes}"
            )
    if arch.startswith("vit_") and size_px[0] != size_px[1]:
        raise ConfigError(
            f"{arch} takes square images only, not {timm_archs.shown_size(size_px)}; timm's do "
            "others, such as timm:vit_base_patch16_224"
        )


def default_size(arch: str) -> tuple[int, int]:
    """Return the height and width (pixels) that an architecture was made for.

    Raises:
        ConfigError: unknown arch.
    """
    if not timm_archs.is_timm(arch):
        return DEFAULT_IMAGE_PX, DEFAULT_IMAGE_PX
    _, height_px, width_px = timm_archs.input_config(arch)["input_size"]
    return height_px, width_px


def library_of(arch: str) -> str:
    """Return the package that builds an architecture."""
    return "timm" if timm_archs.is_timm(arch) else "imgcls" if is_own(arch) else "torchvision"


def to_size(image_px: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels."""
    return (image_px, image_px) if isinstance(image_px, int) else image_px


def _by_prefix(px_by_prefix: dict[str, int], arch: str) -> int:
    return next((px for prefix, px in px_by_prefix.items() if arch.startswith(prefix)), 1)


def build_model(
    arch: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    image_px: int | tuple[int, int] = DEFAULT_IMAGE_PX,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an architecture with new weights from torch's seed.

    Args:
        arch: One of `list_archs()`, or `timm:NAME`.
        num_classes: Outputs of the last layer; 0 for a backbone, which gives the embedding.
        in_channels: 3, or 1. For 1 channel the stem convolution's weights are summed over their
            three input channels: what they would do to the grey image on all three.
        image_px: Side of the images the model will see, in pixels, or height and width. Only
            vit_*, maxvit_* and some of timm's have tensors that depend on it.
        options: Further arguments that an imported model was built with.

    Raises:
        ConfigError: unknown arch, or an image size that it cannot take.
    """
    assert in_channels in (1, 3), f"in_channels {in_channels}"
    size_px = to_size(image_px)
    if arch == transformers_archs.ARCH:
        given = options or {}
        return transformers_archs.build(given["config"], num_classes, given.get("embedding", 0))
    if timm_archs.is_timm(arch):  # what size it takes was checked by a pass, when it was planned
        timm_archs.refuse_unknown(arch)
        return timm_archs.build(
            arch, num_classes, in_channels=in_channels, size_px=size_px, options=options or {}
        )
    check_input_size(arch, size_px)
    if not num_classes:
        return _without_head(
            build_model(arch, _ANY_CLASSES, in_channels=in_channels, image_px=size_px)
        )
    if is_own(arch):
        return _OWN[arch](num_classes, in_channels)
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if arch in ("googlenet", "inception_v3"):
        # transform_input undoes ImageNet's normalisation, as their published weights expect; it
        # indexes three channels. init_weights=True draws truncated normals through scipy, slowly.
        arguments |= {
            "aux_logits": False,
            "init_weights": False,
            "transform_input": in_channels == 3,
        }
    if arch.startswith("vit_"):
        arguments["image_size"] = size_px[0]
    if arch.startswith("maxvit_"):
        arguments["input_size"] = size_px
    import torchvision

    model: nn.Module = torchvision.models.get_model(arch, **arguments)
    if in_channels == 1:
        _sum_stem_channels(model)
    return model


def _without_head(model: nn.Module) -> nn.Module:
    """Let a model give the input of its last layer instead of its logits."""
    name, _ = find_head(model)
    model.set_submodule(name, nn.Identity())
    model.head_name = name  # type: ignore[assignment]  # for find_head: nothing else tells
    return model


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the dotted name and the module of the last layer, which maps the embedding to logits.

    It is the one that timm names; in others the last linear or convolution layer in the order of
    definition: a Linear everywhere but in squeezenet, whose last layer is a 1x1 convolution.
    """
    for prefix, part in model.named_modules():  # it may be wrapped, see inference/backends
        known = getattr(part, "head_name", "")
        if known:
            return f"{prefix}.{known}".lstrip("."), part.get_submodule(known)
        named = timm_archs.head_of(part)
        if named is not None:
            return next((name, one) for name, one in model.named_modules() if one is named)
    head = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    assert head, "a classifier has a linear or convolution layer"
    return head[-1]


def find_stem(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the dotted name and the module of the first convolution, which sees the image."""
    return next(
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )


def sum_input_channels(weight: Tensor) -> Tensor:
    """Return stem weights [O,1,H,W] that do to a grey image what [O,3,H,W] do to it repeated."""
    return weight.sum(dim=1, keepdim=True)


def _sum_stem_channels(model: nn.Module) -> None:
    _, stem = find_stem(model)
    stem.weight = nn.Parameter(sum_input_channels(stem.weight.detach()))
    stem.in_channels = 1


def register_embedding_hook(model: nn.Module, arch: str) -> Callable[[], Tensor]:
    """Keep the input of the last layer, the embedding, at every forward pass.

    Returns:
        A function that gives the embedding [B,D] of the latest forward pass. Before a
        convolutional last layer (squeezenet) it is the mean over the positions.
    """
    kept: list[Tensor] = []

    def keep_input(_head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[:] = inputs[:1]

    def embedding() -> Tensor:
        assert kept, f"{arch}: no forward pass yet"
        return kept[0].mean(dim=(2, 3)) if kept[0].ndim == 4 else kept[0]

    _, head = find_head(model)
    head.register_forward_pre_hook(keep_input)
    return embedding
