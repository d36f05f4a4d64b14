"""Start from weights that somebody trained: published by name, a bundle's, a folder's or a file's.

In: a new model and where its weights come from. Out: the same model with all but its head loaded,
and what was loaded. Invariants: every tensor outside the head comes from there, or nothing does: a
model that is half pretrained and half random is refused; weights meet pixels normalised as they
were when the weights were trained, where that is known (torchvision, timm, bundles).
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from imgcls.config.paths import WEIGHTS_SUFFIXES
from imgcls.data.class_names import enumerate_names
from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.model.architectures import (
    DEFAULT_IMAGE_PX,
    find_head,
    find_stem,
    is_own,
    sum_input_channels,
    to_size,
)
from imgcls.model.bundle import BundleFacts, read_bundle, read_facts
from imgcls.model.networks import timm_archs
from imgcls.model.registry import resolve
from imgcls.storage import objects
from imgcls.storage.json_text import parse_object
from imgcls.storage.uri import is_local

# Under these keys training scripts keep the weights beside the optimizer; in order of preference.
_NESTED_KEYS = ("model_ema", "state_dict", "model")
# Prefixes that wrappers (DistributedDataParallel, torch.compile) put before every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# torchvision's densenet files name "norm.1" what its modules call "norm1".
_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
# Files older than torch 0.4.1 lack these counters, which nothing reads at a fixed momentum.
_COUNTER = ".num_batches_tracked"
# Auxiliary heads of inception_v3 and googlenet, which build_model leaves out.
_AUXILIARY_PREFIXES = ("AuxLogits.", "aux1.", "aux2.")


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did: how many tensors it loaded, and the names that it did not."""

    num_loaded: int
    new_head: tuple[str, ...]  # tensors of the model's last layer that keep their new values
    not_used: tuple[str, ...]  # tensors of the file that the model has no place for

    def summary(self) -> str:
        """Return one line for the log."""
        return (
            f"{self.num_loaded} tensors loaded; "
            f"new: {enumerate_names(self.new_head) or 'none'}; "
            f"not used: {enumerate_names(self.not_used) or 'none'}"
        )


def load_weights(
    model: nn.Module,
    arch: str,
    weights: str,
    *,
    keep_head: bool = False,
    image_px: int | tuple[int, int] = DEFAULT_IMAGE_PX,
) -> LoadedWeights:
    """Load pretrained weights into a model, in place.

    The last layer keeps its new values, even where the file's would fit: its classes are others. A
    three-channel stem is summed for a one-channel model.

    Args:
        model: Built by `build_model`.
        arch: Its name.
        weights: "DEFAULT" or another name of torchvision's weights for `arch`, or DEFAULT or a tag
            of timm's (downloaded at run time); a folder of timm's, with config.json and weights; a
            bundle as REGISTRY/NAME@v1 or by its URI; or the URI of a .safetensors, .pt, .pth or
            .bin file with a state dict.
        keep_head: Load the last layer too, for the same classes in the same order.
        image_px: Side, or height and width, that the model was built for: timm fits positions.

    Raises:
        ConfigError: unknown weights, a file that is missing or holds no state dict, or tensors
            that do not fit.
    """
    own = model.state_dict()
    if timm_archs.is_timm(arch) and not _is_file(weights) and not _is_bundle(weights):
        found = _by_timm(model, arch, weights, to_size(image_px))
    else:
        found = _fit_stem(model, _read(arch, weights))
    head_prefix = f"{find_head(model)[0]}."
    new_head = tuple(name for name in own if name.startswith(head_prefix) and not keep_head)
    wanted = {name: tensor for name, tensor in own.items() if name not in new_head}
    wanted = {n: t for n, t in wanted.items() if n in found or not n.endswith(_COUNTER)}
    if isinstance(model, VisionTransformer):
        found = _fit_positions(model, found)
    _refuse_misfits(own, wanted, found, f"{weights} does not fit {arch}")
    model.load_state_dict({**own, **{name: found[name] for name in wanted}})
    return LoadedWeights(
        num_loaded=len(wanted),
        new_head=new_head,
        not_used=tuple(sorted(name for name in found if name not in wanted)),
    )


