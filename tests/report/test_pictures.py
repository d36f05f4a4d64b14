"""What a page shows of real pictures, and what of a patient it never does: scored, not made up."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.config.scoring import ReportConfig, ScoreConfig
from imgcls.image.spec import DecodeSpec
from imgcls.model.registry import register
from imgcls.report.make import report
from imgcls.scoring.driver import score
from tests.data.dicoms import dicom_file
from tests.report.browser import opened
from tests.scoring.tiny import make_bundle, published_rows

PLANTED = {
    "PatientName": "PLANTED^NAME",
    "PatientID": "PLANTEDID4711",
    "PatientBirthDate": "19610203",
    "PatientAddress": "PLANTED STREET 7",
    "InstitutionName": "PLANTED HOSPITAL",
    "ReferringPhysicianName": "PLANTED^DOCTOR",
    "AccessionNumber": "PLANTEDACC99",
    "StudyDescription": "PLANTED STUDY",
    "StudyInstanceUID": "1.2.826.0.1.3680043.77.1",
}
WITH_PATIENT = ("PLANTED", "19610203", "1.2.826.0.1.3680043.77.1")


def ramp(low: int, high: int, height: int = 120, width: int = 200) -> np.ndarray:
    """A picture that grows lighter to the right."""
    return np.tile(np.linspace(low, high, width), (height, 1))


def greys(data: bytes) -> np.ndarray:
    """The middle line of a JPEG."""
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    return picture[picture.shape[0] // 2].astype(int)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a DICOM file with a window, another that is damaged, and a 16-bit PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "in").mkdir()
    window = {"WindowCenter": 100, "WindowWidth": 100}
    windowed = dicom_file(image_HW=ramp(0, 200).astype(np.uint8), **window, **PLANTED)
    (folder / "in" / "a.dcm").write_bytes(windowed)
    (folder / "in" / "b.dcm").write_bytes(windowed[:-9000])
    deep = Image.fromarray(ramp(0, 4095).astype(np.uint16))
    deep.save(folder / "in" / "c.png")
    bundle = make_bundle(num_classes=2, decode_spec=DecodeSpec(gray_range="min_max"))
    register(str(folder / "registry"), "m", bundle)
    score(
        ScoreConfig(
            str(folder / "in"), str(folder / "registry" / "m@v1"), str(folder / "out"),
            executor="local", run_id="night", num_decoders=1,
        )
    )  # fmt: skip
    return folder / "out"


def test_no_word_of_a_patient_leaves_the_file(night: Path) -> None:
    report(ReportConfig(str(night), last=2))
    files = [path for path in night.rglob("*") if path.is_file()]
    assert {"report.html", "failed.csv", "nights.html"} <= {path.name for path in files}
    for path in files:
        data = path.read_bytes()
        for words in WITH_PATIENT:
            for encoded in (words.encode(), words.encode("utf-16-le")):
                assert encoded not in data, f"{words} in {path}"
        if path.suffix in (".html", ".csv"):
            assert path.stat().st_mode & 0o077 == 0


def test_pictures_are_shown_by_their_window_and_without_metadata(night: Path) -> None:
    page = report(ReportConfig(str(night)))["page"]
    with opened(page) as shown:
        assert shown.complaints == []
        assert "patients' pictures" in shown.page.inner_text(".notice")
        sources = shown.page.eval_on_selector_all(
            "#sample-list li", "all => all.map(e => [e.dataset.name, e.querySelector('img').src])"
        )
        reason = shown.page.inner_text("#failed-list")
    assert "b.dcm" in reason
    pictures = {}
    for name, source in sources:
        data = base64.b64decode(source.partition(",")[2])
        pictures[name] = greys(data)
        image = Image.open(io.BytesIO(data))
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert max(image.size) >= 96
    # The window is 50 to 150: black for a quarter of 0..200, white for the last.
    line = pictures["a.dcm"]
    assert (line[: len(line) // 5] < 10).all()
    assert (line[-len(line) // 5 :] > 245).all()
    # All of 0..4095, not a black square.
    line = pictures["c.png"]
    assert line[0] < 30
    assert line[-1] > 225


def test_of_many_frames_the_best_one_is_shown(tmp_path: Path) -> None:
    """Frames of one grey each: how light a picture is says of which frame it is."""
    grey_F = np.array([20, 70, 120, 170, 220], np.uint8)
    frames = np.broadcast_to(grey_F[:, None, None], (5, 60, 100)).copy()
    (tmp_path / "in").mkdir()
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(tmp_path / "in" / "stack.tif", save_all=True, append_images=others)
    cine = dicom_file(image_HW=frames[::-1], NumberOfFrames=5, WindowCenter=128, WindowWidth=256)
    (tmp_path / "in" / "cine.dcm").write_bytes(cine)
    bundle = make_bundle(num_classes=2, decode_spec=DecodeSpec(frames="pool"))
    register(str(tmp_path / "registry"), "m", replace(bundle, pooling="max"))
    output = str(tmp_path / "out")
    score(
        ScoreConfig(
            str(tmp_path / "in"), str(tmp_path / "registry" / "m@v1"), output,
            executor="local", run_id="night", num_decoders=1, heatmaps="all",
        )
    )  # fmt: skip
    best = {Path(row["uri"]).name: row["frame"] for row in published_rows(output).to_pylist()}
    assert best["stack.tif"] == 4 - best["cine.dcm"] > 0, "the same one, and not the first of each"
    with opened(report(ReportConfig(output))["page"]) as shown:
        for name, frame in best.items():
            card = shown.page.locator(f"#sample-list li[data-name='{name}']")
            assert f"frame {frame}" in card.inner_text()
            source = card.locator("img").first.get_attribute("src")
            assert card.locator("img").first.evaluate("e => e.naturalWidth") >= 96
            grey = greys(base64.b64decode(source.partition(",")[2])).mean()
            assert abs(grey - grey_F[best["stack.tif"]]) < 6, (name, frame)
