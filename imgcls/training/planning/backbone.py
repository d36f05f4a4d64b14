"""The backbone that `--head linear` keeps as it is: a registered model's, with its way of looking.

In: a TrainConfig. Out: the same, of the backbone's architecture and size, and the backbone's specs.
Invariant: features are only as good as the pixels are the ones that the backbone was trained on.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.bundle import read_bundle, read_facts
from imgcls.model.networks import onnx_network, transformers_archs
from imgcls.model.pretrained import options_of
from imgcls.model.registry import resolve
from imgcls.training.train_plan import Adopted

# What trains a backbone, or changes its pixels while it does.
_TRAINING_FLAGS: Final = (
    *("epochs", "accumulate", "num_workers", "precision", "compile", "sync_bn"),
    *("lr", "weight_decay", "warmup_fraction", "schedule", "optimizer", "layer_decay"),
    *("freeze_stages", "max_grad_norm", "ema_decay", "best_by", "patience_epochs"),
    *("policy", "flip", "mixup", "cutmix", "loss", "label_smoothing"),
)
# What a backbone of its own brings along.
_BACKBONE_FLAGS: Final = (
    *("arch", "weights", "image_px", "fit", "color"),
    *("gray_range", "gray_window", "gray_bits", "depth", "frames", "dicom_window"),
)
_DEFAULTS: Final = {field.name: field.default for field in fields(TrainConfig)}


@dataclass(frozen=True)
class Backbone:
    """A registered model whose features are taken."""

    reference: str
    arch: str
    decode_spec: DecodeSpec
    preprocess_spec: PreprocessSpec
    arch_options: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def adopted(self, num_classes: int) -> Adopted:
        """Return what the new bundle keeps of it, beside weights and specs.

        Raises:
            ConfigError: it gives no embedding that a last layer could stand on.
        """
        options, files = self.arch_options, dict[str, bytes]()
        if self.arch in (onnx_network.ARCH, transformers_archs.ARCH):
            bundle = read_bundle(resolve(self.reference))
            if self.arch == onnx_network.ARCH:
                files = {onnx_network.FILE: bundle.attachments[onnx_network.FILE]}
                network = onnx_network.OnnxNetwork(files[onnx_network.FILE], options)
                shape_CHW, is_backbone = self.preprocess_spec.shape_CHW, bundle.is_backbone
                options = network.options_with_head(num_classes, shape_CHW, is_backbone=is_backbone)
            elif bundle.is_backbone:
                options = options | {"embedding": len(bundle.class_names)}
        origin = self.origin
        if origin:
            name = self.reference.rpartition("/")[2]
            told = f"Its last layer was fitted here, on the features of {name}."
            origin = origin | {"notes": [*origin["notes"], told]}
        return Adopted(options, origin, files)

    def adopted_by(self, config: TrainConfig) -> TrainConfig:
        """Return the config with the backbone's architecture, weights and input."""
        _, height_px, width_px = self.preprocess_spec.shape_CHW
        return replace(
            config,
            arch=self.arch,
            weights=self.reference,
            image_px=f"{height_px}x{width_px}",
            color="gray" if self.decode_spec.num_channels == 1 else "rgb",
        )


def adopt(config: TrainConfig, backbone: Backbone | None, num_classes: int) -> Adopted:
    """Return what the new bundle keeps of the model that its backbone or weights are of.

    Raises:
        ConfigError: a backbone without an embedding, or unknown weights.
    """
    if backbone is not None:
        return backbone.adopted(num_classes)
    return Adopted(options_of(config.arch, config.weights))


def check_head_flags(config: TrainConfig) -> None:
    """Refuse flags that a head alone has no use for, or a backbone without weights.

    Raises:
        ConfigError: names the flag.
    """
    if config.head == "full":
        if config.backbone:
            raise ConfigError(
                "--backbone is for --head linear; to train all of it, give --arch and --weights "
                f"{config.backbone}"
            )
        return
    for name in _TRAINING_FLAGS:
        _refuse(config, name, "--head linear trains no backbone, and has no use for it")
    _refuse_other_ways(config)
    if config.backbone:
        for name in _BACKBONE_FLAGS:
            _refuse(config, name, f"--backbone {config.backbone} brings its own")
    elif not config.weights:
        raise ConfigError(
            "--head linear keeps a trained backbone as it is, and none is named: give --backbone "
            "REGISTRY/NAME@v1, or --arch with --weights, such as --weights DEFAULT"
        )


def _refuse_other_ways(config: TrainConfig) -> None:
    """Refuse what a head is not measured, looked at or balanced by."""
    if config.folds:
        raise ConfigError("--folds: --head linear is measured on images that are held out")
    if config.is_pooled:
        raise ConfigError(
            "--head linear takes one look at an image: leave out --fit tiles, --frames pool, --unit"
        )
    if config.balance == "sampling":
        raise ConfigError("--balance sampling: --head linear has no epochs; take --balance weights")
    if config.multi_label and config.balance != "none":
        raise ConfigError("--balance: --head linear fits each class of several by itself; leave it")


def read_backbone(config: TrainConfig) -> Backbone | None:
    """Return the backbone that is named, or None.

    Raises:
        ConfigError: there is no such model, or it takes several looks at an image.
    """
    if not config.backbone:
        return None
    facts = read_facts(resolve(config.backbone))
    if facts.pooling:
        raise ConfigError(
            f"--backbone {config.backbone} pools several looks at an image ({facts.pooling}), and "
            "--head linear takes one: choose another backbone"
        )
    return Backbone(
        config.backbone,
        facts.arch,
        facts.decode_spec,
        facts.preprocess_spec,
        facts.arch_options,
        facts.origin,
    )


def _refuse(config: TrainConfig, name: str, reason: str) -> None:
    value = getattr(config, name)
    if value != _DEFAULTS[name]:
        flag = f"--{name.replace('_', '-')} {value}"
        raise ConfigError(f"{flag}: {reason}; leave it out")
