import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgcls.errors import BundleError, ConfigError
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.registry import list_versions, promote, register, resolve
from imgcls.storage import objects
from imgcls.storage.uri import join

MakeBundle = Callable[..., Bundle]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "registry")
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/registry"


def test_versions_count_up_and_resolve(registry: str, make_bundle: MakeBundle) -> None:
    first = register(registry, "scratches", make_bundle(1))
    second = register(registry, "scratches", make_bundle(2))
    assert (first.version, second.version) == (1, 2)
    assert list_versions(registry, "scratches") == [first, second]
    assert resolve(f"{registry}/scratches@v1") == first.uri
    assert resolve(second.uri) == second.uri
    assert read_bundle(second.uri).digest == second.digest


def test_simultaneous_registrations_get_a_version_each(
    registry: str, make_bundle: MakeBundle
) -> None:
    bundles = [make_bundle(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        versions = list(threads.map(lambda b: register(registry, "m", b), bundles))
    assert sorted(v.version for v in versions) == list(range(1, 7))
    for bundle, version in zip(bundles, versions, strict=True):
        stored = read_bundle(version.uri)
        assert stored.digest == version.digest
        assert stored.training["seed"] == bundle.training["seed"]


def _register_in_child(registry: str, bundles: list[Bundle], barrier: Any) -> None:
    barrier.wait()
    for bundle in bundles:
        register(registry, "m", bundle)


def test_registrations_of_two_processes_get_a_version_each(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    registry, spawn = str(tmp_path), multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    child = spawn.Process(
        target=_register_in_child, args=(registry, [make_bundle(s) for s in (0, 1)], barrier)
    )
    child.start()
    barrier.wait()
    own = [register(registry, "m", make_bundle(seed)).version for seed in (2, 3)]
    child.join(60)
    assert child.exitcode == 0
    assert len(set(own)) == 2
    versions = list_versions(registry, "m")
    assert [v.version for v in versions] == [1, 2, 3, 4]
    assert {read_bundle(v.uri).training["seed"] for v in versions} == {0, 1, 2, 3}


def _register_and_die(registry: str, bundle: Bundle) -> None:
    put_new = objects.put_new

    def put_then_die(uri: str, data: bytes) -> str:
        etag = put_new(uri, data)
        if uri.endswith("model.safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        return etag

    objects.put_new = put_then_die
    register(registry, "m", bundle)


def test_killed_registration_is_a_gap_that_blocks_nobody(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    registry = str(tmp_path)
    child = multiprocessing.get_context("spawn").Process(
        target=_register_and_die, args=(registry, make_bundle(1))
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "m" / "v1" / "model.safetensors").exists()
    assert list_versions(registry, "m") == []
    with pytest.raises(ConfigError, match="no complete version v1"):
        resolve(f"{registry}/m@v1")
    with pytest.raises(ConfigError, match="no complete version v1"):
        promote(f"{registry}/m@v1", "production")
    assert register(registry, "m", make_bundle(2)).version == 2
    assert [v.version for v in list_versions(registry, "m")] == [2]


def test_alias_moves_and_tells_what_it_was(registry: str, make_bundle: MakeBundle) -> None:
    first, second = (register(registry, "m", make_bundle(seed)) for seed in (1, 2))
    assert promote(f"{registry}/m@v1", "production")["previous_version"] is None
    assert resolve(f"{registry}/m@production") == first.uri
    moved = promote(f"{registry}/m@v2", "production")
    assert (moved["previous_version"], moved["version"], moved["digest"]) == (1, 2, second.digest)
    assert resolve(f"{registry}/m@production") == second.uri
    promote(f"{registry}/m@production", "staging")
    assert resolve(f"{registry}/m@staging") == second.uri


def test_racing_promotions_all_apply_one_after_the_other(
    registry: str, make_bundle: MakeBundle
) -> None:
    versions = [register(registry, "m", make_bundle(seed)).version for seed in (1, 2)]
    refs = [f"{registry}/m@v{versions[i % 2]}" for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda ref: promote(ref, "production"), refs))
    # Each promotion saw a predecessor, or nothing for exactly one of them: none was lost.
    before = [r["previous_version"] for r in results]
    assert before.count(None) == 1
    final = int(resolve(f"{registry}/m@production").rpartition("/v")[2])
    assert sorted(v for v in [*before, final] if v) == sorted(r["version"] for r in results)


def test_a_model_that_is_not_better_than_guessing_is_promoted_by_force_only(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = str(tmp_path)
    summary = "Verdict: NOT BETTER THAN GUESSING, as far as 42 test images can tell."
    verdicts = (
        None,
        {"answer": "not_better", "summary": summary, "lines": [summary, "more"]},
        {"answer": "better", "summary": "Verdict: better than guessing.", "lines": ["v"]},
    )
    for verdict in verdicts:
        register(registry, "m", replace(make_bundle(), verdict=verdict))
    with caplog.at_level("INFO"):
        assert promote(f"{registry}/m@v1", "production")["verdict"] == "none"
    assert "has no verdict" in caplog.text
    with pytest.raises(ConfigError, match=r"v2 is not promoted\. Verdict: NOT BETTER.*--force"):
        promote(f"{registry}/m@v2", "production")
    assert resolve(f"{registry}/m@production").endswith("v1")
    forced = promote(f"{registry}/m@v2", "production", force=True)
    assert (forced["verdict"], forced["forced"]) == ("not_better", True)
    better = promote(f"{registry}/m@v3", "production", force=True)
    assert (better["verdict"], better["forced"]) == ("better", False)
    assert f"**{summary}**" in (tmp_path / "m/v2/MODEL_CARD.md").read_text()


def test_what_does_not_exist_is_told_with_what_does(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    registry = str(tmp_path)
    register(registry, "m", make_bundle())
    promote(f"{registry}/m@v1", "production")
    with pytest.raises(ConfigError, match=r"no complete version v7.*v1.*production"):
        resolve(f"{registry}/m@v7")
    with pytest.raises(ConfigError, match=r"no alias 'prod'.*v1.*production"):
        resolve(f"{registry}/m@prod")
    with pytest.raises(ConfigError, match="no model 'x'"):
        resolve(f"{registry}/x@v1")
    with pytest.raises(ConfigError, match=r"write .*/m@v1"):
        resolve(f"{registry}/m")
    with pytest.raises(BundleError, match="nothing is there"):
        resolve(f"{registry}/elsewhere")


@pytest.mark.parametrize("alias", ["v3", "a/b", "", "a@b"])
def test_unusable_alias_is_refused(make_bundle: MakeBundle, tmp_path: Path, alias: str) -> None:
    version = register(str(tmp_path), "m", make_bundle())
    with pytest.raises(ConfigError, match="alias"):
        promote(f"{tmp_path}/m@v1", alias)
    assert not (Path(version.uri).parent / "aliases").exists()


def test_unusable_names_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a/b", "a@b", "", "../x"):
        with pytest.raises(ConfigError, match="model name"):
            register(str(tmp_path), name, make_bundle())
    with pytest.raises(ConfigError, match="names no version"):
        promote(str(tmp_path), "production")
    assert list(tmp_path.iterdir()) == []


def test_alias_of_a_replaced_bundle_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    version = register(str(tmp_path), "m", make_bundle())
    promote(f"{tmp_path}/m@v1", "production")
    sums = join(version.uri, "SHA256SUMS")
    objects.put(sums, objects.read(sums).replace(b"a", b"b"))
    with pytest.raises(BundleError, match="replaced"):
        resolve(f"{tmp_path}/m@production")


def test_damaged_alias_is_refused_by_name(make_bundle: MakeBundle, tmp_path: Path) -> None:
    register(str(tmp_path), "m", make_bundle())
    objects.put(f"{tmp_path}/m/aliases/production.json", json.dumps([1]).encode())
    with pytest.raises(BundleError, match=r"production\.json is not an alias"):
        resolve(f"{tmp_path}/m@production")
