"""Nights over images and folders that are refused, and over a store that refuses everything."""

from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, PlanConfig, ScoreConfig
from imgcls.errors import AccessDeniedError
from imgcls.nightly import nightly
from imgcls.runs.published import list_published
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from imgcls.storage.objects import put
from imgcls.storage.requests import retry
from imgcls.storage.uri import join
from tests.kit.fault_proxy import Fault, FaultProxy
from tests.kit.modes import let_nobody_in, not_root, run_obeying_modes
from tests.scoring.nights import make_night
from tests.scoring.tiny import image_bytes, published_rows, write_images


@pytest.fixture
def quick_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "POLICY", retry.RetryPolicy(access_denied_s=2.0, max_delay_s=0.2))


def test_one_refused_key_costs_its_image_and_comes_back_once_it_is_given(
    fault_proxy: FaultProxy, s3_bucket: str, model_ref: str, quick_policy: None
) -> None:
    write_images(join(s3_bucket, "in"), 40)
    night = NightlyConfig(
        join(s3_bucket, "in"), model_ref, join(s3_bucket, "out"), executor="local", num_decoders=1
    )
    fault_proxy.refused_keys = ("00007.png",)
    assert nightly(night)["status_counts"] == {"ok": 39, "unreadable": 1}
    [row] = [row for row in published_rows(night.output).to_pylist() if row["status"] != "ok"]
    assert "AccessDenied" in row["error"]
    assert row["format"] is None
    # It is all that is left to do, and refused again: neither an error nor lost for good.
    again = nightly(night)
    assert again["status_counts"] == {"unreadable": 1}
    assert again["difference"]["failed_before"] == 1
    put(join(night.source, "new.png"), image_bytes(99))
    assert nightly(night)["status_counts"] == {"ok": 1, "unreadable": 1}
    fault_proxy.refused_keys = ()
    assert nightly(night)["status_counts"] == {"ok": 1}
    assert nightly(night)["rows"] == 0


@pytest.mark.parametrize("fault", [Fault.DENY, Fault.REFUSE])
def test_a_store_that_refuses_every_image_ends_the_night_without_a_row(
    fault: Fault,
    fault_proxy: FaultProxy,
    s3_bucket: str,
    model_ref: str,
    quick_policy: None,
    tmp_path: Path,
) -> None:
    write_images(join(s3_bucket, "in"), 40)
    night = NightlyConfig(
        join(s3_bucket, "in"), model_ref, str(tmp_path / "out"), executor="local", num_decoders=1
    )
    fault_proxy.refused_keys = (".png",)
    fault_proxy.refusal = fault
    with pytest.raises(AccessDeniedError):
        nightly(night)
    assert list(list_published(night.output)) == []
    assert not list(Path(night.output).glob("_runs/*/commits/*"))


@pytest.fixture
def night(tmp_path: Path) -> NightlyConfig:
    """A night over 9 images in 7 folders, whose output anybody may write."""
    night = make_night(let_nobody_in(tmp_path), num_images=9)
    (tmp_path / "runs").mkdir()
    for path in tmp_path.rglob("*"):
        path.chmod(0o777)
    return NightlyConfig(**{**vars(night), "output": str(tmp_path / "runs" / "out")})


def flags(night: NightlyConfig) -> list[str]:
    return [
        *("nightly", "--source", night.source, "--model", night.model, "--output", night.output),
        *("--executor", "local", "--num-decoders", "1", "--device", "cpu"),
    ]


def test_a_folder_that_may_not_be_listed_costs_its_images_alone_and_is_named(
    night: NightlyConfig,
) -> None:
    closed = Path(night.source) / "lot-0"
    named = {f"{closed}/": "the folder may not be listed: Permission denied"}
    closed.chmod(0)
    with not_root():
        planned = show_plan(PlanConfig(night.source, night.model, night.output))
    assert (planned["to_score"], planned["skipped"], planned["not_listed"]) == (7, 1, named)
    exit_code, first, shown = run_obeying_modes(*flags(night))
    assert (exit_code, first["rows_ok"], first["skipped"]) == (0, 7, 1)
    assert (first["num_not_listed"], first["not_listed"]) == (1, named)
    assert f"left out {closed}/" in shown
    assert "their images are not scored" in shown
    [(_, manifest)] = list_published(night.output)
    assert (manifest.num_not_listed, manifest.not_listed) == (1, named)
    exit_code, second, shown = run_obeying_modes(*flags(night))
    assert (exit_code, second["rows"], second["not_listed"]) == (0, 0, named)
    assert f"left out {closed}/" in shown
    closed.chmod(0o755)
    third = nightly(night)
    assert (third["rows_ok"], third["difference"]["unchanged"], third["not_listed"]) == (2, 7, {})


@pytest.mark.parametrize("whole", [True, False])
def test_a_source_of_which_nothing_may_be_listed_ends_the_night(
    whole: bool, night: NightlyConfig
) -> None:
    folders = [Path(night.source)] if whole else list(Path(night.source).iterdir())
    for folder in folders:
        folder.chmod(0)
    with not_root():
        with pytest.raises(AccessDeniedError, match="list"):
            nightly(night)
        with pytest.raises(AccessDeniedError, match="list"):
            score(ScoreConfig(night.source, night.model, night.output, executor="local"))
        with pytest.raises(AccessDeniedError, match="list"):
            show_plan(PlanConfig(night.source, night.model, night.output))
    for folder in folders:
        folder.chmod(0o755)
    assert list(list_published(night.output)) == []


def test_a_manifest_with_images_that_may_not_be_looked_at_is_scored(night: NightlyConfig) -> None:
    uris = sorted(str(path) for path in Path(night.source).rglob("*.png"))
    manifest = Path(night.source).parent / "list.csv"
    manifest.write_text("\n".join(["uri", *uris, f"{night.source}/{'x' * 300}.png"]))
    (Path(night.source) / "lot-0").chmod(0)
    of_manifest = NightlyConfig(**{**vars(night), "source": str(manifest)})
    _, result, _ = run_obeying_modes(*flags(of_manifest))
    assert result["status_counts"] == {"missing": 1, "ok": 7, "unreadable": 2}
    (Path(night.source) / "lot-0").chmod(0o755)
    assert nightly(of_manifest)["status_counts"] == {"ok": 2}


def test_one_key_of_a_manifest_that_is_refused_costs_its_image(
    fault_proxy: FaultProxy, s3_bucket: str, model_ref: str, quick_policy: None, tmp_path: Path
) -> None:
    uris = write_images(join(s3_bucket, "in"), 12)
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["uri", *uris]))
    night = NightlyConfig(
        str(manifest), model_ref, str(tmp_path / "out"), executor="local", num_decoders=1
    )
    fault_proxy.refused_keys = ("00007.png",)
    assert nightly(night)["status_counts"] == {"ok": 11, "unreadable": 1}
    fault_proxy.refused_keys = (".png",)
    with pytest.raises(AccessDeniedError):
        nightly(NightlyConfig(**{**vars(night), "output": str(tmp_path / "other")}))
