"""The files of a stored bundle: their names, their sums, and the facts in bundle.json.

In: the URI of a bundle's folder. Out: bytes and facts. Invariant: no byte is returned before its
sha256 was compared with SHA256SUMS.
"""

import hashlib
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.data.class_names import enumerate_names
from imgcls.errors import BundleError, ConfigError, ObjectMissingError
from imgcls.storage import objects
from imgcls.storage.json_text import parse_object
from imgcls.storage.uri import is_local, join, split_uri

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
SUMS = "SHA256SUMS"
FACTS, WEIGHTS, GOLDEN, CARD = (
    "bundle.json",
    "model.safetensors",
    "golden.safetensors",
    "MODEL_CARD.md",
)
# The card with its pictures, for people; bundles of before have none.
CARD_PAGE = "card.html"
REQUIRED_FILES = (FACTS, WEIGHTS, GOLDEN, CARD)
# Of bundles that are proven from encoded files on, see golden_files.py.
GOLDEN_FILES = "golden_files.zip"
# The network in int8, of bundles that have one.
INT8 = "int8.zip"
# What its pictures should look like, of bundles that know, see drift/reference.py.
REFERENCE = "reference.zip"
# The network of a model that came as an ONNX file.
ONNX = "network.onnx"
# What decides the probabilities of an image: these files, and these facts of bundle.json.
NETWORK_FILES = (WEIGHTS, INT8, ONNX)
_NETWORK_FACTS = (
    "arch",
    "class_names",
    "decode_spec",
    "preprocess_spec",
    "multi_label",
    "pooling",
    "background_class",
)

ATTACHMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(png|json|jsonl|csv|onnx|zip)")
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
    "multi_label": bool,
    "pooling": str,
    "background_class": str,
    "origin": dict,
    "arch_options": dict,
    "is_backbone": bool,
    "verdict": (dict, type(None)),
    "unit_calibration": (dict, type(None)),
}
# What bundles lack that were written before there was such a thing.
_ABSENT: dict[str, Any] = {
    "multi_label": False,
    "pooling": "",
    "background_class": "",
    "origin": {},
    "arch_options": {},
    "is_backbone": False,
    "verdict": None,
    "unit_calibration": None,
}


def read_sums(uri: str) -> bytes:
    """Return SHA256SUMS of a stored bundle.

    Raises:
        BundleError: there is no complete bundle; says what there is instead.
    """
    _refuse_link(uri, SUMS)
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
        raise BundleError(f"{uri} is not a model bundle: {hint}") from error


def _refuse_link(uri: str, name: str) -> None:
    """Refuse a file of a local bundle that leads elsewhere: it may name any file of this machine.

    Raises:
        BundleError: it is a link.
    """
    if is_local(uri) and Path(split_uri(uri)[2], name).is_symlink():
        raise BundleError(
            f"{join(uri, name)} is a link, and a bundle holds its files itself: copy it with "
            "cp -L if you trust where the link leads"
        )


def read_digest(uri: str) -> str:
    """Return the digest of a stored bundle, without checking its files.

    Raises:
        BundleError: there is no complete bundle.
    """
    return hashlib.sha256(read_sums(uri)).hexdigest()


def parse_sums(sums: bytes, uri: str) -> dict[str, str]:
    """Return file name -> sha256.

    Raises:
        BundleError: a line that is none, or a file that no bundle holds, or one too few.
    """
    by_name = {}
    for number, line in enumerate(sums.decode("ascii", "replace").splitlines(), 1):
        match = _SUMS_LINE.fullmatch(line)
        if match is None:
            raise BundleError(
                f"{join(uri, SUMS)} has a line that is none of its own (line {number})"
            )
        sha256, name = match.groups()
        if name not in (*REQUIRED_FILES, CARD_PAGE) and not ATTACHMENT.fullmatch(name):
            raise BundleError(f"{join(uri, SUMS)} names {name!r}, which no bundle holds")
        by_name[name] = sha256
    absent = [name for name in REQUIRED_FILES if name not in by_name]
    if absent:
        raise BundleError(f"{join(uri, SUMS)} does not list {enumerate_names(absent)}")
    return by_name


def network_digest(sha256_by_name: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """Return the digest of all that decides the probabilities of an image.

    Two versions of one network digest differ in thresholds, temperature, metrics or papers alone.

    Args:
        sha256_by_name: what SHA256SUMS lists.
        facts: what `parse_facts` returned.
    """
    files = {name: sha256_by_name[name] for name in NETWORK_FILES if name in sha256_by_name}
    decisive = {name: facts[name] for name in _NETWORK_FACTS}
    if facts["arch_options"]:  # not in the digests of models that have none
        decisive["arch_options"] = facts["arch_options"]
    return _digest_of([files, decisive])


def calibration_digest(facts: Mapping[str, Any]) -> str:
    """Return the digest of temperature and thresholds, "" where there are none."""
    of_images, of_units = facts["calibration"], facts["unit_calibration"]
    if of_units is not None:
        return _digest_of([of_images, of_units])
    return "" if of_images is None else _digest_of(of_images)


def why_no_int8(names: Container[str], facts: Mapping[str, Any]) -> str:
    """Return why a bundle cannot be run in int8, "" if it can.

    Args:
        names: of its files.
        facts: `calibration` and `training` of it.
    """
    if INT8 not in names:
        return "has no int8 network"
    judged_by = facts["training"].get("int8", {}).get("calibration_digest")
    if judged_by != calibration_digest(facts):
        return "has an int8 network that was judged by other thresholds"
    return ""


def _digest_of(value: Any) -> str:  # noqa: ANN401 - whatever fits into JSON
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_file(uri: str, name: str, sha256: str) -> bytes:
    """Return a file of the folder `uri`.

    Raises:
        BundleError: it is missing, or its sha256 is another.
    """
    _refuse_link(uri, name)
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


def refuse_backbone(is_backbone: bool, reference: str, command: str) -> None:
    """Refuse a backbone where classes are wanted.

    Raises:
        ConfigError: it is one; says what makes a classifier of it.
    """
    if is_backbone:
        raise ConfigError(
            f"{reference} is a backbone: it gives no classes, so {command} has nothing to write; "
            "train a head on it first: imgcls train --head linear --weights "
            f"{reference} --data DATA --registry REGISTRY --name NAME"
        )


def parse_facts(data: bytes, uri: str) -> dict[str, Any]:
    """Return what bundle.json holds: every key, each of its type.

    Raises:
        BundleError: no JSON, a newer format, or keys that are unknown, missing or of another type.
    """
    facts = parse_object(data, uri, BundleError)
    version = facts.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{uri} has format_version {version}, this imgcls reads up to {FORMAT_VERSION}: "
            "upgrade imgcls"
        )
    facts = _ABSENT | facts
    if unknown := sorted(set(facts) - set(_FACT_TYPES)):
        raise BundleError(f"{uri} has unknown keys {enumerate_names(unknown)}")
    for key, kind in _FACT_TYPES.items():
        if key not in facts:
            raise BundleError(f"{uri} lacks the key {key!r}")
        if not isinstance(facts[key], kind):
            raise BundleError(f"{uri}: {key} is a {type(facts[key]).__name__}, expected {kind}")
    return facts


def check_tensors(
    found: dict[str, "Tensor"], expected: dict[str, "Tensor"], where: str, arch: str
) -> None:
    """Refuse tensors that an architecture does not have, or not of this shape.

    Raises:
        BundleError: names the first that does not fit.
    """
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
