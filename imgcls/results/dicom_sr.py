"""Structured reports (DICOM SR, TID 1500): one per study, into a folder; nothing is sent.

In: the latest published rows of DICOM images, and their headers, read again from where they lie.
Out: FOLDER/<SOP instance UID>.dcm. Invariants: UIDs depend on the images and the answers alone,
so that a second run writes the same files; a report is UNVERIFIED, names algorithm, version and
digest, and holds what its images say of the patient, because a report that belongs to nobody is
lost. No log and no file name holds any of that.

Needs the extra `dicom`. imgcls is not a medical device.
"""

import hashlib
import io
import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from imgcls.config.scoring import ResultsConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.image.formats.dicom.bare import with_preamble
from imgcls.image.formats.dicom.header import is_dicom
from imgcls.runs.latest import read_latest, read_latest_units
from imgcls.runs.plan import Plan, PlannedRows, read_plan
from imgcls.runs.row_keys import image_keys, with_members
from imgcls.runs.run import Run
from imgcls.schema import Status
from imgcls.sources.read import get_images
from imgcls.sources.requests import requests_of
from imgcls.storage.objects import put
from imgcls.storage.uri import join

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, MeasurementsAndQualitativeEvaluations
    from pydicom.dataset import Dataset

log = logging.getLogger(__name__)

_OURS: Final = uuid.UUID("0f6c2c86-3c4e-5d0e-9d3c-6f1f0a6f5d21")  # namespace of our UIDs
_SCHEME: Final = "99IMGCLS"  # private coding scheme: classes are those of the model's data
_MAX_CHARS: Final = 64  # of DICOM's LO and of a code's meaning
_KEY: Final = ("uri", "member")
_DISCLAIMER: Final = "Research output of imgcls, not a medical device, not verified by a person"
Row = dict[str, Any]


@dataclass(frozen=True)
class _Image:
    """A row, and the header of its image."""

    row: Row
    header: "Dataset"

    @property
    def study(self) -> str:
        """The UID of its study."""
        return str(self.header.StudyInstanceUID)


@dataclass(frozen=True)
class _Unit:
    """The row of a unit, and those of its images that a report is of."""

    row: Row
    images: Sequence[_Image]


def write_reports(config: ResultsConfig, output: str) -> dict[str, Any]:
    """Write a report for each study.

    Raises:
        ConfigError: highdicom is not installed.
        SourceError: no published row is of a DICOM image.
    """
    if find_spec("highdicom") is None:
        raise ConfigError("--to dicom-sr needs highdicom: pip install 'imgcls[dicom]'")
    into = config.into or join(output, "_reports")
    rows = read_latest(output)
    wanted = [
        row
        for row in rows.to_pylist()
        if row["status"] == Status.OK
        and row["format"] == "dicom"
        and config.run_id in ("", row["run_id"])
    ]
    if not wanted:
        raise SourceError(f"{output}: no published row is of a DICOM image with an answer")
    studies, num_gone = defaultdict[str, list[_Image]](list), 0
    for row, header in _headers(output, wanted):
        if header is None:
            num_gone += 1
        else:
            image = _Image(row, header)
            studies[image.study].append(image)
    units = _units_by_study(output, studies, config.run_id)
    for study, images in studies.items():
        report = report_of(images, units.get(study, ()))
        file = io.BytesIO()
        report.save_as(file)
        put(join(into, f"{report.SOPInstanceUID}.dcm"), file.getvalue(), is_private=True)
    if num_gone:
        log.warning(
            "%d images are in no report: they were changed or removed since they were scored, or "
            "lack the UIDs that a report refers to",
            num_gone,
        )
    return {
        "to": "dicom-sr",
        "where": into,
        "num_rows": sum(map(len, studies.values())),
        "num_reports": len(studies),
        "num_units": sum(map(len, units.values())),
        "num_not_reported": num_gone,
    }


