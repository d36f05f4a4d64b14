"""Names of classes and files do nothing, in whatever medium they are shown."""

import csv
import io
import json
import logging
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from imgcls import inert, logs
from imgcls.cli import main
from imgcls.data.label_manifest import LabelRow, Roles, read_manifest, read_uris, write_manifest
from imgcls.data.leaks import Leak, leaks_from_csv, leaks_to_csv
from imgcls.inert import from_csv, in_csv, in_log, in_log_lines, in_markdown, in_picture
from imgcls.model.card.model_card import model_card
from imgcls.operations.follow import JobLog
from imgcls.runs.run import Run
from imgcls.scoring.reporting.run_log import RunLog
from imgcls.terminal.result import Out
from imgcls.training.finish.plots import confusion
from tests.scoring.tiny import make_bundle

HOSTILE = [
    "\x1b[2J\x1b[31mred", "two\nlines", "a\rb", "=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", "\t=1",
    "<script>alert(1)</script>", "![x](http://evil/x.png)", "[x](javascript:1)", "# heading",
    "`code`", "$\\frac{1}{0}$", "$unbalanced", "\u202egnp.exe", "zero\u200bwidth", "\u2028line",
    "| cell |", "**bold**", "'=1", "''", "a\\x1b", "---", "&lt;", "\x9b31m", "www.evil.com", "\x07",
]  # fmt: skip
ACTIVE = {"Cc", "Cf", "Zl", "Zp"}


