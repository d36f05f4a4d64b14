"""A model of timm: its local folder, or its name on a hub.

In: a folder with config.json and weights, or `timm:NAME`, or `hf-hub:ID@COMMIT`. Out: Foreign.
Invariant: timm itself builds the model, loads the weights strictly and says how pictures are
prepared; its transform is the reference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from imgcls.errors import ConfigError
from imgcls.image.spec import PreprocessSpec
from imgcls.model.importing.flags import in_words
from imgcls.model.importing.foreign import Foreign, Prepare, run_by_torch, with_version
from imgcls.model.importing.preprocessing import timm_spec
from imgcls.model.networks import timm_archs
from imgcls.model.pretrained import options_in, read_folder_config

_BATCH_NORM: Final = nn.modules.batchnorm._BatchNorm


def read_folder(folder: Path, *, class_names: Sequence[str], is_backbone: bool) -> Foreign:
    """Read a local folder.

    Args:
        folder: As `timm.models.save_for_hf` or a download of the hub has it.
        class_names: As asked for; where there are none those of the config.
        is_backbone: Leave the head away.

    Raises:
        ConfigError: what is missing or does not fit, by name.
    """
    config = read_folder_config(folder)
    name = config.get("architecture")
    if not isinstance(name, str):
        raise ConfigError(f"{folder}/config.json names no architecture: it is not one of timm's")
    arch = timm_archs.PREFIX + name
    timm_archs.refuse_unknown(arch)
    weights = timm_archs.find_weights_file(folder)
    given = config.get("pretrained_cfg") or {}
    num_classes = int(config.get("num_classes") or given.get("num_classes") or 0)
    options = options_in(config)
    channels = int((config.get("model_args") or {}).get("in_chans") or given["input_size"][0])
    arguments = options | {"in_chans": channels}
    model = _load(arch, weights, num_classes, arguments, given, is_backbone=is_backbone)
    return to_foreign(
        model,
        arch,
        options,
        given,
        class_names=class_names or _names_in(config, given),
        num_outputs=num_classes,
        is_backbone=is_backbone or not num_classes,
        kind="a timm folder",
        files=(folder / "config.json", weights),
        license_text=str(config.get("license") or given.get("license") or _card_license(folder)),
    )


def read_published(source: str, *, class_names: Sequence[str], is_backbone: bool) -> Foreign:
    """Download `timm:NAME` or `hf-hub:ID@COMMIT` and read it.

    Raises:
        ConfigError: it cannot be had; says what to do without a network.
    """
    import timm

    name = source.removeprefix(timm_archs.PREFIX)
    if source.startswith("hf-hub:") and "@" not in source:
        raise ConfigError(
            f"--from {source}: say which commit, as hf-hub:OWNER/NAME@0123abc...: a branch may "
            "change from one day to the next"
        )
    try:
        model = timm.create_model(
            name, pretrained=True, **({"num_classes": 0} if is_backbone else {})
        )
    except Exception as error:
        raise ConfigError(
            f"--from {source} cannot be had: {str(error).partition(chr(10))[0]}. Without a network "
            "copy the folder of the model here (config.json and model.safetensors) and write "
            "--from FOLDER"
        ) from error
    given = dict(model.pretrained_cfg)
    return to_foreign(
        model,
        timm_archs.PREFIX + str(given["architecture"]),
        {},
        given,
        class_names=class_names or _names_in({}, given),
        num_outputs=int(model.num_classes),
        is_backbone=is_backbone,
        kind="weights of timm",
        files=(),
        license_text=str(given.get("license") or ""),
    )


def to_foreign(
    model: nn.Module,
    arch: str,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    num_outputs: int,
    is_backbone: bool,
    kind: str,
    files: tuple[Path, ...],
    license_text: str,
) -> Foreign:
    """Take a built model of timm apart.

    Args:
        model: With its weights.
        arch: `timm:NAME`.
        options: What it was built with beside classes and channels.
        given: Its `pretrained_cfg`, which says how pictures are prepared.
        class_names: Of its outputs.
        num_outputs: Of its head.
        is_backbone: It has none.
        kind: For people.
        files: What was read.
        license_text: Of the weights.
    """
    import timm

    data = timm.data.resolve_data_config({}, pretrained_cfg=dict(given), model=model)
    spec = timm_spec(data)
    model.eval()
    options = dict(options) | _epsilon_of_pretrained(model, arch, spec, options)
    return Foreign(
        kind=kind,
        arch=arch,
        arch_options=options,
        class_names=() if is_backbone else tuple(map(str, class_names)),
        num_outputs=int(getattr(model, "num_features", 0)) if is_backbone else num_outputs,
        preprocess_spec=spec,
        state_dict={name: tensor.float() if tensor.is_floating_point() else tensor
                    for name, tensor in model.state_dict().items()},
        run=run_by_torch(model),
        runtime=with_version("timm"),
        prepare=_transform(data),
        preprocessing=f"create_transform of {with_version('timm')}",
        is_backbone=is_backbone,
        license=license_text,
        files=files,
    )  # fmt: skip


def _epsilon_of_pretrained(
    model: nn.Module, arch: str, spec: PreprocessSpec, options: Mapping[str, Any]
) -> dict[str, float]:
    """Return what timm changes where it builds for weights, and no file of weights says.

    Some architectures (fbnetc_100) get another epsilon of their batch norms then.
    """
    with torch.device("meta"):
        try:
            ours = timm_archs.build(
                arch, 0, in_channels=spec.channels, size_px=spec.shape_CHW[1:], options=options
            )
        except NotImplementedError:  # it computes with tensors while it is built
            return {}
    theirs, own = (
        {m.eps for m in one.modules() if isinstance(m, _BATCH_NORM)} for one in (model, ours)
    )
    return {"bn_eps": theirs.pop()} if theirs != own and len(theirs) == 1 else {}


def _load(
    arch: str,
    weights: Path,
    num_classes: int,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    is_backbone: bool,
) -> nn.Module:
    import timm

    overlay = dict(given) | {"file": str(weights), "num_classes": num_classes}
    for absent in ("hf_hub_id", "url", "source"):
        overlay.pop(absent, None)
    try:
        model: nn.Module = timm.create_model(
            arch.removeprefix(timm_archs.PREFIX),
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay=overlay,
            **options,
        )
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"{weights} does not fit {arch} with {num_classes} classes: {' '.join(lines[:3])}"
        ) from error
    timm_archs.head_of(model)
    if is_backbone:
        # type: timm's models have it.
        model.reset_classifier(0)  # type: ignore[operator]
    return model


def _transform(data: Mapping[str, Any]) -> Prepare:
    import timm
    from PIL import Image

    transform = timm.data.create_transform(**data, is_training=False)

    def prepare(image_HWC: Any) -> torch.Tensor:  # noqa: ANN401  (uint8 [H,W,C])
        image = Image.fromarray(image_HWC.squeeze())
        x_CHW: torch.Tensor = transform(image)
        return x_CHW

    return prepare


def _names_in(config: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("label_names") or given.get("label_names") or ()
    described = config.get("label_descriptions") or given.get("label_descriptions")
    return in_words(tuple(map(str, names)), described if isinstance(described, dict) else {})


def _card_license(folder: Path) -> str:
    """Return the licence that the folder's README.md says at its head, "" if none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    for line in card.read_text("utf-8", "replace").splitlines()[:40]:
        key, _, value = line.partition(":")
        if key.strip() == "license":
            return value.strip()
    return ""