def _read(arch: str, weights: str) -> dict[str, Tensor]:
    if _is_bundle(weights):
        _read_facts(arch, weights)
        return dict(read_bundle(resolve(weights)).state_dict)
    return read_weights_file(weights) if _is_file(weights) else _download(arch, weights)


def _fit_stem(model: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum a three-channel stem for a one-channel model."""
    stem_name, stem = find_stem(model)
    name = f"{stem_name}.weight"
    if stem.in_channels == 1 and name in found and found[name].ndim == 4:
        found[name] = sum_input_channels(found[name])
    return found


def _by_timm(
    model: nn.Module, arch: str, weights: str, size_px: tuple[int, int]
) -> dict[str, Tensor]:
    """Return weights that timm publishes or that lie in a folder, fitted by timm."""
    folder, num_classes, options = _folder_of(weights), None, dict[str, Any]()
    if folder is not None:
        config = _folder_config_of(arch, folder)
        num_classes, options = config.get("num_classes"), options_in(config)
        file = str(timm_archs.find_weights_file(folder))
    else:
        arch, file = _tagged(arch, weights), ""
    in_channels = find_stem(model)[1].in_channels
    return timm_archs.load_published(
        arch,
        file,
        num_classes=num_classes,
        in_channels=in_channels,
        size_px=size_px,
        options=options,
    )


def read_folder_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a local folder of timm or Hugging Face.

    Raises:
        ConfigError: there is none, or it is not JSON.
    """
    path = folder / "config.json"
    try:
        return parse_object(objects.read(str(path)), str(path), ConfigError)
    except ObjectMissingError as error:
        raise ConfigError(f"{folder} has no config.json: it is not a folder of timm's") from error


def options_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how timm built the network of a folder, beside its classes and channels."""
    told = config.get("model_args") or {}
    return {key: value for key, value in told.items() if key not in ("num_classes", "in_chans")}


def options_of(arch: str, weights: str) -> dict[str, Any]:
    """Return what else `build_model` must be told of an architecture of timm, to fit its weights.

    Raises:
        ConfigError: unknown weights, or those of another architecture.
    """
    if not timm_archs.is_timm(arch) or not weights or _is_file(weights):
        return {}
    if _is_bundle(weights):
        return _read_facts(arch, weights).arch_options
    folder = _folder_of(weights)
    return options_in(_folder_config_of(arch, folder)) if folder is not None else {}


def _folder_config_of(arch: str, folder: Path) -> dict[str, Any]:
    config = read_folder_config(folder)
    named = config.get("architecture")
    if named != arch.removeprefix(timm_archs.PREFIX).partition(".")[0]:
        raise ConfigError(f"--weights {folder} holds a {named!r}, --arch is {arch}")
    return config


def _tagged(arch: str, weights: str) -> str:
    """Return timm's name of published weights: DEFAULT are those that the arch itself names."""
    if weights == "DEFAULT":
        return arch
    tagged = f"{arch.partition('.')[0]}.{weights}"
    timm_archs.refuse_unknown(tagged)
    return tagged


def _folder_of(weights: str) -> Path | None:
    """Return the local folder of timm's that is meant, if one is."""
    is_folder = "/" in weights and is_local(weights) and (Path(weights) / "config.json").is_file()
    return Path(weights) if is_folder else None


def normalization_of(
    arch: str, weights: str, num_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std per channel that weights were trained with; None for a file's.

    A one-channel model whose stem is the sum of three channels' has one mean and one std: theirs on
    average.

    Args:
        arch: Of the model.
        weights: As for `load_weights`.
        num_channels: Of the model to train, 1 or 3.

    Raises:
        ConfigError: unknown weights.
    """
    if _is_bundle(weights):
        spec = _read_facts(arch, weights).preprocess_spec
        mean, std = spec.mean, spec.std
    elif _is_file(weights):
        return None
    elif timm_archs.is_timm(arch):
        mean, std = _timm_normalization(arch, weights)
    else:
        preset = _published(arch, weights).transforms()
        mean, std = tuple(preset.mean), tuple(preset.std)
    if num_channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return (mean, std) if len(mean) == num_channels else None


def _timm_normalization(arch: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    folder = _folder_of(weights)
    if folder is None:
        config = timm_archs.input_config(_tagged(arch, weights))
    else:
        config = timm_archs.input_config(arch) | read_folder_config(folder).get(
            "pretrained_cfg", {}
        )
    return tuple(config["mean"]), tuple(config["std"])


def _is_file(weights: str) -> bool:
    return weights.lower().endswith(WEIGHTS_SUFFIXES)


def _is_bundle(weights: str) -> bool:
    return not _is_file(weights) and "/" in weights and _folder_of(weights) is None


def _read_facts(arch: str, reference: str) -> BundleFacts:
    facts = read_facts(resolve(reference))
    if facts.arch != arch:
        raise ConfigError(f"--weights {reference} is a {facts.arch}, --arch is {arch}")
    return facts


def _refuse_misfits(
    own: dict[str, Tensor], wanted: dict[str, Tensor], found: dict[str, Tensor], what: str
) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(
            f"{what}: it lacks {len(missing)} of {len(wanted)} tensors, {enumerate_names(missing)}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ConfigError(
                f"{what}: {name} is {list(found[name].shape)}, needed is {list(tensor.shape)}"
            )
    strangers = [
        name for name in found if name not in own and not name.startswith(_AUXILIARY_PREFIXES)
    ]
    if strangers:
        raise ConfigError(f"{what}: it has {enumerate_names(strangers)} beside what is needed")


def _fit_positions(model: VisionTransformer, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate the position embedding of another image size to that of the model."""
    name = "encoder.pos_embedding"
    if name not in found or found[name].shape == model.encoder.pos_embedding.shape:
        return found
    fitted: dict[str, Tensor] = interpolate_embeddings(
        model.image_size, model.patch_size, OrderedDict(found)
    )
    return fitted


def _published(arch: str, name: str) -> Any:  # noqa: ANN401  # torchvision has no types
    """Return torchvision's description of published weights."""
    if is_own(arch):
        raise ConfigError(f"{arch} has no published weights: give a file, not {name!r}")
    published = torchvision.models.get_model_weights(arch)
    if name not in published.__members__:
        known = enumerate_names(published.__members__)
        raise ConfigError(
            f"{arch} has no weights {name!r}; it has {known}, "
            f"or give a bundle (REGISTRY/NAME@v1) or a file ending in {', '.join(WEIGHTS_SUFFIXES)}"
        )
    return published[name]


def _download(arch: str, name: str) -> dict[str, Tensor]:
    """Fetch torchvision's published weights into torch's cache folder."""
    published = _published(arch, name)
    try:
        model = torchvision.models.get_model(arch, weights=published, progress=False)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, a bad hash is not
        raise ConfigError(
            f"weights {name} of {arch} could not be downloaded: {error}; download them elsewhere "
            "and give the file"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def read_weights_file(uri: str) -> dict[str, Tensor]:
    """Return the tensors by name of a .safetensors or .pt file; nothing in it is run.

    Raises:
        ConfigError: it is missing, or holds no state dict that can be read safely.
    """
    try:
        data = objects.read(uri)
    except ObjectMissingError as error:
        raise ConfigError(f"there is no file of weights {uri}") from error
    try:
        if uri.lower().endswith(".safetensors"):
            loaded: Any = safetensors.torch.load(data)
        else:
            # weights_only: tensors and plain containers, nothing that runs code.
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{uri} holds no weights that can be read safely: {reason}") from error
    for key in _NESTED_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict):
        raise ConfigError(f"{uri} holds a {type(loaded).__name__}, expected a state dict")
    tensors = {str(n): t for n, t in loaded.items() if isinstance(t, Tensor)}
    if not tensors:
        raise ConfigError(f"{uri} holds no tensors by name, expected a state dict")
    return {_unwrapped(name): tensor for name, tensor in tensors.items()}


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return _DENSENET_NAME.sub(r"\1\2", name)