def _units_by_study(
    output: str, studies: Mapping[str, Sequence[_Image]], run_id: str
) -> dict[str, list[_Unit]]:
    """Return the answers of units by the study that they lie in; one of several studies is in none.

    A unit whose answer is of other rows than the reports - of another run, another model, or with
    images that are in no report - is left out, too.
    """
    by_unit = defaultdict[str, list[_Image]](list)
    for images in studies.values():
        for image in images:
            if image.row.get("unit"):
                by_unit[image.row["unit"]].append(image)
    found = defaultdict[str, list[_Unit]](list)
    for row in read_latest_units(output).to_pylist() if by_unit else ():
        images = by_unit.get(row["unit"] or "", [])
        is_whole = len({_file_of(image.row) for image in images}) == row["num_ok"]
        is_of_them = {image.row["model_digest"] for image in images} == {row["model_digest"]}
        is_wanted = row["num_ok"] > 0 and run_id in ("", row["run_id"])
        is_in_one = len({image.study for image in images}) == 1
        if is_whole and is_of_them and is_wanted and is_in_one:
            found[images[0].study].append(_Unit(row, images))
    return found


def _file_of(row: Row) -> tuple[str, str | None, int | None]:
    return row["uri"], row.get("member"), row["frame"]


def _headers(output: str, rows: Sequence[Row]) -> Iterator[tuple[Row, "Dataset | None"]]:
    """Yield each row with the header of its image, None where that is not there as it was."""
    by_run = defaultdict[str, dict[str, list[Row]]](lambda: defaultdict(list))
    columns = {name: pa.array([r.get(name) for r in rows], pa.string()) for name in _KEY}
    keys = image_keys(pa.table(columns))
    for key, row in zip(keys.to_pylist(), rows, strict=True):
        by_run[row["run_id"]][key].append(row)
    for run_id, by_key in by_run.items():
        plan = read_plan(Run(output, run_id))
        for key, data in _bytes_of(plan, by_key) if plan is not None else ():
            header = _header(data) if isinstance(data, bytes) else None
            for row in by_key.pop(key):
                yield row, header
        for left in by_key.values():
            yield from ((row, None) for row in left)


def _bytes_of(plan: Plan, wanted: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Yield what is read of the planned images among the wanted ones."""
    names, planned = set(wanted), PlannedRows(plan)
    for shard in plan.shards():
        rows = planned.of(shard)
        keys = [str(key) for key in image_keys(with_members(rows)).to_pylist()]
        requests = (one for one in requests_of(rows) if keys[one.index] in names)
        for index, data in get_images(requests, gives_unreadable=True):
            yield keys[index], data


def _header(data: bytes) -> "Dataset | None":
    from pydicom import dcmread

    if not is_dicom(data):
        return None
    header = dcmread(io.BytesIO(with_preamble(data)), stop_before_pixels=True, force=True)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    if not all(header.get(name) for name in names):
        return None
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        if name not in header:
            setattr(header, name, "")  # type 2: may be empty, must be there
    for name in ("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        if name not in header:
            setattr(header, name, "")
    return header


def report_of(images: Sequence[_Image], units: Sequence[_Unit] = ()) -> "Dataset":
    """Return the report of one study: what is said of its units, and of each of its images."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    images = sorted(images, key=lambda one: (one.header.SOPInstanceUID, one.row["frame"] or 0))
    first, row = images[0].header, images[0].row
    name = str(row["model"]).rpartition("/")[2]
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid("device", row["model_digest"]),
            name=_text(f"imgcls {name}"),
            manufacturer_name="imgcls",
            model_name=_text(name),
            serial_number=row["model_digest"][:16],
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=[
            *map(_group_of_unit, units),
            *(_group(number, image) for number, image in enumerate(images, 1)),
        ],
        title=codes.DCM.ImagingMeasurementReport,
    )
    answers = [_answer(image.row, image) for image in images]
    answers += [_answer(unit.row, *unit.images) for unit in units]
    evidence = {str(image.header.SOPInstanceUID): image.header for image in images}
    report = sr.ComprehensiveSR(
        evidence=list(evidence.values()),
        content=content,
        series_instance_uid=_uid("series", str(first.StudyInstanceUID), row["model_digest"]),
        series_number=9100,
        sop_instance_uid=_uid("report", str(first.StudyInstanceUID), *answers),
        instance_number=1,
        manufacturer="imgcls",
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=_text(f"imgcls {name}, not verified"),
        manufacturer_model_name=_text(name),
        software_versions=_software(),
        device_serial_number=row["model_digest"][:16],
    )
    _be_dated(report, max(image.row["scored_at"] for image in images))
    return report


def _group_of_unit(unit: _Unit) -> "MeasurementsAndQualitativeEvaluations":
    """Return what is said of several images together."""
    row = unit.row
    about = [f"one answer for {row['num_images']} images, pooled by {row['rule']}"]
    if row["num_failed"]:
        about.append(f"incomplete: {row['num_failed']} failed, and may show what the others do not")
    return _group_of(f"unit of {row['num_images']} images", row, unit.images, about)