def active(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ACTIVE}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_log_line_stays_one_line_without_escape_codes(name: str) -> None:
    assert not active(in_log(name))
    assert in_log("Überlänge 日本 a b") == "Überlänge 日本 a b"
    assert in_log_lines(f"x{name}\ny").count("\n") == 1 + name.count("\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_every_log_handler_makes_names_inert(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logs.configure()
    log = logging.getLogger("imgcls.test")
    with RunLog() as run_log:
        run_log.belongs_to(Run(str(tmp_path), "night"))
        log.warning("class %s", name)
        try:
            raise ValueError(name)
        except ValueError:
            log.exception("unexpected %s", name)
    [written] = (tmp_path / "_runs" / "night" / "logs").iterdir()
    for text in (capsys.readouterr().err, written.read_text()):
        assert active(text) == {"\n"}
        assert sum("class " in line for line in text.splitlines()) == 1
    stream = io.StringIO()
    JobLog(stream).write_at(0, f"{name}\n")  # what a job on a cluster wrote
    assert active(stream.getvalue()) == {"\n"}


@pytest.mark.parametrize("name", HOSTILE)
def test_results_and_refused_flags_are_inert(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Out().show({"message": name})
    line = capsys.readouterr().out
    assert active(line) == {"\n"}
    assert json.loads(line)["message"] == name
    with pytest.raises(SystemExit):
        main([name])
    assert active(capsys.readouterr().err) <= {"\n"}


@pytest.mark.parametrize("name", HOSTILE)
def test_spreadsheets_see_no_formula_and_the_name_comes_back(name: str, tmp_path: Path) -> None:
    assert from_csv(in_csv(name)) == name
    file = name.replace("/", ":")
    row = LabelRow(f"/d/{file}", f"{name}/1.png", name, group=name, slice_name=name)
    frozen = write_manifest([row], slice_by="scanner")
    leaks = [Leak("group", name, f"/a/{name}", "train", f"/b/{name}", "test")]
    for data in (frozen, leaks_to_csv(leaks)):
        text = data.decode()
        assert active(text) == {"\n"}
        cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert leaks_from_csv(leaks_to_csv(leaks)) == leaks
    (tmp_path / "split.csv").write_bytes(frozen)
    [back] = read_manifest(str(tmp_path / "split.csv"), roles=Roles.parse(slice_by="scanner"))
    assert (back.uri, back.key, back.label) == (row.uri, row.key, row.label)
    assert (back.group, back.slice_name) == (name.strip(), name.strip())
    assert read_uris(str(tmp_path / "split.csv")) == [row.uri]


@pytest.mark.parametrize("cell", ["'tis", "'", "''", "it's", "", "plain", "'a\\x"])
def test_cells_that_were_never_escaped_are_read_as_they_are(cell: str) -> None:
    assert from_csv(cell) == cell


@pytest.mark.parametrize("name", HOSTILE)
def test_the_model_card_shows_names_and_does_nothing(name: str) -> None:
    bundle = make_bundle(num_classes=2)
    per_class = {n: {"precision": 1.0, "recall": 1.0, "support": 1} for n in (name, "other")}
    facts = {
        "arch": bundle.arch,
        "class_names": [name, "other"],
        "decode_spec": {},
        "preprocess_spec": {},
        "metrics": {"test": {"per_class": per_class, "slices": {}}},
        "split_digest": "0",
        "training": {"config": {"name": name, "data": f"/x/{name}"}, "counts": {"test": {name: 1}}},
        "calibration": None,
        "multi_label": False,
        "created_at": "now",
    }
    lines = model_card(facts).splitlines()
    assert not active("".join(lines))
    plain = model_card(json.loads(json.dumps(facts).replace(json.dumps(name)[1:-1], "plain")))
    assert len(lines) == len(plain.splitlines())
    text = "\n".join(lines)
    for raw in ("<script", "![x]", "[x](java", "**bold**", "| cell |"):
        assert raw not in text
    html = _render(text)
    for tag in ("<script", "<img", "<a ", "<code>alert", "<strong>bold"):
        assert tag not in html


def _render(text: str) -> str:
    markdown = pytest.importorskip("markdown_it")
    return str(markdown.MarkdownIt("commonmark").enable("table").render(text))


@pytest.mark.parametrize("name", HOSTILE)
def test_pictures_draw_names_as_text(name: str) -> None:
    assert not active(in_picture(name, 24))
    png = confusion([[1, 0], [0, 1]], [name, "other"])
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", HOSTILE)
def test_kubernetes_gets_names_as_values(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["train", "--data", "s3://b/d", "--registry", "s3://b/r", "--name", "m",
           f"--positive-class={name}", "--target-recall=0.9"]  # fmt: skip
    flags = ["--name", "n", "--image", "i:1", "--service-account", "s", "--schedule", "0 2 * * *"]
    assert main(["kubernetes", "cronjob", *flags, *job]) == 0
    text = capsys.readouterr().out
    assert active(text) == {"\n"}
    parsed = yaml.safe_load(text)
    pod = parsed["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert f"--positive-class={name}" in pod["containers"][0]["command"]
    assert set(parsed) == {"apiVersion", "kind", "metadata", "spec"}


def test_every_medium_is_tried_here() -> None:
    media = {n for n, f in vars(inert).items() if isinstance(f, Callable) and n.startswith("in_")}  # type: ignore[arg-type]
    assert media == {"in_log", "in_log_lines", "in_markdown", "in_csv", "in_picture"}
    assert in_markdown("class_a-1 (x)") == "class_a-1 (x)"


def test_a_training_on_hostile_class_names_says_them_safely(tmp_path: Path) -> None:
    names = ["\x1b[31mred", "=cmd|x"]
    rng = np.random.default_rng(0)
    from imgcls.image.png import encode_png

    for number, name in enumerate(names):
        for i in range(8):
            path = tmp_path / "data" / name / f"{number}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)))
    done = subprocess.run(
        [sys.executable, "-m", "imgcls.cli", "train", "--data", str(tmp_path / "data"),
         "--registry", str(tmp_path / "reg"), "--name", "m", "--arch", "simple_cnn", "--epochs",
         "1", "--image-px", "16", "--batch-size", "4", "--num-decoders", "1"],
        capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert active(done.stderr + done.stdout) == {"\n"}
    assert "x1b[31mred" in done.stderr
    for path in (tmp_path / "reg").rglob("*"):
        if path.suffix in (".md", ".csv", ".json", ".jsonl"):
            assert active(path.read_text()) <= {"\n"}, path
