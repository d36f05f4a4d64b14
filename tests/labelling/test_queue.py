"""What people are asked, and how it comes back: tasks, exports, estimates over time."""

import csv
import io
import json
import os
import random
import subprocess
import urllib.request
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from imgcls.config.labelling import LabelsConfig, QueueConfig
from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import ReportConfig
from imgcls.errors import ConfigError
from imgcls.evaluation.evaluate import evaluate
from imgcls.labelling.answers import labels
from imgcls.labelling.queue import queue
from imgcls.report.make import report
from imgcls.runs.answers import read_answers, read_queues
from imgcls.runs.run import is_of_a_run
from imgcls.storage.objects import head, list_objects, put
from imgcls.storage.uri import join
from tests.kit.stores import ROOT
from tests.report.nights import publish_night, row_of

Row = dict[str, Any]


@pytest.fixture
def night(tmp_path: Path) -> tuple[str, list[Row]]:
    """A night of 300 pictures on disk, its model gone."""
    return publish(tmp_path, 300)


def publish(folder: Path, number: int, *, day: int = 24, first: int = 0) -> tuple[str, list[Row]]:
    rows = []
    for i in range(first, first + number):
        file = folder / "parts" / f"camera {i % 4}" / f"part {i:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % i)
        probs = [0.5 + (i * 37 % 100) / 200, 0.5 - (i * 37 % 100) / 200]
        rows.append(
            row_of(i, uri=str(file), etag=head(str(file)).etag, topk_label=[0, 1], topk_prob=probs)
        )
    publish_night(str(folder / "out"), rows, run_id=f"night-{day}", day=day)
    return str(folder / "out"), rows


def asked_of(output: str) -> list[Row]:
    return list(read_queues(output).values())


def test_nobody_is_asked_twice_about_one_version(night: tuple[str, list[Row]]) -> None:
    output, rows = night
    first = queue(QueueConfig(output=output, to=f"{output}-q1", most=40))
    second = queue(QueueConfig(output=output, to=f"{output}-q2", most=40))
    assert first["num_asked"] == second["num_asked"] == 40
    assert second["num_images"] == first["num_images"] - 40
    asked = asked_of(output)
    assert len(asked) == 80 == len({row["id"] for row in asked})
    # The second one draws from what the first one left: it says nothing of the whole night.
    assert [bool(row["stratum"]) for row in asked] == [True] * 40 + [False] * 40
    ok = [row for row in rows if row["status"] == "ok"]
    assert first["num_images"] == len(ok)
    with pytest.raises(ConfigError, match="--most 0"):
        queue(QueueConfig(output=output, to=f"{output}-q3", most=0))


def test_the_most_unfamiliar_are_asked_about_first(tmp_path: Path) -> None:
    _, rows = publish(tmp_path, 60)
    rows = [
        row | {"unfamiliar": times > 1, "unfamiliarity": times}
        for i, row in enumerate(rows)
        for times in [0.5 + i * 37 % 60 / 40]
    ]
    extra = (pa.field("unfamiliar", pa.bool_()), pa.field("unfamiliarity", pa.float32()))
    publish_night(str(tmp_path / "out"), rows, run_id="night-24", extra=extra)
    output = str(tmp_path / "out")
    queue(QueueConfig(output=output, to=str(tmp_path / "q"), most=12, random_share=0.0))
    asked = [row["uri"] for row in asked_of(output) if row["why"] == "unfamiliar"]
    times = {row["uri"]: row["unfamiliarity"] for row in rows if row["status"] == "ok"}
    assert len(asked) >= 4
    assert times[asked[0]] == max(times.values())
    assert asked == sorted(asked, key=lambda uri: -times[uri])


