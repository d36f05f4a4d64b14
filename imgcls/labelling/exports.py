"""What came back from people: a spreadsheet, an export of a tool, or sorted pictures.

In: a place. Out: for each answer what names the image, and the class. Invariants: nothing is
guessed: a cell without a label is no answer; nothing that is read is run or fetched.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

from imgcls.data.columns import Columns, is_table, read_rows
from imgcls.errors import SourceError
from imgcls.inert import from_csv
from imgcls.runs.row_keys import path_of
from imgcls.storage.json_text import parse_json
from imgcls.storage.objects import list_objects, read

_MAX_XML_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody said of one image.

    Attributes:
        label: Its class; "" where nobody said anything.
        id: Of the version of the image in the queue, "" where the export has lost it.
        path: Its name as the export has it.
        where: Words that name the place in the export.
        is_prediction: Nobody touched what the model said: whether somebody saw it, is not known.
    """

    label: str
    id: str
    path: str
    where: str
    is_prediction: bool = False


def read_export(place: str) -> list[Answer]:
    """Return what an export says, in its order.

    Raises:
        SourceError: it is none that is known, or damaged.
    """
    lower = place.lower()
    if lower.endswith(".xml"):
        return list(_of_cvat(read(place), place))
    if lower.endswith(".zip"):
        return list(_of_cvat(_unzipped(place), place))
    if lower.endswith(".json"):
        return list(_of_label_studio(place))
    if is_table(place):
        return list(_of_table(place))
    return list(_of_folder(place))


def _of_table(place: str) -> Iterator[Answer]:
    columns = Columns(("label",), ("id", "uri", "member", "name"))
    for row in read_rows(read(place), place, columns):
        cells = {name: from_csv(str(cell)) for name, cell in row.cells.items() if cell is not None}
        path = path_of(cells.get("uri", ""), cells.get("member"))
        yield Answer(
            cells.get("label", "").strip(), cells.get("id", ""), path or cells.get("name", ""),
            row.where,
        )  # fmt: skip


def _of_label_studio(place: str) -> Iterator[Answer]:
    """Read the export JSON, or JSON-MIN, which has the choice beside the data."""
    tasks = parse_json(read(place), place, SourceError)
    if not isinstance(tasks, list):
        raise SourceError(f"{place}: an export of Label Studio is a list of tasks")
    for number, task in enumerate(tasks, 1):
        where = f"{place}, task {number}"
        if not isinstance(task, dict):
            raise SourceError(f"{where} is not an object")
        data = task["data"] if isinstance(task.get("data"), dict) else task
        path = path_of(_text(data.get("uri")), _text(data.get("member")))
        path = path or _text(data.get("image"))
        labels = {_choice(one, where) for one in task.get("annotations") or ()} - {""}
        if "annotations" not in task:
            labels = {_min_choice(task.get("label"))} - {""}
        # Two people who say two things have not answered yet: both are told.
        for label in sorted(labels) or [""]:
            yield Answer(label, _text(data.get("id")), path, where)


def _choice(annotation: Any, where: str) -> str:  # noqa: ANN401  (JSON of another program)
    if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
        return ""
    found = set[str]()
    for result in annotation.get("result") or ():
        if isinstance(result, dict) and result.get("type") == "choices":
            value = result.get("value")
            choices = value.get("choices") if isinstance(value, dict) else None
            found |= {_text(one) for one in choices or ()}
    if len(found) > 1:
        raise SourceError(f"{where} holds {sorted(found)}: one class per image can be taken back")
    return found.pop() if found else ""


def _min_choice(value: Any) -> str:  # noqa: ANN401  (as above)
    if isinstance(value, dict):
        value = value.get("choices")
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else ""
    return _text(value)


def _of_cvat(data: bytes, place: str) -> Iterator[Answer]:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise SourceError(f"{place}: an export of CVAT declares no entities")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314  (no entities, see above)
    except ElementTree.ParseError as error:
        raise SourceError(f"{place} is not XML: {error}") from error
    if root.tag != "annotations":
        raise SourceError(
            f'{place}: the format is "CVAT for images 1.1", whose root is annotations'
        )
    for image in root.iter("image"):
        name = image.get("name", "")
        tags = list(image.iter("tag"))
        # CVAT marks what it was given as auto, and as semi-auto or manual what a person did.
        by_person = [tag for tag in tags if tag.get("source") != "auto"]
        for label in sorted({tag.get("label", "") for tag in by_person or tags}) or [""]:
            yield Answer(label, "", name, f"{place}, image {name!r}", is_prediction=not by_person)


def _unzipped(place: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(read(place))) as archive:
            info = archive.getinfo("annotations.xml")
            if info.file_size > _MAX_XML_BYTES:
                raise SourceError(f"{place}: annotations.xml has {info.file_size} bytes")
            return archive.read(info)
    except (zipfile.BadZipFile, KeyError, RuntimeError) as error:
        raise SourceError(f"{place} is not an export of CVAT for images 1.1: {error}") from error


def _of_folder(place: str) -> Iterator[Answer]:
    root = f"{place.rstrip('/')}/"
    for info in list_objects(root):
        label, _, name = info.uri.removeprefix(root).partition("/")
        if name:
            yield Answer(label, "", name, info.uri)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)
