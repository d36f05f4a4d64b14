"""Nights over images on an SFTP server, and over a manifest of images on a web server."""

from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.nightly import nightly
from imgcls.storage.resolver import reset
from tests.scoring.nights import make_night
from tests.storage.stores.test_read_only import sftp_server, web_server


def test_a_night_over_an_sftp_server_scores_what_is_new_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_night = make_night(tmp_path, num_images=9)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reset()
    folder = Path(small_night.source)
    with sftp_server(folder, tmp_path / "home") as uri:
        night = replace(small_night, source=uri, output=str(tmp_path / "served"))
        first = nightly(night)
        local = nightly(small_night)
        assert first["status_counts"] == local["status_counts"]
        assert nightly(replace(night, run_id="second"))["rows"] == 0
        [some] = sorted(folder.rglob("*.jpg"))[:1] or sorted(folder.rglob("*"))[-1:]
        some.write_bytes(some.read_bytes() + b"\\0")
        third = nightly(replace(night, run_id="third"))
    reset()
    assert third["rows"] == third["difference"]["changed"] == 1


def test_a_manifest_names_images_of_a_web_server(tmp_path: Path) -> None:
    small_night = make_night(tmp_path, num_images=9)
    folder = Path(small_night.source)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    with web_server(folder) as uri:
        manifest = tmp_path / "images.csv"
        lines = [f"{uri}/{name}" for name in [*names, "gone.png"]]
        manifest.write_text("uri\n" + "\n".join(lines) + "\n")
        night = replace(small_night, source=str(manifest), output=str(tmp_path / "served"))
        result = nightly(night)
        assert nightly(replace(night, run_id="again"))["difference"]["unchanged"] == len(names)
    expected = nightly(small_night)["status_counts"] | {"missing": 1}
    assert {k: n for k, n in result["status_counts"].items() if n} == {
        k: n for k, n in expected.items() if n
    }