def in_spreadsheet(folder: Path, answers: dict[str, str]) -> Path:
    """Fill in the column label as Excel of Europe saves it."""
    with (folder / "queue.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), delimiter=";")
    writer.writeheader()
    writer.writerows(row | {"label": answers.get(row["id"], "")} for row in table)
    path = folder / "back.csv"
    path.write_bytes(text.getvalue().encode("cp1252"))
    return path


def in_label_studio(folder: Path, answers: dict[str, str]) -> Path:
    tasks = json.loads((folder / "label_studio.json").read_text())
    for number, task in enumerate(tasks):
        label = answers.get(task["data"]["id"])
        result = [dict(task["predictions"][0]["result"][0], value={"choices": [label]})]
        skipped = {"result": [], "was_cancelled": True}
        task |= {"id": number, "annotations": [{"result": result}] if label else [skipped]}
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def in_label_studio_min(folder: Path, answers: dict[str, str]) -> Path:
    tasks = json.loads((folder / "label_studio.json").read_text())
    flat = [task["data"] | {"label": answers.get(task["data"]["id"])} for task in tasks]
    path = folder / "export-min.json"
    path.write_text(json.dumps(flat))
    return path


def in_cvat(folder: Path, answers: dict[str, str], rows: list[Row]) -> Path:
    root = ElementTree.fromstring(  # noqa: S314  (our own)
        (folder / "cvat_annotations.xml").read_bytes()
    )
    id_by_name = {row["uri"].lstrip("/"): row["id"] for row in rows}
    for image in root.iter("image"):
        label = answers.get(id_by_name[image.get("name", "")])
        for tag in image.iter("tag"):
            if label:
                tag.attrib |= {"label": label, "source": "manual"}
    path = folder / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", ElementTree.tostring(root))
    return path


def in_folder(folder: Path, answers: dict[str, str], rows: list[Row]) -> Path:
    path = folder / "sorted"
    for row in rows:
        if label := answers.get(row["id"]):
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / Path(row["uri"]).name).write_bytes(b"a picture")
    return path


@pytest.mark.parametrize(
    "by", ["spreadsheet", "label_studio", "label_studio_min", "cvat", "folder"]
)
def test_labels_come_back_without_loss(
    night: tuple[str, list[Row]], tmp_path: Path, by: str
) -> None:
    output, _ = night
    folder = tmp_path / "tasks"
    queue(QueueConfig(output=output, to=str(folder), most=40))
    asked = asked_of(output)
    # Müller is what cp1252 and UTF-8 write unlike; three are left open.
    classes = ["ok", "scratch", "Müller"]
    answers = {row["id"]: random.Random(row["id"]).choice(classes) for row in asked[3:]}
    back = {
        "spreadsheet": lambda: in_spreadsheet(folder, answers),
        "label_studio": lambda: in_label_studio(folder, answers),
        "label_studio_min": lambda: in_label_studio_min(folder, answers),
        "cvat": lambda: in_cvat(folder, answers, asked),
        "folder": lambda: in_folder(folder, answers, asked),
    }[by]()
    config = LabelsConfig(output=output, from_=str(back), to=str(tmp_path / "labels.csv"))
    result = labels(config)
    assert {key: row["label"] for key, row in read_answers(output).items()} == answers
    # What CVAT shows of a prediction that nobody touched is no answer, nor is an empty cell.
    assert result["num_answers"] == result["num_for_training"] == 37
    assert result["num_unknown"] == result["num_unclear"] == 0
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        manifest = {row["uri"]: row["label"] for row in csv.DictReader(file)}
    assert manifest == {row["uri"]: answers[row["id"]] for row in asked if row["id"] in answers}
    # Given again it changes nothing.
    assert labels(config)["record"] == result["record"]


def test_label_studio_takes_the_tasks(night: tuple[str, list[Row]], tmp_path: Path) -> None:
    python = ROOT / ".tools" / "label-studio-sdk" / "bin" / "python"
    if not python.exists():
        what = "no label-studio-sdk: .ci/install-tools shows how it comes"
        assert os.environ.get("CI") != "true", what
        pytest.skip(what)
    queue(QueueConfig(output=night[0], to=str(tmp_path), most=5))
    check = Path(__file__).with_name("label_studio_check.py")
    files = [str(tmp_path / f"label_studio.{kind}") for kind in ("xml", "json")]

    def asked() -> subprocess.CompletedProcess[str]:
        command = [str(python), str(check), *files]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert asked().stdout.strip() == "5"
    text = Path(files[1]).read_text().replace('"from_name": "label"', '"from_name": "other"')
    Path(files[1]).write_text(text)
    assert "no prediction" in asked().stderr


