"""JSON of a store is parsed within limits, by everybody."""

import json
import re
from pathlib import Path

import pytest

from imgcls.errors import BundleError, ConfigError, SourceError
from imgcls.model.bundle import read_bundle, write_bundle
from imgcls.model.registry import promote, register, resolve
from imgcls.runs.commits import read_commits
from imgcls.runs.plan import read_plan
from imgcls.runs.published import read_manifest
from imgcls.runs.run import Run
from imgcls.scoring.publishing.lease import LeaseRecord
from imgcls.storage.json_text import MAX_DEPTH, parse_json, parse_object
from tests.scoring.tiny import make_bundle

PACKAGE = Path(__file__).parents[2] / "imgcls"
# Pipes between our own processes, what was written a moment ago, and the parser itself.
OWN = {
    "image/decoders/child.py",
    "image/decoders/protocol.py",
    "model/bundle.py",
    "storage/json_text.py",
    "storage/stores/gcs_account.py",
    "training/record/finished.py",
}
DEEP = [
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" * 500 + "]" * 500,
    '{"x": ' + "[" * 70 + "]" * 70 + "}",
]


@pytest.mark.parametrize("text", [*DEEP, "", "{", "nul", "\xff", '{"a": 1', "9" * 10_000])
def test_what_is_not_json_or_too_deep_is_the_error_of_the_caller(text: str) -> None:
    with pytest.raises(SourceError, match=r"^x/y\.json ") as caught:
        parse_object(text.encode("latin-1"), "x/y.json", SourceError)
    assert len(str(caught.value)) < 200


def test_usual_depths_pass() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text, "x", SourceError)) == text


def test_nobody_else_parses_json_of_a_store() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"json\.loads?\(", path.read_text())
    }
    assert found == OWN


@pytest.mark.parametrize("text", [*DEEP, "{", "[]", "{}", '{"format_version": 1}', "null"])
def test_hostile_records_are_refused_in_words(text: str, tmp_path: Path) -> None:
    run = tmp_path / "out" / "_runs" / "r"
    published = tmp_path / "out" / "date=2026-01-01" / "run=r"
    for path in (run / "plan.json", run / "commits" / "00000.json", published / "_manifest.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.raises(ConfigError):
        read_plan(Run(str(tmp_path / "out"), "r"))
    with pytest.raises(SourceError):
        list(read_commits(Run(str(tmp_path / "out"), "r")))
    with pytest.raises(SourceError):
        read_manifest(str(published))
    with pytest.raises(ConfigError):
        LeaseRecord.from_json(text.encode())


@pytest.mark.parametrize("text", [*DEEP, "{}", '{"version": [], "digest": 1}'])
def test_hostile_aliases_are_refused_in_words(text: str, tmp_path: Path) -> None:
    register(str(tmp_path), "m", make_bundle())
    promote(f"{tmp_path}/m@v1", "production")
    (tmp_path / "m" / "aliases" / "production.json").write_text(text)
    with pytest.raises(BundleError, match=r"production\.json"):
        resolve(f"{tmp_path}/m@production")


@pytest.mark.parametrize("text", DEEP)
def test_a_deeply_nested_bundle_is_refused(text: str, tmp_path: Path) -> None:
    import hashlib

    write_bundle(make_bundle(), str(tmp_path / "b"))
    facts, sums = tmp_path / "b" / "bundle.json", tmp_path / "b" / "SHA256SUMS"
    before = hashlib.sha256(facts.read_bytes()).hexdigest()
    facts.write_text(text)
    now = hashlib.sha256(text.encode()).hexdigest()
    sums.write_text(sums.read_text().replace(before, now))
    with pytest.raises(BundleError, match=r"nested more than|is not JSON"):
        read_bundle(str(tmp_path / "b"))


@pytest.mark.parametrize(
    "name", ["SHA256SUMS", "bundle.json", "model.safetensors", "MODEL_CARD.md"]
)
def test_links_inside_a_bundle_are_refused_and_never_shown(name: str, tmp_path: Path) -> None:
    write_bundle(make_bundle(), str(tmp_path / "b"))
    (tmp_path / "secret").write_text("root:hush\n")
    (tmp_path / "b" / name).unlink()
    (tmp_path / "b" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=f"{name} is a link") as caught:
        read_bundle(str(tmp_path / "b"))
    assert "hush" not in str(caught.value)


def test_a_bundle_may_be_reached_through_a_link(tmp_path: Path) -> None:
    write_bundle(make_bundle(), str(tmp_path / "b"))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert read_bundle(str(tmp_path / "link")).arch == "simple_cnn"
