import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from imgcls.errors import ConfigError
from imgcls.identity import hashed, pseudonyms, read_key, require_key

_KEY = bytes(range(16))


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMGCLS_IDENTITY_KEY", "IMGCLS_IDENTITY_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_hash_is_that_of_the_standard_over_issuer_and_trimmed_id() -> None:
    expected = hmac.new(_KEY, b"Ward\0P-17", hashlib.sha256).hexdigest()
    assert hashed(_KEY, " P-17 ", "Ward ") == expected
    assert hashed(_KEY, "P-17") != expected
    assert hashed(bytes(range(1, 17)), "P-17", "Ward") != expected


def test_the_key_comes_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert read_key() is None
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        require_key("a patient")
    (tmp_path / "key").write_bytes(_KEY)
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY_FILE", str(tmp_path / "key"))
    assert read_key() == _KEY
    for text in (_KEY.hex(), base64.b64encode(_KEY).decode()):
        monkeypatch.setenv("IMGCLS_IDENTITY_KEY", text)
        assert read_key() == _KEY


@pytest.mark.parametrize("text", ["00" * 32, _KEY[:15].hex(), "a secret word", "é"])
def test_a_key_that_could_be_guessed_is_refused_without_being_shown(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", text)
    with pytest.raises(ConfigError) as raised:
        read_key()
    assert text not in str(raised.value)


def test_groups_are_hashed_or_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pseudonyms(["b", "", "a", "b"]) == {"": "", "b": "number:1", "a": "number:2"}
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", _KEY.hex())
    assert pseudonyms(["b"]) == {"": "", "b": f"hmac:{hashed(_KEY, 'b')}"}