def test_an_image_that_was_overwritten_is_measured_and_not_trained_on(
    night: tuple[str, list[Row]], tmp_path: Path
) -> None:
    output, _ = night
    folder = tmp_path / "tasks"
    queue(QueueConfig(output=output, to=str(folder), most=10))
    asked = asked_of(output)
    back = in_spreadsheet(folder, {row["id"]: "ok" for row in asked})
    Path(asked[0]["uri"]).write_bytes(b"another part")
    Path(asked[1]["uri"]).unlink()
    result = labels(LabelsConfig(output=output, from_=str(back), to=str(tmp_path / "l.csv")))
    assert (result["num_answers"], result["num_changed"], result["num_for_training"]) == (10, 2, 8)
    assert asked[0]["uri"] not in (tmp_path / "l.csv").read_text()
    assert len(read_answers(output)) == 10


def test_rows_of_earlier_versions_are_asked_about_as_the_same_images(tmp_path: Path) -> None:
    """Up to 27535e0 the etag of a local file ended in its inode."""
    output, rows = publish(tmp_path, 12)
    old = [row | {"etag": f"{row['etag']}-1f2e"} for row in rows]
    publish_night(output, old, run_id="night-24", day=24)
    queue(QueueConfig(output=output, to=str(tmp_path / "q"), most=5))
    back = in_spreadsheet(tmp_path / "q", {row["id"]: "ok" for row in asked_of(output)})
    result = labels(LabelsConfig(output=output, from_=str(back), to=str(tmp_path / "l.csv")))
    assert (result["num_answers"], result["num_changed"]) == (5, 0)


def test_an_output_in_a_source_gives_no_rows_of_queues_and_answers(
    night: tuple[str, list[Row]], tmp_path: Path
) -> None:
    output, _ = night
    queue(QueueConfig(output=output, to=str(tmp_path / "q"), most=2))
    back = in_spreadsheet(tmp_path / "q", {row["id"]: "ok" for row in asked_of(output)})
    labels(LabelsConfig(output=output, from_=str(back), to=str(tmp_path / "l.csv")))
    written = [info.uri for info in list_objects(output) if "/_runs/" not in info.uri]
    assert sum("/_queues/" in uri or "/_answers/" in uri for uri in written) == 2
    assert all(is_of_a_run(uri) for uri in written)


def test_what_nobody_asked_and_what_two_people_see_unlike_is_left_out_by_name(
    night: tuple[str, list[Row]], tmp_path: Path
) -> None:
    output, _ = night
    queue(QueueConfig(output=output, to=str(tmp_path / "q"), most=3))
    one, two, three = asked_of(output)
    lines = ["label,id,uri", f"ok,{one['id']},", f"dent,{one['id']},", f"ok,,{two['uri']}",
             "ok,,/elsewhere/x.jpg", f",{three['id']},"]  # fmt: skip
    (tmp_path / "back.csv").write_text("\n".join(lines))
    result = labels(
        LabelsConfig(output=output, from_=str(tmp_path / "back.csv"), to=str(tmp_path / "l.csv"))
    )
    assert (result["num_answers"], result["num_open"]) == (1, 1)
    assert result["unclear"] == [f"{Path(one['uri']).name}: dent, ok"]
    assert result["unknown"] == ["/elsewhere/x.jpg (no queue asked for it)"]
    assert list(read_answers(output)) == [two["id"]]


