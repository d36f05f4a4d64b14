"""Who a patient is, never said: ids leave this process as keyed hashes, or as numbers.

In: an id as a DICOM header or a manifest has it; a secret key from the environment. Out: a hash
(HMAC-SHA256, RFC 2104) that is the same for the same id under the same key, and tells nobody
without it which id that was. Invariant: no raw id is written, logged or put into a flag.

A hash without a key would tell: all ids that a hospital can have are tried in seconds.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from imgcls.errors import ConfigError

KEY_VARIABLE: Final = "IMGCLS_IDENTITY_KEY"
FILE_VARIABLE: Final = "IMGCLS_IDENTITY_KEY_FILE"
MIN_KEY_BYTES: Final = 16
# Fewer different bytes than random ones have, but once in a million keys.
_MIN_DIFFERENT: Final = 8
HASHED: Final = "hmac:"
NUMBERED: Final = "number:"
# Of DICOM: what tells a patient, and the name of the column of its hash.
IDENTITIES: Final = {
    "PatientID": "patient_id_hash",
    "StudyInstanceUID": "study_instance_uid_hash",
    "SeriesInstanceUID": "series_instance_uid_hash",
    "SOPInstanceUID": "sop_instance_uid_hash",
}
ISSUER: Final = "IssuerOfPatientID"
# What says nothing of a patient; every other element stays where it is.
PLAIN: Final = (
    *("Modality", "Manufacturer", "ManufacturerModelName", "ViewPosition", "BodyPartExamined"),
    *("PhotometricInterpretation", "TransferSyntaxUID"),
)


def read_key() -> bytes | None:
    """Return the secret key, None where there is none.

    Raises:
        ConfigError: it is too short, is not random, or its file cannot be read. Says nothing of it.
    """
    text, path = os.environ.get(KEY_VARIABLE, ""), os.environ.get(FILE_VARIABLE, "")
    if text:
        return _checked(_decoded(text.strip()), KEY_VARIABLE)
    if not path:
        return None
    try:
        return _checked(Path(path).read_bytes().strip(), FILE_VARIABLE)
    except OSError as error:
        raise ConfigError(f"{FILE_VARIABLE} {path}: {error.strerror or error}") from None


def require_key(what: str) -> bytes:
    """Return the secret key.

    Args:
        what: What it is for.

    Raises:
        ConfigError: there is none, with how to make one; or as for `read_key`.
    """
    key = read_key()
    if key is None:
        raise ConfigError(
            f"{what} is written as a hash only, which needs a secret key: put one in "
            f"{KEY_VARIABLE} "
            f"(openssl rand -hex 32), or the name of its file in {FILE_VARIABLE}. The same key "
            "gives the same hashes; who has it can tell the patients"
        )
    return key


def hashed(key: bytes, identity: str, issuer: str = "") -> str:
    """Return the hash of an id, in hex, over who issued it and the id without blanks around it."""
    message = f"{issuer.strip()}\0{identity.strip()}".encode("utf-8", "surrogatepass")
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def mark_of(key: bytes) -> str:
    """Return what tells this key from another one, and nothing else of it."""
    return hashed(key, "which key this is", "imgcls")[:16]


def pseudonyms(names: Iterable[str]) -> dict[str, str]:
    """Return what to write for each name of a group: its hash, or without a key a number.

    The numbers are those of the order in which names come first, so that they tell nothing.

    Raises:
        ConfigError: as for `read_key`.
    """
    key = read_key()
    distinct = list(dict.fromkeys(filter(None, names)))
    if key is None:
        return {"": ""} | {name: f"{NUMBERED}{n}" for n, name in enumerate(distinct, 1)}
    return {"": ""} | {name: f"{HASHED}{hashed(key, name)}" for name in distinct}


def _decoded(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ConfigError(f"{KEY_VARIABLE} is neither hex nor base64") from None


def _checked(key: bytes, variable: str) -> bytes:
    if len(key) < MIN_KEY_BYTES or len(set(key)) < _MIN_DIFFERENT:
        raise ConfigError(
            f"{variable}: a key is at least {MIN_KEY_BYTES} random bytes, such as those of "
            "openssl rand -hex 32"
        )
    return key
