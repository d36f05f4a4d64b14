"""The files that a person, or a tool for labelling, opens.

In: rows of a queue. Out: queue.csv for a spreadsheet; label_studio.json with its configuration
label_studio.xml; cvat_images.txt, cvat_labels.json and cvat_annotations.xml. Invariant: the id of
an image travels with it through each of them, and what the model says is filled in as a prediction,
never as an answer.

Formats: Label Studio's tasks with predictions (labelstud.io/guide/predictions); CVAT's "CVAT for
images 1.1" (docs.cvat.ai/docs/dataset_management/formats/format-cvat).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree

from imgcls.inert import in_log, spreadsheet
from imgcls.runs.row_keys import path_of
from imgcls.storage.objects import put
from imgcls.storage.uri import is_local, join, split_uri

_FIRST: Final = ("label", "class_name", "decision", "probability", "why", "name", "date")
_LAST: Final = ("uri", "member", "id")

Row = dict[str, Any]


def write_tasks(
    folder: str, rows: Sequence[Row], classes: Sequence[str], links: Mapping[str, str]
) -> list[str]:
    """Write all files; return where they are, the spreadsheet first."""
    files = {
        "queue.csv": _spreadsheet(rows, links),
        "label_studio.json": _label_studio(rows, links),
        "label_studio.xml": _label_studio_config(classes),
        "cvat_images.txt": "".join(
            f"{links.get(r['id']) or name_in_tools(r)}\n" for r in rows
        ).encode(),
        "cvat_labels.json": json.dumps(
            [{"name": name, "type": "tag", "attributes": []} for name in classes], indent=1
        ).encode(),
        "cvat_annotations.xml": _cvat(rows, classes),
    }
    for name, data in files.items():
        put(join(folder, name), data, is_private=True)
    return [join(folder, name) for name in files]


def name_in_tools(row: Row) -> str:
    """Return how a tool calls an image: its key in the bucket, or its path below the root."""
    path = row["uri"].lstrip("/") if is_local(row["uri"]) else split_uri(row["uri"])[2]
    return path_of(path, row["member"])


def name_of(row: Row) -> str:
    """Return the name of an image's file."""
    return str(row["member"] or row["uri"]).rpartition("/")[2]


def _spreadsheet(rows: Sequence[Row], links: Mapping[str, str]) -> bytes:
    carried = list(dict.fromkeys(name for row in rows for name in row["carried"]))
    lines: list[list[object]] = [[*_FIRST, *carried, *_LAST, *(["link"] if links else [])]]
    for row in rows:
        probability = row["probability"]
        cells = {**row, "label": "", "name": name_of(row)}
        cells["probability"] = None if probability is None else f"{probability:.3f}"
        lines.append([
            *(cells[name] for name in _FIRST),
            *(row["carried"].get(name) for name in carried),
            *(cells[name] for name in _LAST),
            *([links.get(row["id"], "")] if links else []),
        ])  # fmt: skip
    return spreadsheet(lines)


def _label_studio(rows: Sequence[Row], links: Mapping[str, str]) -> bytes:
    tasks = []
    for row in rows:
        data = {
            "image": links.get(row["id"]) or row["uri"],
            **{name: row[name] or "" for name in ("id", "uri", "member", "etag", "why", "date")},
            **row["carried"],
        }
        result = {
            "id": row["id"],
            "from_name": "label",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [row["class_name"]]},
        }
        prediction = {
            "model_version": f"imgcls {row['model_digest'][:12]}",
            "score": row["probability"] or 0.0,
            "result": [result],
        }
        tasks.append({"data": data, "predictions": [prediction]})
    return json.dumps(tasks, indent=1, ensure_ascii=True).encode()


def _label_studio_config(classes: Sequence[str]) -> bytes:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    choices = ElementTree.SubElement(
        view, "Choices", name="label", toName="image", choice="single", showInLine="true"
    )
    for name in classes:
        ElementTree.SubElement(choices, "Choice", value=_in_xml(name))
    ElementTree.indent(view)
    return bytes(ElementTree.tostring(view, "utf-8"))


def _cvat(rows: Sequence[Row], classes: Sequence[str]) -> bytes:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name in classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = _in_xml(name)
        ElementTree.SubElement(label, "attributes")
    for number, row in enumerate(rows):
        image = ElementTree.SubElement(
            root,
            "image",
            id=str(number),
            name=_in_xml(name_in_tools(row)),
            width=str(row.get("width_px") or 1),
            height=str(row.get("height_px") or 1),
        )
        ElementTree.SubElement(image, "tag", label=_in_xml(row["class_name"]), source="auto")
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, "utf-8", xml_declaration=True))


def _in_xml(text: str) -> str:
    """Return text without the characters that XML 1.0 cannot hold."""
    return in_log(text)
