"""The bundle: a folder that holds all a prediction needs, and the proof that it is whole.

In: a `Bundle` and a URI. Out: model.safetensors, bundle.json, golden.safetensors, MODEL_CARD.md,
attachments, and SHA256SUMS, which is written last: a folder without it is no bundle.
Invariant: nothing is ever unpickled, and no byte is used before its sha256 was compared.

Shape legend: B golden images, C channels, H = W = image_px, K classes.
"""

import copy
import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from imgcls.errors import BundleError, ConfigError, ObjectMissingError
from imgcls.image.preprocess import normalize
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.build import build_model
from imgcls.model.calibration import Calibration
from imgcls.model.card import model_card
from imgcls.model.labels import ClassNames, enumerate_names
from imgcls.storage import objects
from imgcls.storage.uri import join

FORMAT_VERSION = 1
SUMS = "SHA256SUMS"
FACTS, WEIGHTS, GOLDEN, CARD = (
    "bundle.json",
    "model.safetensors",
    "golden.safetensors",
    "MODEL_CARD.md",
)
REQUIRED_FILES = (FACTS, WEIGHTS, GOLDEN, CARD)

_ATTACHMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(png|json|jsonl|csv|onnx)")
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_FACT_TYPES: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "bundle_id": str,
    "created_at": str,
    "arch": str,
    "class_names": list,
    "decode_spec": dict,
    "preprocess_spec": dict,
    "metrics": dict,
    "split_digest": str,
    "training": dict,
    "calibration": (dict, type(None)),
}
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
    golden_x_BCHW: Tensor  # uint8, preprocessed
    golden_probs_BK: Tensor  # float32
    digest: str = ""  # sha256 of SHA256SUMS, "" until stored
    calibration: dict[str, Any] | None = None  # Calibration.to_dict()
    attachments: dict[str, bytes] = field(default_factory=dict)  # plots and logs, by file name

    def to_model(self) -> nn.Module:
        """Build the model with these weights, on the CPU and in evaluation mode."""
        model = self._build()
        model.load_state_dict(self.state_dict)
        return model.eval()

    def _build(self) -> nn.Module:
        # The weights drawn here are replaced at once: loading a bundle must not advance the seed.
        with torch.random.fork_rng(devices=[]):
            return build_model(
                self.arch,
                len(self.class_names),
                in_channels=self.decode_spec.num_channels,
                image_px=self.preprocess_spec.image_px,
            )


def make_golden(model: nn.Module, x_BCHW: Tensor, preprocess_spec: PreprocessSpec) -> Tensor:
    """Return the probabilities float32 [B,K] that a bundle of this model must give.

    They are computed on the CPU in float32, where every user of the bundle can repeat them.

    Args:
        model: The trained module, on any device; it is left as it is.
        x_BCHW: uint8 [B,C,H,W], preprocessed.
        preprocess_spec: The normalisation.
    """
    on_cpu = copy.deepcopy(model).to("cpu", torch.float32).eval()
    return _probs(on_cpu, x_BCHW.cpu(), preprocess_spec)


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


def read_digest(uri: str) -> str:
    """Return the digest of a stored bundle, without checking its files.

    Raises:
        BundleError: there is no complete bundle.
    """
    return hashlib.sha256(_read_sums(uri)).hexdigest()


def read_class_names(uri: str) -> ClassNames:
    """Return the classes of a stored bundle, without reading its weights.

    Raises:
        BundleError: there is no complete bundle, or bundle.json was changed.
    """
    sha256_by_name = _parse_sums(_read_sums(uri), uri)
    facts = _parse_facts(_read_file(uri, FACTS, sha256_by_name[FACTS]), join(uri, FACTS))
    return ClassNames(tuple(map(str, facts["class_names"])))


