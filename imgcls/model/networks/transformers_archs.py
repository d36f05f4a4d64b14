"""Networks of Hugging Face's transformers, built from the configuration that a bundle holds.

In: config.json as a dict. Out: a module, float32 [B,C,H,W] -> logits, or the pooled embedding of a
backbone. Invariant: only classes of the installed library are built, by the name in the
configuration; no code comes with a model. transformers is imported when the first such bundle is
met, never before.
"""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from imgcls.errors import ConfigError

ARCH: Final = "transformers"
EXTRA: Final = "imgcls[transformers]"
# What a configuration says of where it came from, not of the network.
_OF_ITS_PAST: Final = ("_name_or_path", "transformers_version", "id2label", "label2id", "auto_map")


class Classifier(nn.Module):
    """One of transformers' models, with tensors in and out."""

    def __init__(
        self, model: nn.Module, *, is_backbone: bool, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head or nn.Identity()
        self.is_backbone = is_backbone
        if is_backbone:
            self.head_name = "head"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits [B,K]; of a backbone the embedding [B,E], or what its new head gives."""
        outputs = self.model(pixel_values=x_BCHW, return_dict=True)
        if not self.is_backbone:
            logits_BK: Tensor = outputs.logits
            return logits_BK
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:  # as the classifiers of such models do: the class token
            pooled = outputs.last_hidden_state[:, 0]
        found: Tensor = self.head(pooled.flatten(1))
        return found


def build(config: Mapping[str, Any], num_classes: int, embedding: int = 0) -> nn.Module:
    """Build the network that a configuration names, with new weights.

    Args:
        config: config.json.
        num_classes: Outputs; 0 for the embedding.
        embedding: Numbers in it, where the network is a backbone and a head was fitted here.

    Raises:
        ConfigError: transformers is not installed, or does not know it.
    """
    found = _class_of(config)
    values = {key: value for key, value in config.items() if key not in _OF_ITS_PAST}
    kind = values.pop("model_type")
    if num_classes and not embedding:
        values["num_labels"] = num_classes
    try:
        described = importlib.import_module("transformers").AutoConfig.for_model(kind, **values)
        model = found(described)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"transformers does not build {found.__name__}: {reason}") from error
    head = nn.Linear(embedding, num_classes) if embedding and num_classes else None
    return Classifier(model, is_backbone=bool(embedding) or not num_classes, head=head)


def load(folder: Path, config: Mapping[str, Any], *, is_backbone: bool) -> Classifier:
    """Load a folder that `save_pretrained` wrote, every tensor of it, and run nothing in it.

    Raises:
        ConfigError: transformers is not installed, or a tensor is missing or of another shape.
    """
    found: Any = _class_of(config)
    try:
        model, told = found.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"transformers does not load {folder}: {reason}") from error
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if told.get(kind):
            raise ConfigError(
                f"{folder} does not fit its config.json: {kind.replace('_', ' ')}, "
                f"such as {sorted(map(str, told[kind]))[0]}"
            )
    return Classifier(model, is_backbone=is_backbone)


def _class_of(config: Mapping[str, Any]) -> type[nn.Module]:
    if find_spec("transformers") is None:
        raise ConfigError(f"this model is one of transformers': pip install '{EXTRA}'")
    transformers = importlib.import_module("transformers")
    name = str(config["architectures"][0])
    found = getattr(transformers, name, None)
    if found is None or not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ConfigError(f"transformers {transformers.__version__} has no model {name!r}")
    return found


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides the network."""
    return {key: value for key, value in config.items() if key not in _OF_ITS_PAST}
