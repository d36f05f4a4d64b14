"""The bundle: a folder that holds all a prediction needs, and the proof that it is whole.

In: a `Bundle` and a URI. Out: model.safetensors, bundle.json, golden.safetensors, MODEL_CARD.md,
attachments, and SHA256SUMS, which is written last: a folder without it is not a bundle.
Invariant: nothing is ever unpickled, and no byte is used before its sha256 was compared.

Shape legend: B golden images, C channels, H, W height and width of the input, K classes.
"""

import copy
import hashlib
import itertools
import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from imgcls.data.class_names import ClassNames
from imgcls.errors import BundleError, ConfigError
from imgcls.image.preprocess import normalize
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.pooling import POOLINGS, Pooling
from imgcls.metrics.units import UnitCalibration
from imgcls.model.architectures import build_model
from imgcls.model.bundle_files import (
    ATTACHMENT,
    CARD,
    CARD_PAGE,
    FACTS,
    FORMAT_VERSION,
    GOLDEN,
    REQUIRED_FILES,
    SUMS,
    WEIGHTS,
    check_tensors,
    network_digest,
    parse_facts,
    parse_sums,
    read_file,
    read_sums,
)
from imgcls.model.card.card_page import card_page
from imgcls.model.card.model_card import model_card
from imgcls.model.networks import onnx_network
from imgcls.model.networks.onnx_network import OnnxNetwork
from imgcls.storage import objects
from imgcls.storage.uri import join

# Probabilities that differ by less come from the same model: another CPU sums in another order.
GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model with everything that decides its predictions."""

    arch: str
    class_names: ClassNames
    decode_spec: DecodeSpec
    preprocess_spec: PreprocessSpec
    state_dict: dict[str, Tensor]
    metrics: dict[str, Any]
    split_digest: str
    training: dict[str, Any]  # config, seed, versions, counts: JSON-able
    golden_x_BCHW: Tensor  # preprocessed: uint8, of depth 16 float32
    golden_probs_BK: Tensor  # float32
    digest: str = ""  # sha256 of SHA256SUMS, "" until stored
    network_digest: str = ""  # of all that decides probabilities (bundle_files.py), "" until stored
    calibration: dict[str, Any] | None = None  # Calibration.to_dict()
    attachments: dict[str, bytes] = field(default_factory=dict)  # plots and logs, by file name
    multi_label: bool = False  # any number of classes per image, each with its own probability
    pooling: Pooling | Literal[""] = ""  # of the instances of a sample; "" where it has but one
    verdict: dict[str, Any] | None = None  # Verdict.to_dict(); None where none was passed
    background_class: str = ""  # what pooling takes a sample for where no instance says otherwise
    origin: dict[str, Any] = field(default_factory=dict)  # of a model made elsewhere; licence
    arch_options: dict[str, Any] = field(default_factory=dict)  # what else `build_model` was given
    unit_calibration: dict[str, Any] | None = None  # UnitCalibration.to_dict()
    is_backbone: bool = False  # gives no classes but an embedding: only a head makes it predict

    @property
    def background(self) -> int | None:
        """Label of the background class, None where there is none."""
        name = self.background_class
        return self.class_names.label_of(name) if name else None

    def to_model(self) -> nn.Module:
        """Build the model with these weights, on the CPU and in evaluation mode."""
        model = self._build_empty()
        built = model.state_dict()
        is_empty = any(tensor.is_meta for tensor in built.values())
        # Copies take the place of tensors without memory; `to_empty` would give them some by
        # importing sympy: 1.5 s and 40 MiB.
        weights = {
            name: tensor.to(built[name].dtype, copy=is_empty) if name in built else tensor
            for name, tensor in self.state_dict.items()
        }
        model.load_state_dict(weights, assign=is_empty)
        return model.eval()

    def fitted(self) -> Calibration | None:
        """Return the calibration, if there is one."""
        return None if self.calibration is None else Calibration.from_dict(self.calibration)

    def _build_empty(self) -> nn.Module:
        """Build the model without memory for its tensors, where that can be, else as usual.

        To draw weights takes longer than to read those that replace them.
        """
        try:
            with torch.device("meta"):
                model = self._build()
        except NotImplementedError:  # regnet computes with tensors while it is built
            return self._build()
        named = itertools.chain(model.named_parameters(), model.named_buffers())
        # A tensor that is not stored has its only value from being built.
        return model if {name for name, _ in named} <= set(model.state_dict()) else self._build()

    def _build(self) -> nn.Module:
        # The weights drawn here are replaced at once: loading a bundle must not advance the seed.
        with torch.random.fork_rng(devices=[]):
            if self.arch == onnx_network.ARCH:
                return OnnxNetwork(self.attachments[onnx_network.FILE], self.arch_options)
            return build_model(
                self.arch,
                0 if self.is_backbone else len(self.class_names),
                in_channels=self.decode_spec.num_channels,
                image_px=self.preprocess_spec.shape_CHW[1:],
                options=self.arch_options,
            )


def to_probs(logits_BK: Tensor, *, multi_label: bool) -> Tensor:
    """Return the probabilities [B,K] of a bundle's logits: sigmoid if multi-label, else softmax."""
    return logits_BK.sigmoid() if multi_label else logits_BK.softmax(dim=1)


