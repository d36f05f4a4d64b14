"""DICOM reports: valid, the same again, and the only place that says who the patient is."""

import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from highdicom.sr import srread

from imgcls.config.scoring import NightlyConfig, ResultsConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.nightly import nightly
from imgcls.results.driver import results
from imgcls.runs.latest import read_latest, read_latest_units
from tests.data.dicoms import dicom_file
from tests.scoring.tiny import image_bytes

SECRETS = (
    "SECRET-7",
    "Doe",
    "ACC-99",
    "1.2.826.0.1.3680043.8.498.71",
    "1.2.826.0.1.3680043.8.498.72",
)
KEY = "00112233445566778899aabbccddeeff"


def _image(study: int, number: int) -> bytes:
    rng = np.random.default_rng(10 * study + number)
    return dicom_file(
        image_HW=rng.integers(0, 256, (40, 40), dtype=np.uint8),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1",
        SOPInstanceUID=f"1.2.826.0.1.3680043.8.498.7{study}.{number + 1}",
        StudyInstanceUID=f"1.2.826.0.1.3680043.8.498.7{study}",
        SeriesInstanceUID=f"1.2.826.0.1.3680043.8.498.7{study}.9",
        PatientID="SECRET-7",
        PatientName="Doe^Jane",
        AccessionNumber="ACC-99",
        Modality="DX",
        StudyDate="20261120",
    )


@pytest.fixture
def config(tmp_path: Path, model_ref: str, monkeypatch: pytest.MonkeyPatch) -> NightlyConfig:
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", KEY)
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.dcm").write_bytes(_image(1, 0))
    (source / "b.dcm").write_bytes(_image(2, 0))
    (source / "photo.png").write_bytes(image_bytes(1))
    with zipfile.ZipFile(source / "lot.zip", "w") as archive:
        for study in (1, 2):
            archive.writestr(f"c{study}.dcm", _image(study, 1))
    return NightlyConfig(
        str(source), model_ref, str(tmp_path / "out"),
        executor="local", num_decoders=1, unit="dicom:StudyInstanceUID",
    )  # fmt: skip


def test_a_report_per_study_is_valid_and_the_same_again(
    config: NightlyConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nightly(config)
    # Units by a header, of loose files and of members of an archive; its name is a hash.
    units = read_latest_units(config.output).to_pylist()
    assert sorted((len(row["unit"] or ""), row["num_images"]) for row in units) == [
        (0, 1), (64, 2), (64, 2),
    ]  # fmt: skip
    result = results(ResultsConfig(config.output, "dicom-sr"))
    assert (result["num_reports"], result["num_rows"], result["num_not_reported"]) == (2, 4, 0)
    assert result["num_units"] == 2
    files = {path.name: path.read_bytes() for path in Path(result["where"]).iterdir()}
    rows = {
        row["uri"] + (row["member"] or ""): row for row in read_latest(config.output).to_pylist()
    }
    for name in files:
        path = Path(result["where"]) / name
        assert path.stat().st_mode & 0o077 == 0, "for its owner alone"
        report = srread(path)
        assert (report.VerificationFlag, report.PatientID) == ("UNVERIFIED", "SECRET-7")
        assert report.SOPInstanceUID == path.stem
        of_study, *groups = report.content.get_image_measurement_groups()
        assert len(groups) == 2
        # First the one answer for the study, made of both of its images.
        assert of_study.tracking_identifier == "unit of 2 images"
        assert len(of_study.source_images) == 2
        [answer] = [m.value for m in of_study.get_measurements()]
        assert answer in [pytest.approx(u["confidence"], abs=1e-6) for u in units if u["unit"]]
        assert str(next(iter(rows.values()))["model_digest"]).encode() in path.read_bytes()
        found = sorted(m.value for g in groups for m in g.get_measurements())
        study = str(report.StudyInstanceUID)[-1]
        ours = [
            r
            for key, r in rows.items()
            if key.endswith(("a.dcm", "c1.dcm") if study == "1" else ("b.dcm", "c2.dcm"))
        ]
        assert found == pytest.approx(sorted(r["confidence"] for r in ours), abs=1e-6)
    # Again: the same files, byte for byte, and no more of them.
    results(ResultsConfig(config.output, "dicom-sr"))
    assert {path.name: path.read_bytes() for path in Path(result["where"]).iterdir()} == files
    printed = capfd.readouterr()
    for path in (p for p in Path(config.output).rglob("*") if p.is_file() and p.suffix != ".dcm"):
        for secret in SECRETS:
            assert secret.encode() not in path.read_bytes(), (path, secret)
    for secret in SECRETS:
        assert secret not in printed.out + printed.err
        assert all(secret not in name for name in files)
    # What was changed since is not reported as if it were what the model saw.
    (Path(config.source) / "a.dcm").write_bytes(_image(1, 5))
    again = results(ResultsConfig(config.output, "dicom-sr", into=str(tmp_path / "other")))
    assert (again["num_rows"], again["num_not_reported"]) == (3, 1)
    assert again["num_units"] == 1, "its study has no answer that all of its images gave"
    with pytest.raises(ConfigError, match="leave --unit away"):
        results(ResultsConfig(config.output, "dicom-sr", unit=True))


def test_reports_pass_dciodvfy(config: NightlyConfig) -> None:
    dciodvfy = shutil.which("dciodvfy")
    if dciodvfy is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    nightly(config)
    result = results(ResultsConfig(config.output, "dicom-sr"))
    paths = list(Path(result["where"]).iterdir())
    assert len(paths) == 2
    for path in paths:
        done = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
        told = done.stdout + done.stderr
        assert "ComprehensiveSR" in told
        assert "Error" not in told, told


def test_without_dicom_images_there_is_nothing_to_report(
    config: NightlyConfig, tmp_path: Path
) -> None:
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "photo.png").write_bytes(image_bytes(1))
    nightly(replace(config, source=str(tmp_path / "png"), unit=""))
    with pytest.raises(SourceError, match="no published row is of a DICOM image"):
        results(ResultsConfig(config.output, "dicom-sr"))


def test_another_secret_key_is_told_before_it_splits_studies(
    config: NightlyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nightly(replace(config, run_id="one"))
    (Path(config.source) / "d.dcm").write_bytes(_image(1, 2))
    nightly(replace(config, run_id="two"))
    assert "another secret key" not in caplog.text
    (Path(config.source) / "e.dcm").write_bytes(_image(1, 3))
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", KEY[::-1])
    nightly(replace(config, run_id="three"))
    assert (
        "2 earlier runs of this output have names of units that another secret key" in caplog.text
    )