def test_hostile_names_are_inert_in_every_task(tmp_path: Path) -> None:
    file = tmp_path / "parts" / '=cmd|calc "<b>&.jpg'
    file.parent.mkdir()
    file.write_bytes(b"x")
    row = row_of(1, uri=str(file), etag=head(str(file)).etag, class_name="=1+1")
    publish_night(str(tmp_path / "out"), [row])
    queue(QueueConfig(output=str(tmp_path / "out"), to=str(tmp_path / "q"), most=1))
    text = (tmp_path / "q" / "queue.csv").read_text("utf-8-sig")
    cells = next(csv.DictReader(io.StringIO(text)))
    assert cells["class_name"] == "'=1+1"
    assert cells["name"].startswith("'=cmd")
    root = ElementTree.fromstring(  # noqa: S314  (our own)
        (tmp_path / "q" / "cvat_annotations.xml").read_bytes()
    )
    assert next(root.iter("image")).get("name") == str(file).lstrip("/")
    assert json.loads((tmp_path / "q" / "label_studio.json").read_text())[0]["data"]["uri"] == str(
        file
    )
    assert os.stat(tmp_path / "q" / "queue.csv").st_mode & 0o077 == 0  # noqa: PTH116


@pytest.mark.parametrize("kind", ["s3", "az"])
def test_signed_links_stand_in_the_tasks_alone(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bucket = request.getfixturevalue("s3_bucket" if kind == "s3" else "az_store")
    bucket = bucket if kind == "s3" else bucket.new_bucket()
    source = join(bucket, "parts", "a b.jpg")
    etag = put(source, b"pixels")
    output = join(bucket, "out")
    publish_night(output, [row_of(1, uri=source, etag=etag)])
    with pytest.raises(ConfigError, match="at most 24h"):
        queue(QueueConfig(output=output, to=str(tmp_path), most=1, links=True, expires="25h"))
    queue(QueueConfig(output=output, to=str(tmp_path / "q"), most=1, links=True, expires="5m"))
    task = json.loads((tmp_path / "q" / "label_studio.json").read_text())[0]
    link = task["data"]["image"]
    with urllib.request.urlopen(link) as reply:  # noqa: S310  (of our own server)
        assert reply.read() == b"pixels"
    query = urlsplit(link).query
    assert query
    assert query not in caplog.text
    assert query not in str(asked_of(output))
    assert "the tasks hold signed links" in caplog.text


def test_no_link_is_made_where_nothing_signs(night: tuple[str, list[Row]]) -> None:
    output, _ = night
    with pytest.raises(ConfigError, match="only an object store"):
        queue(QueueConfig(output=output, to=f"{output}-q", most=5, links=True))
    # Refused before anything is kept: nobody was asked.
    assert not asked_of(output)


def test_evaluate_measures_week_by_week(tmp_path: Path) -> None:
    for day, first in ((16, 0), (24, 300)):
        output, _ = publish(tmp_path, 300, day=day, first=first)
        folder = tmp_path / f"q{day}"
        queue(QueueConfig(output=output, to=str(folder), most=60))
        asked = [row for row in asked_of(output) if row["run_id"] == f"night-{day}"]
        # The model is always right in the first week, and misses one kind in the second.
        truth = {
            row["id"]: "defect"
            if row["decision"] != "negative" or (day == 24 and row["why"] == "uncertain")
            else "ok"
            for row in asked
        }
        back = in_spreadsheet(folder, truth)
        labels(LabelsConfig(output=output, from_=str(back), to=str(tmp_path / "l.csv")))
    result = evaluate(EvaluateConfig(predictions=output, over="week"))
    first_week, second_week = result["periods"]
    assert (first_week["name"], second_week["name"]) == ("2026-W47", "2026-W48")
    assert result["positive_class"] == "defect"
    assert first_week["sensitivity"] == 1.0
    assert first_week["sensitivity_interval"][0] < 1.0
    assert second_week["sensitivity"] < 0.7
    assert first_week["num_answered"] == 60
    page = report(ReportConfig(output=output))["page"]
    assert "2026-W48: sensitivity" in Path(page).read_text()
    with pytest.raises(ConfigError, match="alone"):
        evaluate(EvaluateConfig(predictions=output, labels=str(tmp_path / "l.csv"), over="week"))