def make_golden(
    model: nn.Module, x_BCHW: Tensor, preprocess_spec: PreprocessSpec, *, multi_label: bool = False
) -> Tensor:
    """Return the probabilities float32 [B,K] that a bundle of this model must give.

    They are computed on the CPU in float32, where every user of the bundle can repeat them.

    Args:
        model: The trained module, on any device; it is left as it is.
        x_BCHW: [B,C,H,W], preprocessed.
        preprocess_spec: The normalisation.
        multi_label: As in the bundle.
    """
    on_cpu = copy.deepcopy(model).to("cpu", torch.float32).eval()
    return _probs(on_cpu, x_BCHW.cpu(), preprocess_spec, multi_label)


def write_bundle(bundle: Bundle, uri: str) -> str:
    """Store a bundle in the new folder `uri` and return its digest.

    bundle.json goes first. It holds a new uuid, so that of several writers of one folder exactly
    one succeeds with it; the others leave nothing behind.

    Raises:
        BundleError: the bundle could not be loaded again; nothing was written.
        ObjectExistsError: the folder holds a bundle, or the beginning of one.
    """
    _check(bundle, "the bundle")
    error = float((_probs_of(bundle) - bundle.golden_probs_BK).abs().max())
    # Written so that a NaN is refused too.
    if not error <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"the bundle does not reproduce its golden probabilities: largest difference "
            f"{error:.2g}, allowed {GOLDEN_TOLERANCE:g}; it was not written"
        )
    files = _serialize(bundle)
    for name, data in files.items():
        objects.put_new(join(uri, name), data)
    sums = "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in sorted(files.items()))
    objects.put_new(join(uri, SUMS), sums.encode())
    return hashlib.sha256(sums.encode()).hexdigest()


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle says of its predictions, and of the training that made it."""

    class_names: ClassNames
    multi_label: bool
    calibration: Calibration | None
    arch: str
    preprocess_spec: PreprocessSpec
    training: dict[str, Any]
    decode_spec: DecodeSpec
    pooling: str
    background_class: str
    unit_calibration: UnitCalibration | None
    arch_options: dict[str, Any]
    origin: dict[str, Any]


def read_facts(uri: str) -> BundleFacts:
    """Return what a stored bundle says of itself, without reading its weights.

    Raises:
        BundleError: there is no complete bundle, or bundle.json was changed.
    """
    sha256_by_name = parse_sums(read_sums(uri), uri)
    facts = parse_facts(read_file(uri, FACTS, sha256_by_name[FACTS]), join(uri, FACTS))
    calibration = facts["calibration"]
    return BundleFacts(
        class_names=ClassNames(tuple(map(str, facts["class_names"]))),
        multi_label=facts["multi_label"],
        calibration=Calibration.from_dict(calibration) if calibration is not None else None,
        arch=facts["arch"],
        preprocess_spec=PreprocessSpec.from_dict(facts["preprocess_spec"]),
        training=facts["training"],
        decode_spec=DecodeSpec.from_dict(facts["decode_spec"]),
        pooling=facts["pooling"],
        background_class=facts["background_class"],
        unit_calibration=UnitCalibration.of(facts["unit_calibration"]),
        arch_options=facts["arch_options"],
        origin=facts["origin"],
    )


def read_bundle(uri: str) -> Bundle:
    """Load a bundle and check all of it but its golden probabilities (`Predictor` does).

    Raises:
        BundleError: the file and the reason: missing, changed, a pickle, of a newer format, with
            an unknown key, or with tensors that do not fit the architecture.
    """
    sums = read_sums(uri)
    sha256_by_name = parse_sums(sums, uri)
    files = {name: read_file(uri, name, sha256) for name, sha256 in sha256_by_name.items()}
    facts = parse_facts(files[FACTS], join(uri, FACTS))
    golden = _parse_tensors(files[GOLDEN], join(uri, GOLDEN))
    if set(golden) != {"x", "probs"}:
        raise BundleError(f"{join(uri, GOLDEN)} holds {sorted(golden)}, expected x and probs")
    try:
        bundle = Bundle(
            arch=facts["arch"],
            class_names=ClassNames(tuple(map(str, facts["class_names"]))),
            decode_spec=DecodeSpec.from_dict(facts["decode_spec"]),
            preprocess_spec=PreprocessSpec.from_dict(facts["preprocess_spec"]),
            state_dict=_parse_tensors(files[WEIGHTS], join(uri, WEIGHTS)),
            metrics=facts["metrics"],
            split_digest=facts["split_digest"],
            training=facts["training"],
            golden_x_BCHW=golden["x"],
            golden_probs_BK=golden["probs"],
            digest=hashlib.sha256(sums).hexdigest(),
            network_digest=network_digest(sha256_by_name, facts),
            calibration=facts["calibration"],
            attachments={
                n: data for n, data in files.items() if n not in (*REQUIRED_FILES, CARD_PAGE)
            },
            multi_label=facts["multi_label"],
            pooling=facts["pooling"],
            background_class=facts["background_class"],
            verdict=facts["verdict"],
            origin=facts["origin"],
            arch_options=facts["arch_options"],
            unit_calibration=facts["unit_calibration"],
            is_backbone=facts["is_backbone"],
        )
    except ConfigError as error:
        raise BundleError(f"{join(uri, FACTS)}: {error}") from error
    _check(bundle, uri)
    return bundle


def _serialize(bundle: Bundle) -> dict[str, bytes]:
    facts = {
        "format_version": FORMAT_VERSION,
        "bundle_id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "arch": bundle.arch,
        "class_names": list(bundle.class_names.names),
        "decode_spec": bundle.decode_spec.to_dict(),
        "preprocess_spec": bundle.preprocess_spec.to_dict(),
        "metrics": bundle.metrics,
        "split_digest": bundle.split_digest,
        "training": bundle.training,
        "calibration": bundle.calibration,
        "multi_label": bundle.multi_label,
        "pooling": bundle.pooling,
        "background_class": bundle.background_class,
        "verdict": bundle.verdict,
        "origin": bundle.origin,
        "arch_options": bundle.arch_options,
        "unit_calibration": bundle.unit_calibration,
        "is_backbone": bundle.is_backbone,
    }
    try:
        facts_json = json.dumps(facts, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the bundle's facts do not fit into JSON: {error}") from error
    golden = {"x": bundle.golden_x_BCHW, "probs": bundle.golden_probs_BK}
    told = json.loads(facts_json)
    card = model_card(told, sorted(bundle.attachments))
    return {
        FACTS: facts_json.encode(),
        WEIGHTS: _tensor_bytes(bundle.state_dict),
        GOLDEN: _tensor_bytes(golden),
        CARD: card.encode(),
        CARD_PAGE: card_page(card, told, bundle.attachments).encode(),
        **bundle.attachments,
    }


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    # safetensors refuses channels_last tensors and those of a GPU.
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    data: bytes = safetensors.torch.save(plain)
    return data


def _parse_tensors(data: bytes, uri: str) -> dict[str, Tensor]:
    if _is_pickle(data):
        raise BundleError(f"{uri} is a pickle, not safetensors: imgcls loads no pickles")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise BundleError(f"{uri} is not a safetensors file: {error}") from error
    return tensors


def _is_pickle(data: bytes) -> bool:
    """Tell torch.save's zip and bare pickles from safetensors, whose first 8 bytes are a length."""
    is_length = int.from_bytes(data[:8], "little") <= len(data) - 8
    return data.startswith(b"PK\x03\x04") or (data.startswith(b"\x80") and not is_length)


