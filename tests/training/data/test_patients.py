"""No string of a patient is written: not in a file, a log, a result or the list of processes."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from imgcls.identity import IDENTITIES, hashed
from imgcls.training.driver import train
from imgcls.training.planning.make_plan import make_plan
from tests.data.dicoms import dicom_file
from tests.sources.archives import parquet_bytes, zip_bytes
from tests.training.bars import bars_config
from tests.training.conftest import SIDE_PX, draw

_NUM_PATIENTS = 12
_KEY, _OTHER_KEY = bytes(range(32)).hex(), bytes(range(32, 64)).hex()
# Each of them would be found as it is, whatever is around it.
_SECRETS = ("ZQPAT", "Xanthippe", "20260231-SECRET", "1.2.826.77777")
_QUICK = (
    *("--arch", "simple_cnn", "--epochs", "1", "--image-px", str(SIDE_PX), "--batch-size", "8"),
    *("--num-decoders", "1", "--val-fraction", "0.2", "--test-fraction", "0.2", "--device", "cpu"),
)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Four pictures of each of twelve patients, two of each class; one picture is damaged."""
    rng = np.random.default_rng(0)
    root = tmp_path / "scans"
    for patient in range(_NUM_PATIENTS):
        for number in range(4):
            label = number % 2
            path = root / f"class{label}" / f"{patient:02}-{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            large = np.kron(draw(label, rng), np.ones((8, 8), np.uint8))
            data = dicom_file(
                image_HW=large,
                # Padded in some of its files, as in many archives.
                PatientID=f"ZQPAT{patient:03}" + " " * (number % 3),
                PatientName="Xanthippe^Doe",
                AccessionNumber="20260231-SECRET",
                IssuerOfPatientID="Ward",
                StudyInstanceUID=f"1.2.826.77777.{patient}",
                SeriesInstanceUID=f"1.2.826.77777.{patient}.1",
                SOPInstanceUID=f"1.2.826.77777.{patient}.1.{number}",
                Modality="DX",
            )
            path.write_bytes(data)
    (root / "class0" / "cut.dcm").write_bytes(data[: len(data) // 2])
    return root


class _Commands:
    """Runs commands, and keeps all that they say and how they are called."""

    def __init__(self, key: str) -> None:
        self.said = list[str]()
        self._environment = {**os.environ, "IMGCLS_IDENTITY_KEY": key}

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "imgcls.cli", *arguments]
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self._environment,
        )  # fmt: skip
        watcher = threading.Thread(target=self._watch, args=[process])
        watcher.start()
        out, err = process.communicate(timeout=400)
        watcher.join()
        self.said += [out, err]
        return process.returncode, json.loads(out.splitlines()[-1])

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.said.append(path.read_bytes().decode(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.2)


def _refuse_secrets(folder: Path, scans: Path, said: list[str], but: Sequence[Path] = ()) -> None:
    inputs = (scans, *but)
    files = [p for p in folder.rglob("*") if p.is_file()]
    files = [p for p in files if not any(map(p.is_relative_to, inputs))]
    assert len(files) > 20
    for secret in _SECRETS:
        for path in files:
            data = path.read_bytes()
            assert secret.encode() not in data, f"{secret} in {path}"
            if path.suffix == ".parquet":
                assert secret not in str(pq.read_table(path).to_pydict()), f"{secret} in {path}"
        assert not [text for text in said if secret in text], f"{secret} in what was said"


def _train(commands: _Commands, data: Path, *more: str) -> tuple[int, dict[str, Any]]:
    registry = ("--registry", str(data.parent / "registry"), "--name", "chest")
    return commands.run("train", "--data", str(data), *registry, *_QUICK, *more)


def _sides(result: dict[str, Any]) -> dict[str, str]:
    with (Path(result["run"]) / "split.csv").open(newline="") as file:
        return {row["split_key"]: row["split"] for row in csv.DictReader(file)}


@pytest.mark.timeout(600)
def test_a_dicom_night_tells_nobody_who_the_patients_are(scans: Path, tmp_path: Path) -> None:
    commands = _Commands(_KEY)
    by_patient = ("--group", "dicom:PatientID", "--max-bad-fraction", "0.5")
    # Splits that share patients: refused with a list, then taken all the same.
    images = sorted(scans.glob("*/*.dcm"))
    lines = [
        f"{p},{p.parent.name},{'val' if n % 3 == 0 else 'train'}" for n, p in enumerate(images)
    ]
    (tmp_path / "leaky.csv").write_text("\n".join(["uri,label,split", *lines]))
    code, refused = _train(commands, tmp_path / "leaky.csv", *by_patient)
    assert code == 2
    assert "hmac:" in refused["message"]
    code, trained = _train(commands, tmp_path / "leaky.csv", *by_patient, "--allow-leaks")
    assert code == 0, trained
    assert "group,hmac:" in (Path(trained["run"]) / "leaks.csv").read_text()
    assert set(_sides(trained).values()) == {"train", "val"}
    carried = [f"dicom:{name}" for name in (*IDENTITIES, "Modality")]
    code, night = commands.run(
        *("nightly", "--source", str(scans), "--model", trained["model"]),
        *("--output", str(tmp_path / "out"), "--num-decoders", "1", "--device", "cpu"),
        *(word for name in carried for word in ("--carry", name)),
    )
    assert code == 0, night
    rows = {row["uri"]: row for part in night["parts"] for row in pq.read_table(part).to_pylist()}
    assert len(rows) == 4 * _NUM_PATIENTS + 1
    row = rows[str(scans / "class1" / "03-1.dcm")]
    key = bytes.fromhex(_KEY)
    assert row["patient_id_hash"] == hashed(key, "ZQPAT003", "Ward")
    assert row["study_instance_uid_hash"] == hashed(key, "1.2.826.77777.3")
    assert row["sop_instance_uid_hash"] == hashed(key, "1.2.826.77777.3.1.1")
    assert row["modality"] == "DX"
    # Blanks around an id are not another patient.
    assert len({row["patient_id_hash"] for row in rows.values()} - {None}) == _NUM_PATIENTS
    _refuse_secrets(tmp_path, scans, commands.said)
    assert not [text for text in commands.said if _KEY in text]


@pytest.mark.timeout(600)
def test_a_zip_from_a_pacs_tells_nobody_who_the_patients_are(scans: Path, tmp_path: Path) -> None:
    """Ids are read inside of zips, also in zips in them, and of a Parquet file."""
    commands, folder = _Commands(_KEY), tmp_path
    files = {p.relative_to(scans).as_posix(): p.read_bytes() for p in scans.glob("*/*.dcm")}
    study = folder / "study.zip"
    study.write_bytes(zip_bytes({"export.zip": zip_bytes(files)}))
    more = folder / "more.parquet"
    more.write_bytes(parquet_bytes(files))
    by_patient = ("--group", "dicom:PatientID", "--max-bad-fraction", "0.5")
    code, trained = _train(commands, study, *by_patient)
    assert code == 0, trained
    with (Path(trained["run"]) / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = {row["group"] for row in rows} - {""}
    assert len(groups) == _NUM_PATIENTS
    assert all(group.startswith("hmac:") for group in groups)
    sides = {(row["group"], row["split"]) for row in rows if row["group"]}
    assert len(sides) == _NUM_PATIENTS
    code, night = commands.run(
        *("nightly", "--source", str(study), "--also", str(more)),
        *("--model", trained["model"], "--output", str(tmp_path / "out")),
        *("--num-decoders", "1", "--device", "cpu", "--max-failed-fraction", "0.5"),
        *("--carry", "dicom:PatientID", "--carry", "dicom:Modality"),
    )
    assert code == 0, night
    found = [row for part in night["parts"] for row in pq.read_table(part).to_pylist()]
    assert len(found) == 2 * len(files)
    key = bytes.fromhex(_KEY)
    for row in found:
        if not row["member"].endswith("cut.dcm"):
            patient = row["member"].rpartition("/")[2][:2]
            assert row["patient_id_hash"] == hashed(key, f"ZQPAT0{patient}", "Ward")
            assert row["modality"] == "DX"
    _refuse_secrets(tmp_path, tmp_path / "scans", commands.said, but=(study, more))


def test_another_key_moves_nobody(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = bars_config(scans, epochs=1, group="dicom:PatientID", max_bad_fraction=0.5)
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", _KEY)
    first = train(config)
    assert (Path(first["run"]) / "split.csv").read_text().count("hmac:") == 4 * _NUM_PATIENTS + 1
    before = _sides(first)
    for name in ("00-0.dcm", "05-2.dcm"):
        (scans / "class0" / f"new-{name}").write_bytes((scans / "class0" / name).read_bytes())
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", _OTHER_KEY)
    after = {sample.key: sample.split for sample in make_plan(config).samples}
    assert {key: after[key] for key in before} == before
    assert after["class0/new-00-0.dcm"] == before["class0/00-0.dcm"]
    assert after["class0/new-05-2.dcm"] == before["class0/05-2.dcm"]
    # Where the first images of a patient are gone, the hash under the same key tells the side.
    for path in scans.glob("*/05-*.dcm"):
        path.unlink()
    monkeypatch.setenv("IMGCLS_IDENTITY_KEY", _KEY)
    after = {sample.key: sample.split for sample in make_plan(config).samples}
    assert after["class0/new-05-2.dcm"] == before["class0/05-2.dcm"]
    # Without any key groups are numbered, and the split is the same again.
    monkeypatch.delenv("IMGCLS_IDENTITY_KEY")
    again = train(dataclasses.replace(config, name="other"))
    text = (Path(again["run"]) / "split.csv").read_text()
    assert "number:1," in text
    assert "hmac:" not in text
