"""Networks of Hugging Face's transformers, built from the configuration that a bundle holds.

In: config.json as a dict. Out: a module, float32 [B,C,H,W] -> logits, or the pooled embedding of a
backbone. Invariant: only classes of the installed library are built, by the name in the
configuration; no code comes with a model. transformers is imported when the first such bundle is
met, never before.
"""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from torch import Tensor, nn

from imgcls.errors import ConfigError

ARCH: Final = "transformers"
EXTRA: Final = "imgcls[transformers]"
# What a configuration says of where it came from, not of the network.
_OF_ITS_PAST: Final = ("_name_or_path", "transformers_version", "id2label", "label2id", "auto_map")


class Classifier(nn.Module):
    """One of transformers' models, with tensors in and out."""

    def __init__(self, model: nn.Module, *, is_backbone: bool) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Identity()
        self.is_backbone = is_backbone

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits [B,K], or the embedding [B,E]."""
        outputs = self.model(pixel_values=x_BCHW, return_dict=True)
        if not self.is_backbone:
            logits_BK: Tensor = outputs.logits
            return logits_BK
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:  # as the classifiers of such models do: the class token
            pooled = outputs.last_hidden_state[:, 0]
        embedding_BE: Tensor = self.head(pooled.flatten(1))
        return embedding_BE


def build(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build the network that a configuration names, with new weights.

    Args:
        config: config.json.
        num_classes: Outputs; 0 for the embedding.

    Raises:
        ConfigError: transformers is not installed, or does not know it.
    """
    if find_spec("transformers") is None:
        raise ConfigError(f"this model is one of transformers': pip install '{EXTRA}'")
    transformers = importlib.import_module("transformers")
    name = str(config["architectures"][0])
    found = getattr(transformers, name, None)
    if found is None or not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ConfigError(f"transformers {transformers.__version__} has no model {name!r}")
    values = {key: value for key, value in config.items() if key not in _OF_ITS_PAST}
    kind = values.pop("model_type")
    if num_classes:
        values["num_labels"] = num_classes
    try:
        described = transformers.AutoConfig.for_model(kind, **values)
        model = found(described)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"transformers does not build {name}: {reason}") from error
    return Classifier(model, is_backbone=not num_classes)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides the network."""
    return {key: value for key, value in config.items() if key not in _OF_ITS_PAST}