def _group(number: int, image: _Image) -> "MeasurementsAndQualitativeEvaluations":
    """Return what is said of one image, or of one frame of it."""
    return _group_of(f"image {number}", image.row, [image], [])


def _group_of(
    name: str, row: Row, images: Sequence[_Image], about: Sequence[str]
) -> "MeasurementsAndQualitativeEvaluations":
    """Return a group of the report.

    Args:
        name: What it is of, for people.
        row: The answer.
        images: What it was made of.
        about: What else is to be known of it.
    """
    from highdicom import sr

    parameters = [
        f"model digest {row['model_digest']}",
        f"spec digest {row['spec_digest']}",
        _DISCLAIMER,
        *about,
    ]
    if row.get("threshold_id"):
        parameters.append(f"threshold {row['threshold_id']}")
    said = [
        sr.QualitativeEvaluation(_code("Class", "class"), _code(str(row["class_name"]), "class is"))
    ]
    if row.get("decision"):
        said.append(
            sr.QualitativeEvaluation(
                _code("Decision", "decision"), _code(str(row["decision"]), "decision is")
            )
        )
    numbers = {"Probability of the class": row["confidence"]}
    if row.get("calibrated_prob") is not None:
        numbers["Calibrated probability"] = row["calibrated_prob"]
    unit = sr.CodedConcept("1", "UCUM", "no units")
    frames = [str(image.row["frame"]) for image in images]
    names = [str(image.header.SOPInstanceUID) for image in images]
    kind = "group" if len(images) == 1 and not about else "unit"
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid(kind, *(each for pair in zip(names, frames, strict=True) for each in pair),
                     row["model_digest"]),
            identifier=name,
        ),
        algorithm_id=sr.AlgorithmIdentification(
            name=_text(str(row["model"]).rpartition("/")[2]),
            version=_software(),
            parameters=parameters,
        ),
        measurements=[
            sr.Measurement(name=_code(what, "probability"), value=float(value), unit=unit)
            for what, value in numbers.items()
        ],
        qualitative_evaluations=said,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                image.header.SOPClassUID, image.header.SOPInstanceUID, _frames(image)
            )
            for image in images
        ],
    )  # fmt: skip


def _frames(image: _Image) -> list[int] | None:
    """Return which of the frames of a file is meant; None where it is all of it."""
    is_one_of_many = int(image.header.get("NumberOfFrames") or 1) > 1
    frame = image.row["frame"]
    return [int(frame) + 1] if frame is not None and is_one_of_many else None


def _answer(row: Row, *images: _Image) -> str:
    """Return all that decides what a report says of an image, or of several."""
    names = ("frame", "class_name", "confidence", "calibrated_prob", "decision", "threshold_id")
    of_units = ("status", "rule", "num_images", "num_failed") if "num_ok" in row else ()
    return repr(
        [
            *(str(image.header.SOPInstanceUID) for image in images),
            row["model_digest"],
            row["scored_at"].isoformat(),
            *(row.get(name) for name in (*names, *of_units)),
        ]
    )


def _be_dated(report: "Dataset", scored_at: datetime) -> None:
    """Give a report the time of its answers: written again it is the same file."""
    for name in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
        if name in report:
            setattr(report, name, f"{scored_at:%Y%m%d}")
    for name in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
        if name in report:
            setattr(report, name, f"{scored_at:%H%M%S}")
    for equipment in report.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = f"{scored_at:%Y%m%d%H%M%S}"


def _software() -> str:
    return _text(f"imgcls {version('imgcls')}")


def _uid(*parts: str) -> str:
    """Return a UID that equal parts give again: 2.25 and a number of 128 bits (ITU-T X.667)."""
    return f"2.25.{uuid.uuid5(_OURS, chr(0).join(parts)).int}"


def _code(meaning: str, kind: str) -> "CodedConcept":
    """Return a code of our own scheme for a name that data gave."""
    from highdicom.sr import CodedConcept

    value = hashlib.sha256(f"{kind}\0{meaning}".encode()).hexdigest()[:16]
    return CodedConcept(value, _SCHEME, _text(meaning))


def _text(text: str) -> str:
    """Return a text that DICOM's short strings take."""
    plain = "".join(c if c.isprintable() and c != "\\" else "_" for c in text).strip()
    return (plain or "_")[:_MAX_CHARS]