def _check(bundle: Bundle, where: str) -> None:
    """Refuse a bundle whose parts do not fit each other, by name."""
    for name in bundle.attachments:
        if not ATTACHMENT.fullmatch(name):
            raise BundleError(f"{where}: attachment {name!r} is not allowed in a bundle")
    units = UnitCalibration.of(bundle.unit_calibration)
    for fitted in (bundle.fitted(), units.calibration if units is not None else None):
        for point in fitted.operating_points if fitted is not None else ():
            if point.positive_class not in bundle.class_names.names:
                raise BundleError(
                    f"{where}: operating point {point.threshold_id!r} is of no class of the model"
                )
    _check_pooling(bundle, where)
    num_channels = bundle.decode_spec.num_channels
    if bundle.preprocess_spec.channels != num_channels:
        raise BundleError(
            f"{where}: decoding gives {num_channels} channels, "
            f"the model takes {bundle.preprocess_spec.channels}"
        )
    try:
        expected = bundle._build_empty().state_dict()
    except BundleError:
        raise
    except ConfigError as error:
        raise BundleError(f"{where}: {error}") from error
    check_tensors(bundle.state_dict, expected, f"{where} ({WEIGHTS})", bundle.arch)
    num_golden = len(bundle.golden_x_BCHW)
    pixel_type = getattr(torch, bundle.decode_spec.pixel_type)
    golden_shapes = {
        "x": torch.empty(num_golden, *bundle.preprocess_spec.shape_CHW, dtype=pixel_type),
        "probs": torch.empty(num_golden, len(bundle.class_names)),
    }
    golden = {"x": bundle.golden_x_BCHW, "probs": bundle.golden_probs_BK}
    if not num_golden:
        raise BundleError(f"{where}: {GOLDEN} holds no images")
    check_tensors(golden, golden_shapes, f"{where} ({GOLDEN})", bundle.arch)


def _check_pooling(bundle: Bundle, where: str) -> None:
    if bundle.pooling not in ("", *POOLINGS):
        raise BundleError(
            f"{where}: unknown pooling {bundle.pooling!r}; this imgcls knows {', '.join(POOLINGS)}"
        )
    if bundle.background_class and bundle.background_class not in bundle.class_names.names:
        raise BundleError(
            f"{where}: background_class {bundle.background_class!r} is not a class of the model"
        )


def _probs_of(bundle: Bundle) -> Tensor:
    model = bundle.to_model()
    return _probs(model, bundle.golden_x_BCHW, bundle.preprocess_spec, bundle.multi_label)


def _probs(
    model: nn.Module, x_BCHW: Tensor, preprocess_spec: PreprocessSpec, multi_label: bool
) -> Tensor:
    with torch.inference_mode():
        logits_BK: Tensor = model(normalize(x_BCHW, preprocess_spec))
        probs_BK = to_probs(logits_BK, multi_label=multi_label)
    return probs_BK.clone()
