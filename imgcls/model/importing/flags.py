"""What a person says of a model that says too little of itself.

In: an ImportConfig. Out: names of classes, a PreprocessSpec. Invariant: nothing is assumed: what
decides a pixel is said by a flag or a file, or the import ends with the list of what is missing.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from imgcls.config.models import ImportConfig
from imgcls.errors import BundleError, ConfigError, ObjectMissingError
from imgcls.image.spec import PreprocessSpec
from imgcls.model.importing.preprocessing import processor_spec, timm_spec
from imgcls.storage import objects
from imgcls.storage.json_text import parse_json, parse_object

HOW_TO_NAME: Final = (
    "give --classes FILE, a name per line in the order of the outputs; or --backbone, if it has no "
    "classes"
)


def read_class_names(uri: str) -> tuple[str, ...]:
    """Read the names of the classes, in the order of the outputs.

    A name per line; or JSON: a list, or a config.json with id2label or label_names.

    Raises:
        ConfigError: there is no such file, or it holds no names.
    """
    data = _read(uri, "--classes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--classes {uri} is not UTF-8 text: {error}") from error
    if text.lstrip()[:1] in ("[", "{"):
        return _names_of(parse_json(text, f"--classes {uri}", ConfigError), uri)
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ConfigError(f"--classes {uri} is empty: write a name per line")
    return tuple(line.strip() for line in lines)


def _names_of(found: Any, uri: str) -> tuple[str, ...]:  # noqa: ANN401  (a JSON value)
    if isinstance(found, dict):
        found = (
            found.get("id2label") or found.get("label_names") or found.get("class_names") or found
        )
    if isinstance(found, dict):
        try:
            return tuple(str(found[key]) for key in sorted(found, key=int))
        except ValueError as error:
            raise ConfigError(f"--classes {uri}: keys are not numbers: {error}") from error
    if isinstance(found, list):
        return tuple(map(str, found))
    raise ConfigError(f"--classes {uri} holds a {type(found).__name__}, expected a list of names")


def in_words(names: tuple[str, ...], described: Mapping[str, Any]) -> tuple[str, ...]:
    """Return names that a person can read.

    A WordNet id (n01440764) becomes what the model's files or timm say of it; what several ids are
    called alike keeps its id. Numbered labels (LABEL_0), which a library wrote for want of names,
    are none.
    """
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return ()
    words = {name: str(described[name]) for name in names if name in described}
    ids = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    if unknown := [name for name in ids if name not in words]:
        from timm.data import ImageNetInfo

        every = ImageNetInfo("imagenet-22k")
        known = set(every.label_names())
        words |= {n: every.label_name_to_description(n) for n in unknown if n in known}
    times = Counter(words.values())
    return tuple(
        name if name not in words
        else words[name] if times[words[name]] == 1
        else f"{words[name]} ({name})"
        for name in names
    )  # fmt: skip


def spec_of_flags(
    config: ImportConfig, *, size_px: tuple[int, int], channels: int, lacks_names: bool = False
) -> PreprocessSpec:
    """Return how pictures are prepared, as --preprocess or the flags say.

    Args:
        config: The flags.
        size_px: Height and width of the input where the model says it, else 0.
        channels: Of the input.
        lacks_names: Whether nobody has named the classes either.

    Raises:
        ConfigError: all that is missing, in one message; or a value that cannot be.
    """
    if config.preprocess:
        return _spec_of_file(config.preprocess)
    asked = _image_px(config.image_px)
    height, width = asked or size_px
    said = {
        "--input-range (what black and white become: 0:1, 0:255, -1:1)": config.input_range,
        "--mean (per channel, of values in that range; 0 for none)": config.mean,
        "--std (per channel; 1 for none)": config.std,
        "--fit (stretch, crop or pad)": config.fit,
        "--image-px (such as 224 or 400x1600)": height and width,
    }
    if missing := [flag for flag, value in said.items() if not value]:
        raise ConfigError(
            "the model does not say how its pictures are prepared. Give --preprocess FILE "
            "(a preprocessor_config.json, or a timm config.json), or these flags: "
            + "; ".join(missing)
            + (f". It does not name its classes either: {HOW_TO_NAME}" if lacks_names else "")
        )
    values: dict[str, Any] = {
        "height_px": height,
        "width_px": width,
        "fit": config.fit,
        "resize": {"stretch": "exact", "crop": "shortest", "pad": "longest"}[config.fit],
        "filter": config.filter,
        "input_range": _numbers(config.input_range, "--input-range", ":"),
        "mean": _numbers(config.mean, "--mean"),
        "std": _numbers(config.std, "--std"),
        "channels": channels,
    }
    if config.resize_px and config.fit == "stretch":
        values["crop_fraction"] = min(height, width) / config.resize_px
    elif config.resize_px:
        values["resize_px"] = config.resize_px
    most = max(len(values["mean"]), len(values["std"]))
    for name in ("mean", "std"):  # one number stands for all channels
        values[name] *= most if len(values[name]) == 1 else 1
    try:
        return PreprocessSpec(**values)
    except BundleError as error:
        raise ConfigError(f"how pictures are prepared: {error}") from error


def _spec_of_file(uri: str) -> PreprocessSpec:
    """Read a preprocess spec, a processor of Hugging Face or a configuration of timm."""
    found = parse_object(_read(uri, "--preprocess"), uri, ConfigError)
    if "image_processor_type" in found or "feature_extractor_type" in found:
        return processor_spec(found)
    given = found.get("pretrained_cfg", found)
    if isinstance(given, Mapping) and "crop_pct" in given and "input_size" in given:
        return timm_spec(dict(given))
    try:
        return PreprocessSpec.from_dict(found)
    except BundleError as error:
        raise ConfigError(
            f"--preprocess {uri} is neither a preprocessor_config.json nor a config.json of timm, "
            f"and as a preprocess spec of imgcls: {error}"
        ) from error


def _image_px(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    height, _, width = text.lower().partition("x")
    if not height.isdigit() or not (width or height).isdigit():
        raise ConfigError(f"--image-px {text}: write 224, or 400x1600 for height by width")
    return int(height), int(width or height)


def _numbers(text: str, flag: str, separator: str = ",") -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(separator))
    except ValueError:
        raise ConfigError(f"{flag} {text}: write numbers with {separator!r} between them") from None


def _read(uri: str, flag: str) -> bytes:
    try:
        return objects.read(uri)
    except ObjectMissingError as error:
        raise ConfigError(f"{flag} {uri}: there is no such file") from error
