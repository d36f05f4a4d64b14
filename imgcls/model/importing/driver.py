"""`imgcls import`: a model made elsewhere becomes the next version of a name.

In: an ImportConfig. Out: a registered bundle. Order: what it is, what it expects, the proof beside
the foreign library, labelled images where some were given, then the registry. Invariant: nothing is
registered that was not proven.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from imgcls.config.models import ImportConfig
from imgcls.config.paths import PUBLISHED
from imgcls.data.class_names import ClassNames, enumerate_names
from imgcls.data.dataset import Dataset, read_dataset
from imgcls.errors import ConfigError, DecodeError
from imgcls.image.crops import decode_one
from imgcls.image.preprocess import normalize
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import default_size
from imgcls.model.bundle import Bundle, to_probs
from imgcls.model.importing import checkpoint, hugging_face, onnx_file, timm_model
from imgcls.model.importing.detect import kind_of
from imgcls.model.importing.flags import HOW_TO_NAME, in_words, read_class_names, spec_of_flags
from imgcls.model.importing.foreign import Foreign, digests, with_version
from imgcls.model.importing.pictures import make_pictures
from imgcls.model.importing.prove import Proof, prove
from imgcls.model.registry import check_name, register
from imgcls.runs.facts import lot_of
from imgcls.sources.located import Located, read_image

_EMBEDDING = "embedding-{:04d}"

_log = logging.getLogger(__name__)


def import_model(
    config: ImportConfig, finish: Callable[[Bundle, Sequence[Located]], Bundle] | None = None
) -> dict[str, Any]:
    """Run `imgcls import`.

    Args:
        config: the flags.
        finish: given the bundle and the images of --check, returns what is registered.

    Returns:
        JSON-able: model, uri, version, digest, kind, arch, num_classes, is_backbone, license,
        input_difference_of_255 and moved (see Proof), nights_need, and check (of --check).

    Raises:
        ConfigError: what cannot be imported, and why; nothing was registered.
    """
    check_name(config.name)
    foreign, decode_spec = _read(config)
    foreign = replace(foreign, multi_label=foreign.multi_label or config.multi_label)
    foreign_names = _named(foreign, config)
    _log.info(
        "%s is %s: %s, %d outputs", config.from_, foreign.kind, foreign.arch, foreign.num_outputs
    )
    _log.info("pictures are prepared: %s", _shown(foreign.preprocess_spec))
    proof = prove(foreign, decode_spec, make_pictures(foreign.preprocess_spec.channels))
    bundle = _bundle(config, foreign, decode_spec, proof, foreign_names)
    checked = None
    if config.check:
        samples = read_dataset(config.check, val_fraction=0.0, test_fraction=0.0, seed=0)
        checked = _check(bundle, config, samples)
        if finish is not None:
            bundle = finish(bundle, samples.samples)
    _warn(foreign, config)
    version = register(config.registry, config.name, bundle)
    return {
        "model": f"{config.registry}/{config.name}@v{version.version}",
        "uri": version.uri,
        "version": version.version,
        "digest": version.digest,
        "kind": foreign.kind,
        "arch": foreign.arch,
        "num_classes": 0 if foreign.is_backbone else len(foreign_names),
        "is_backbone": foreign.is_backbone,
        "license": bundle.origin["license"],
        "input_difference_of_255": round(proof.input_difference, 3),
        "moved": proof.moved,
        "nights_need": foreign.nights_need,
        "check": checked,
    }


def _read(config: ImportConfig) -> tuple[Foreign, DecodeSpec]:
    """Read the model, by whoever can, and say how its files are decoded."""
    names = read_class_names(config.classes) if config.classes else ()
    if config.from_.startswith(PUBLISHED):
        foreign = timm_model.read_published(
            config.from_, class_names=names, is_backbone=config.backbone
        )
        return foreign, _decode_spec(foreign.preprocess_spec)
    path = Path(config.from_)
    kind = kind_of(path)
    if kind in ("timm", "hugging_face"):
        _refuse_flags_of_others(config, kind)
    if kind == "timm":
        foreign = timm_model.read_folder(path, class_names=names, is_backbone=config.backbone)
    elif kind == "hugging_face":
        foreign = hugging_face.read_folder(path, class_names=names, is_backbone=config.backbone)
    elif kind == "onnx":
        return _read_onnx(path, config, names)
    else:
        foreign = _read_checkpoint(path, config, names)
    return foreign, _decode_spec(foreign.preprocess_spec)


def _read_checkpoint(path: Path, config: ImportConfig, names: tuple[str, ...]) -> Foreign:
    missing = [] if config.arch else ["--arch (such as resnet50 or timm:convnext_tiny)"]
    if not names and not config.backbone:
        missing.append("--classes FILE (a name per line, in the order of the outputs)")
    if missing:
        raise ConfigError(f"{path} holds weights and nothing else: give {' and '.join(missing)}")
    spec = spec_of_flags(
        config, size_px=default_size(config.arch), channels=3 if config.color == "rgb" else 1
    )
    return checkpoint.read_checkpoint(
        path, config.arch, spec, class_names=names, is_backbone=config.backbone
    )


def _read_onnx(
    path: Path, config: ImportConfig, names: tuple[str, ...]
) -> tuple[Foreign, DecodeSpec]:
    found = onnx_file.read_facts(path, config.output_name)
    layout, (channels, height, width) = found.layout(config.layout)
    names = names or ((), found.class_names())[not config.backbone]
    own = found.own_specs()
    if own is not None:
        decode_spec, spec = own
        preprocessing = "its own metadata, which imgcls wrote"
    else:
        spec = spec_of_flags(
            config,
            size_px=(height, width),
            channels=channels,
            lacks_names=not names and not config.backbone,
        )
        decode_spec = _decode_spec(spec)
        preprocessing = "the flags of the import"
    if (spec.channels, spec.height_px, spec.width_px) != (
        channels, height or spec.height_px, width or spec.width_px,
    ):  # fmt: skip
        raise ConfigError(
            f"{path} takes images of {height} x {width} px with {channels} channels, the flags say "
            f"{spec.height_px} x {spec.width_px} with {spec.channels}"
        )
    foreign = onnx_file.to_foreign(
        found,
        spec,
        layout=layout,
        is_bgr=config.channel_order == "bgr",
        outputs=config.outputs,
        class_names=names,
        is_backbone=config.backbone,
        preprocessing=preprocessing,
    )
    return foreign, decode_spec


def _decode_spec(spec: PreprocessSpec) -> DecodeSpec:
    """Return how files are decoded: at full size, for nobody has proven that less is enough."""
    return DecodeSpec(color="gray" if spec.channels == 1 else "rgb", dct_scaling=False)


def _refuse_flags_of_others(config: ImportConfig, kind: str) -> None:
    """Refuse flags that a folder answers itself: two answers would contradict each other."""
    asked = [
        f"--{name.replace('_', '-')}"
        for name in (
            "arch",
            "preprocess",
            "input_range",
            "mean",
            "std",
            "fit",
            "image_px",
            "resize_px",
        )
        if getattr(config, name)
    ]
    if asked:
        whose = "timm" if kind == "timm" else "Hugging Face"
        raise ConfigError(
            f"{', '.join(asked)}: the folder of {whose} says that itself; leave it out"
        )


def _named(foreign: Foreign, config: ImportConfig) -> ClassNames:
    """Return the names of the outputs; of a backbone names that nobody will see."""
    if foreign.is_backbone:
        return ClassNames(tuple(map(_EMBEDDING.format, range(max(2, foreign.num_outputs)))))
    names = in_words(foreign.class_names, {})
    if not names:
        raise ConfigError(
            f"{config.from_} does not name its {foreign.num_outputs} classes: {HOW_TO_NAME}"
        )
    if len(names) != foreign.num_outputs:
        raise ConfigError(
            f"{config.from_} gives {foreign.num_outputs} outputs, there are {len(names)} class "
            f"names ({enumerate_names(names)})"
        )
    if empty := [str(number) for number, name in enumerate(names) if not name.strip()]:
        raise ConfigError(
            f"{config.from_}: output {', '.join(empty[:9])} has no class name (the first output is "
            "0): name every output in --classes FILE; one "
            "that means nothing, such as 'not trained 0'"
        )
    return ClassNames(names)


def _bundle(
    config: ImportConfig,
    foreign: Foreign,
    decode_spec: DecodeSpec,
    proof: Proof,
    names: ClassNames,
) -> Bundle:
    return Bundle(
        arch=foreign.arch,
        class_names=names,
        decode_spec=decode_spec,
        preprocess_spec=proof.preprocess_spec,
        state_dict=foreign.state_dict,
        metrics={},
        split_digest="",
        training={"versions": {"torch": torch.__version__, "imported_by": with_version("imgcls")}},
        golden_x_BCHW=proof.x_BCHW,
        golden_probs_BK=proof.probs_BK,
        attachments=foreign.attachments,
        multi_label=foreign.multi_label or foreign.is_backbone,
        origin={
            "source": _source(config.from_),
            "kind": foreign.kind,
            "license": config.license or foreign.license or "unknown",
            "license_said_by": "--license"
            if config.license
            else "its files"
            if foreign.license
            else "",
            "files": digests(foreign.files),
            "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "runtime": foreign.runtime,
            "preprocessing": foreign.preprocessing,
            "input_difference_of_255": round(proof.input_difference, 3),
            "largest_move_of_a_probability": proof.moved,
            "num_pictures": len(proof.x_BCHW),
            "nights_need": foreign.nights_need,
            "notes": list(foreign.notes),
        },
        arch_options=foreign.arch_options,
        is_backbone=foreign.is_backbone,
    )


def _source(text: str) -> str:
    """Return where it came from, without folders of this machine: they may name people."""
    return text if text.startswith(PUBLISHED) else Path(text).name


def _check(bundle: Bundle, config: ImportConfig, dataset: Dataset) -> dict[str, Any]:
    """Compare the model's labels with those of a few labelled images.

    Raises:
        ConfigError: it is not better than always naming the most frequent class.
    """
    if bundle.is_backbone:
        raise ConfigError("--check needs classes, and a backbone has none: leave it out")
    if unknown := set(dataset.class_names.names) - set(bundle.class_names.names):
        raise ConfigError(
            f"--check {config.check} has classes that the model does not name: "
            f"{enumerate_names(sorted(unknown))}; it names "
            f"{enumerate_names(bundle.class_names.names)}"
        )
    model, right, labels = bundle.to_model(), 0, []
    # Not the first ones: those are of one class.
    drawn = sorted(dataset.samples, key=lambda sample: lot_of(sample.key, None))
    for sample in drawn[: config.max_check]:
        try:
            [crop, *_] = decode_one(read_image(sample), bundle.decode_spec, bundle.preprocess_spec)
        except DecodeError as error:
            _log.warning("--check: %s gives no pixels and is left out: %s", sample.uri, error)
            continue
        with torch.inference_mode():
            x_BCHW = normalize(torch.from_numpy(crop.x_CHW.copy())[None], bundle.preprocess_spec)
            probs_BK = to_probs(model(x_BCHW), multi_label=bundle.multi_label)
        labels.append(dataset.class_names.names[sample.label])
        right += bundle.class_names.names[int(probs_BK.argmax())] == labels[-1]
    if not labels:
        raise ConfigError(f"--check {config.check}: no image of it gives pixels")
    majority, count = Counter(labels).most_common(1)[0]
    told = f"the model names {right} of {len(labels)} images of --check rightly"
    if right <= count:
        raise ConfigError(
            f"{told}, and always saying {majority!r} would {count}: it was not imported. Look at "
            "the order of --classes, --input-range, --mean, --std, --channel-order and --layout"
        )
    _log.info("%s; always saying %r would be right for %d", told, majority, count)
    return {"num_images": len(labels), "num_right": right, "num_majority": count}


def _warn(foreign: Foreign, config: ImportConfig) -> None:
    if not (config.license or foreign.license):
        _log.warning(
            "the licence of these weights is unknown: no file says it. Weights may have another "
            "licence than the code; find out, and say it by --license"
        )
    if foreign.nights_need:
        _log.warning("scoring with it needs pip install '%s' on every machine", foreign.nights_need)
    if foreign.prepare is None and not config.check:
        _log.warning(
            "how pictures are prepared was said by %s, and nothing here can tell whether that is "
            "right: give a few labelled images by --check",
            foreign.preprocessing,
        )


def _shown(spec: PreprocessSpec) -> str:
    return json.dumps(spec.to_dict())
