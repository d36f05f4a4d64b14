"""Manifests as people have them: each is trained from with one command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgcls.cli import main

MakeTree = Callable[..., Path]

_QUICK = (
    *("--arch", "simple_cnn", "--epochs", "1", "--image-px", "12", "--batch-size", "8"),
    *("--lr", "0.005", "--num-decoders", "1", "--val-fraction", "0.2", "--test-fraction", "0.2"),
)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = main(list(arguments))
    printed = capsys.readouterr()
    result: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
    assert code == 0, result
    return result | {"log": " ".join(printed.err.split())}


def _train(capsys: pytest.CaptureFixture[str], data: Path, *more: str) -> dict[str, Any]:
    registry = ("--registry", str(data.parent / "registry"), "--name", "m")
    return _run(capsys, "train", "--data", str(data), *registry, *_QUICK, *more)


def test_of_a_hospital(make_tree: MakeTree, capsys: pytest.CaptureFixture[str]) -> None:
    images = sorted(make_tree(40).glob("*/*.png"))
    names = {"class0": "Müller-Zeichen", "class1": "unauffällig"}
    root = images[0].parents[2]
    lines = [
        f"{image.relative_to(root)},{names[image.parent.name]},P{number // 4:03},GE"
        for number, image in enumerate(images)
    ]
    lines += ["data/class0/999.png,,P099,GE"]
    lists = root / "lists"
    lists.mkdir()
    table = lists / "befunde.csv"
    # As Excel in Germany writes a "CSV (MS-DOS)" that somebody edited.
    table.write_bytes("\r\n".join(["File,Finding,PatientID,Scanner", *lines]).encode("cp1252"))
    result = _train(
        capsys,
        table,
        *("--columns", "uri=File,label=Finding,group=PatientID", "--root", str(root)),
        *("--slice-by", "scanner", "--allow-unlabelled"),
    )
    assert result["num_train"] + result["num_val"] + result["num_test"] == 80
    assert "read as Latin-1 (Windows-1252), so that it has 'Müller-Zeichen'" in result["log"]
    assert "1 rows without a label are left out, such as" in result["log"]
    card = json.loads((Path(result["uri"]) / "bundle.json").read_text())
    assert card["class_names"] == ["Müller-Zeichen", "unauffällig"]
    assert card["training"]["num_groups"] == 20
    # The same table, with a label that the model does not know, is measured all the same.
    lines[0] = lines[0].replace("Müller-Zeichen", "Fraktur")
    table.write_bytes("\r\n".join(["File;Finding;PatientID;Scanner", *lines]).replace(
        ",", ";").encode("utf-16"))  # fmt: skip
    measured = _run(
        capsys,
        *("evaluate", "--model", result["model"], "--data", str(table), "--split", "all"),
        *("--columns", "uri=File,label=Finding,group=PatientID", "--root", str(root)),
        *("--num-decoders", "1", "--device", "cpu"),
    )
    assert measured["num_rows"] == 79
    assert (measured["num_without_label"], measured["num_unknown_label"]) == (1, 1)
    assert measured["unknown_labels"] == {"Fraktur": 1}
    assert measured["without_label"] == [str(root / "data/class0/999.png")]


def test_of_a_factory(make_tree: MakeTree, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_tree(40)
    for number, image in enumerate(sorted(data.glob("*/*.png"))):
        place = data / f"linie{number % 2}"
        place.mkdir(exist_ok=True)
        verdict = {"class0": "OK", "class1": "NOK"}[image.parent.name]
        image.rename(place / f"teil{number // 2:03}_los{number // 8:02}_{verdict}.png")
    lines = [f"{p.parent.name}\\{p.name};{p.stat().st_size}" for p in sorted(data.glob("*/*.png"))]
    table = data / "export.csv"
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["sep=;", "Datei;Bytes", *lines]).encode())
    result = _train(
        capsys,
        table,
        *("--columns", "uri=Datei", "--label", r"name:_(OK|NOK)\."),
        *("--group", r"lot=name:_los(\d+)"),
    )
    assert result["num_train"] + result["num_val"] + result["num_test"] == 80
    assert r"80 names are written with backslashes, such as linie0\teil000" in result["log"]
    facts = json.loads((Path(result["uri"]) / "bundle.json").read_text())
    assert facts["class_names"] == ["NOK", "OK"]
    assert facts["training"]["num_groups"] == 10
    # Scored from the same list.
    scored = _run(
        capsys,
        *("score", "--source", str(table), "--columns", "uri=Datei", "--model", result["model"]),
        *("--output", str(data.parent / "out"), "--num-decoders", "1", "--device", "cpu"),
    )
    assert (scored["rows"], scored["rows_ok"]) == (80, 80)
