"""`imgcls models`, `promote --previous`, and what an alias remembers."""

import getpass
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.cli import main
from imgcls.config.models import ModelsConfig, PromoteConfig
from imgcls.errors import ConfigError
from imgcls.model.bundle import Bundle
from imgcls.model.catalog import list_models
from imgcls.model.registry import promote, promote_version, register, resolve
from imgcls.storage import objects

MakeBundle = Callable[..., Bundle]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "registry")
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/registry"


def test_every_model_is_listed_with_its_numbers_and_its_origin(
    registry: str, make_bundle: MakeBundle
) -> None:
    register(registry, "chest", make_bundle(1))
    register(registry, "chest", make_bundle(2))
    register(registry, "bolts", make_bundle(3))
    objects.put(f"{registry}/_training/chest/run-1/run.json", b"{}")
    promote(f"{registry}/chest@v2", "production")
    bolts, chest = list_models(ModelsConfig(registry))["models"]
    assert (bolts["name"], chest["name"]) == ("bolts", "chest")
    assert [one["version"] for one in chest["versions"]] == [1, 2]
    second = chest["versions"][1]
    assert second["numbers"] == {
        "split": "test", "accuracy": {"value": 0.5, "interval": [0.25, 0.75]},
    }  # fmt: skip
    assert second["came_from"] == "trained by imgcls"
    assert second["digest"] == chest["aliases"]["production"]["digest"]
    assert chest["aliases"]["production"]["promoted_by"].startswith(f"{getpass.getuser()}@")


def test_damaged_version_is_listed_with_the_reason(make_bundle: MakeBundle, tmp_path: Path) -> None:
    version = register(str(tmp_path), "m", make_bundle())
    register(str(tmp_path), "m", make_bundle(1))
    Path(version.uri, "bundle.json").write_text("{}")
    [model] = list_models(ModelsConfig(str(tmp_path)))["models"]
    assert "was changed" in model["versions"][0]["error"]
    assert "error" not in model["versions"][1]


def test_empty_registry_and_unknown_name_are_said(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no models"):
        list_models(ModelsConfig(str(tmp_path)))
    register(str(tmp_path), "m", make_bundle())
    with pytest.raises(ConfigError, match="no model 'n'"):
        list_models(ModelsConfig(str(tmp_path), name="n"))


def test_previous_walks_back_and_the_history_keeps_every_step(
    registry: str, make_bundle: MakeBundle
) -> None:
    poor = {"answer": "not_better", "summary": "It is not better than guessing.", "lines": ["No."]}
    for seed in range(3):
        bundle = make_bundle(seed)
        register(registry, "m", replace(bundle, verdict=poor) if seed == 2 else bundle)
    promote(f"{registry}/m@v1", "production")
    promote(f"{registry}/m@v3", "production", force=True)
    promote(f"{registry}/m@v2", "production")
    back = promote_version(PromoteConfig(f"{registry}/m@production", previous=True))
    assert (back["model"], back["previous_version"], back["undone"]) == (
        f"{registry}/m@v3",
        2,
        True,
    )
    assert back["forced"]
    assert resolve(f"{registry}/m@production").endswith("/m/v3")
    promote_version(PromoteConfig(f"{registry}/m", previous=True))
    assert resolve(f"{registry}/m@production").endswith("/m/v1")
    with pytest.raises(ConfigError, match="no promotion before the one that counts"):
        promote_version(PromoteConfig(f"{registry}/m@production", previous=True))
    promote(f"{registry}/m@v2", "production")
    promote_version(PromoteConfig(f"{registry}/m@production", previous=True))
    assert resolve(f"{registry}/m@production").endswith("/m/v1")
    [model] = list_models(ModelsConfig(registry))["models"]
    alias = model["aliases"]["production"]
    steps = [(one["version"], one["forced"], one["undone"]) for one in alias["history"]]
    assert steps == [
        (1, False, False), (3, True, False), (2, False, False), (3, True, True), (1, False, True),
        (2, False, False),
    ]  # fmt: skip
    assert all(one["promoted_at"] and one["promoted_by"] for one in alias["history"])
    assert alias["history"][1]["reference"] == f"{registry}/m@v3"
    assert [one["from_version"] for one in alias["history"]] == [None, 1, 3, 2, 3, 1]


def test_alias_of_before_there_was_a_history_goes_back_too(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    registry = str(tmp_path)
    digests = [register(registry, "m", make_bundle(seed)).digest for seed in range(2)]
    old = {"version": 1, "digest": digests[0], "promoted_at": "2026-01-01T00:00:00+00:00"}
    objects.put(f"{registry}/m/aliases/production.json", json.dumps(old).encode())
    promote(f"{registry}/m@v2", "production")
    promote_version(PromoteConfig(f"{registry}/m@production", previous=True))
    assert resolve(f"{registry}/m@production").endswith("/m/v1")


def test_two_that_undo_at_a_time_take_one_promotion_back(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    registry = str(tmp_path)
    for seed in range(9):
        register(registry, "m", make_bundle(seed))
        promote(f"{registry}/m@v{seed + 1}", "production")
    config = PromoteConfig(f"{registry}/m@production", previous=True)

    def undo(_number: int) -> str:
        try:
            return str(promote_version(config)["version"])
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        ends = list(threads.map(undo, range(4)))
    done = [int(end) for end in ends if end.isdigit()]
    # Each that succeeded undid another promotion; none was counted twice, none jumped over one.
    assert sorted(done, reverse=True) == list(range(8, 8 - len(done), -1))
    assert all("decide again" in end for end in ends if not end.isdigit())
    assert resolve(f"{registry}/m@production").endswith(f"/m/v{min(done)}")


@pytest.mark.parametrize("bad", ["m@v1", "m@v2"])
def test_previous_of_a_version_is_refused_with_the_way_out(
    make_bundle: MakeBundle, tmp_path: Path, bad: str
) -> None:
    register(str(tmp_path), "m", make_bundle())
    with pytest.raises(ConfigError, match=r"goes back from an alias.*@production --previous"):
        promote_version(PromoteConfig(f"{tmp_path}/{bad}", previous=True))


def test_table_shows_what_the_json_says(
    make_bundle: MakeBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    register(str(tmp_path), "m", make_bundle())
    promote(f"{tmp_path}/m@v1", "production")
    assert main(["models", "--registry", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["models"][0]["name"] == "m"
    for shown in ("m@v1", "production", "0.500", "0.250 to 0.750", "simple_cnn"):
        assert shown in err.replace("\n", " ")