def read_bundle(uri: str) -> Bundle:
    """Load a bundle and check all of it but its golden probabilities (`Predictor` does).

    Raises:
        BundleError: the file and the reason: missing, changed, a pickle, of a newer format, with
            an unknown key, or with tensors that do not fit the architecture.
    """
    sums = _read_sums(uri)
    files = {name: _read_file(uri, name, sha256) for name, sha256 in _parse_sums(sums, uri).items()}
    facts = _parse_facts(files[FACTS], join(uri, FACTS))
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
            calibration=facts["calibration"],
            attachments={n: data for n, data in files.items() if n not in REQUIRED_FILES},
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
    }
    try:
        facts_json = json.dumps(facts, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the bundle's facts do not fit into JSON: {error}") from error
    golden = {"x": bundle.golden_x_BCHW, "probs": bundle.golden_probs_BK}
    return {
        FACTS: facts_json.encode(),
        WEIGHTS: _tensor_bytes(bundle.state_dict),
        GOLDEN: _tensor_bytes(golden),
        CARD: model_card(json.loads(facts_json)).encode(),
        **bundle.attachments,
    }


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    # safetensors refuses channels_last tensors and those of a GPU.
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    data: bytes = safetensors.torch.save(plain)
    return data


def _read_sums(uri: str) -> bytes:
    try:
        return objects.read(join(uri, SUMS))
    except ObjectMissingError as error:
        found = [entry.uri.rpartition("/")[2] for entry in objects.list_objects(uri)]
        if not found:
            raise BundleError(f"there is no model bundle at {uri}: nothing is there") from error
        pickles = [name for name in found if name.endswith(_PICKLE_SUFFIXES)]
        hint = (
            f"it holds {enumerate_names(pickles)}, and imgcls loads no pickles"
            if pickles
            else f"it has no {SUMS}, so it was never finished or is none; "
            f"it holds {enumerate_names(found)}"
        )
        raise BundleError(f"{uri} is no model bundle: {hint}") from error


def _parse_sums(sums: bytes, uri: str) -> dict[str, str]:
    """Return file name -> sha256."""
    by_name = {}
    for line in sums.decode("ascii", "replace").splitlines():
        match = _SUMS_LINE.fullmatch(line)
        if match is None:
            raise BundleError(
                f"{join(uri, SUMS)} has a line that is none of its own: {line[:80]!r}"
            )
        sha256, name = match.groups()
        if name not in REQUIRED_FILES and not _ATTACHMENT.fullmatch(name):
            raise BundleError(f"{join(uri, SUMS)} names {name!r}, which no bundle holds")
        by_name[name] = sha256
    absent = [name for name in REQUIRED_FILES if name not in by_name]
    if absent:
        raise BundleError(f"{join(uri, SUMS)} does not list {enumerate_names(absent)}")
    return by_name


def _read_file(uri: str, name: str, sha256: str) -> bytes:
    try:
        data = objects.read(join(uri, name))
    except ObjectMissingError as error:
        raise BundleError(f"{join(uri, name)} is missing, although {SUMS} lists it") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BundleError(
            f"{join(uri, name)} was changed: its sha256 is {found}, {SUMS} has {sha256}"
        )
    return data


def _parse_facts(data: bytes, uri: str) -> dict[str, Any]:
    try:
        facts = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{uri} is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise BundleError(f"{uri} is no JSON object")
    version = facts.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{uri} has format_version {version}, this imgcls reads up to {FORMAT_VERSION}: "
            "upgrade imgcls"
        )
    if unknown := sorted(set(facts) - set(_FACT_TYPES)):
        raise BundleError(f"{uri} has unknown keys {enumerate_names(unknown)}")
    for key, kind in _FACT_TYPES.items():
        if key not in facts:
            raise BundleError(f"{uri} lacks the key {key!r}")
        if not isinstance(facts[key], kind):
            raise BundleError(f"{uri}: {key} is a {type(facts[key]).__name__}, expected {kind}")
    return facts


def _parse_tensors(data: bytes, uri: str) -> dict[str, Tensor]:
    if _is_pickle(data):
        raise BundleError(f"{uri} is a pickle, not safetensors: imgcls loads no pickles")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise BundleError(f"{uri} is no safetensors file: {error}") from error
    return tensors


def _is_pickle(data: bytes) -> bool:
    """Tell torch.save's zip and bare pickles from safetensors, whose first 8 bytes are a length."""
    is_length = int.from_bytes(data[:8], "little") <= len(data) - 8
    return data.startswith(b"PK\x03\x04") or (data.startswith(b"\x80") and not is_length)


def _check(bundle: Bundle, where: str) -> None:
    """Refuse a bundle whose parts do not fit each other, by name."""
    for name in bundle.attachments:
        if not _ATTACHMENT.fullmatch(name):
            raise BundleError(f"{where}: attachment {name!r} is not allowed in a bundle")
    if bundle.calibration is not None:
        Calibration.from_dict(bundle.calibration)
    num_channels = bundle.decode_spec.num_channels
    if len(bundle.preprocess_spec.mean) not in (1, num_channels):
        raise BundleError(
            f"{where}: decoding gives {num_channels} channels, "
            f"the normalisation is for {len(bundle.preprocess_spec.mean)}"
        )
    try:
        expected = bundle._build().state_dict()
    except BundleError:
        raise
    except ConfigError as error:
        raise BundleError(f"{where}: {error}") from error
    _check_tensors(bundle.state_dict, expected, f"{where} ({WEIGHTS})", bundle.arch)
    image_px = bundle.preprocess_spec.image_px
    num_golden = len(bundle.golden_x_BCHW)
    golden_shapes = {
        "x": torch.empty(num_golden, num_channels, image_px, image_px, dtype=torch.uint8),
        "probs": torch.empty(num_golden, len(bundle.class_names)),
    }
    golden = {"x": bundle.golden_x_BCHW, "probs": bundle.golden_probs_BK}
    if not num_golden:
        raise BundleError(f"{where}: {GOLDEN} holds no images")
    _check_tensors(golden, golden_shapes, f"{where} ({GOLDEN})", bundle.arch)


def _check_tensors(
    found: dict[str, Tensor], expected: dict[str, Tensor], where: str, arch: str
) -> None:
    if missing := sorted(set(expected) - set(found)):
        raise BundleError(f"{where}: tensors missing for {arch}: {enumerate_names(missing)}")
    if extra := sorted(set(found) - set(expected)):
        raise BundleError(f"{where}: tensors that {arch} has not: {enumerate_names(extra)}")
    for name, tensor in expected.items():
        has, needs = found[name], tensor
        if (has.shape, has.dtype) != (needs.shape, needs.dtype):
            raise BundleError(
                f"{where}: tensor {name} is {has.dtype} {list(has.shape)}, "
                f"{arch} needs {needs.dtype} {list(needs.shape)}"
            )


def _probs_of(bundle: Bundle) -> Tensor:
    return _probs(bundle.to_model(), bundle.golden_x_BCHW, bundle.preprocess_spec)


def _probs(model: nn.Module, x_BCHW: Tensor, preprocess_spec: PreprocessSpec) -> Tensor:
    with torch.inference_mode():
        probs_BK: Tensor = model(normalize(x_BCHW, preprocess_spec)).softmax(dim=1)
    return probs_BK.clone()
