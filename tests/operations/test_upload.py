from pathlib import Path

import pytest

from imgcls.errors import ConfigError
from imgcls.operations.upload import staged

STAYS = (
    ".git/config", ".venv/bin/python", "env/pyvenv.cfg", "env/lib/torch.py", "data/scan.csv",
    "jobs/__pycache__/x.pyc", ".env", "id.pem", "scan.dcm", "models/v1/model.safetensors",
    "cache/CACHEDIR.TAG", "cache/x.py", "imgcls.egg-info/PKG-INFO", "run.log", "rows.parquet",
)  # fmt: skip
GOES = ("jobs/__init__.py", "jobs/train.py", "labels.csv", ".rayignore", "imgcls/model/card.py")


def names(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_only_the_installed_packages_go_without_a_folder() -> None:
    with staged("") as upload:
        found = names(upload.folder)
        assert {"imgcls/cli.py", "jobs/nightly.py"} <= found
        assert {name.split("/")[0] for name in found} == {"imgcls", "jobs"}
        assert not any("__pycache__" in name for name in found)
        assert upload.num_files == len(found)
        sizes = [(Path(upload.folder) / name).stat().st_size for name in found]
        assert upload.size_bytes == sum(sizes)
    assert not Path(upload.folder).exists()


def test_data_secrets_caches_environments_and_history_stay_here(tmp_path: Path) -> None:
    for name in (*STAYS, *GOES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-images"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("x")
    (tmp_path / "images").symlink_to(elsewhere)
    with staged(str(tmp_path)) as upload:
        assert names(upload.folder) == set(GOES)
        assert upload.num_left_out >= 12


def test_what_ray_would_not_take_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    (tmp_path / "big.csv").write_text("x" * 2_000_000)
    with pytest.raises(ConfigError, match=r"2\.0 MB in 2 files.*at most 1\.0 MB.*big\.csv 2\.0 MB"):  # noqa: SIM117 - one statement raises
        with staged(str(tmp_path), max_bytes=1_000_000):
            pass


def test_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="package jobs"):  # noqa: SIM117 - one statement raises
        with staged(str(tmp_path)):
            pass
