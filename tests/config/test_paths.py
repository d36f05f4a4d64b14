"""Places are canonical from the moment that a config is built, however they are spelled."""

import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import pytest

from imgcls.cli import COMMANDS
from imgcls.config.models import EvaluateConfig, ExportConfig
from imgcls.config.operations import SubmitConfig
from imgcls.config.paths import (
    Config,
    absolute_path,
    canonical_uri,
    find_relative,
    flag_of,
    path_flags,
    refuse_empty,
)
from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.storage.uri import join

# Every other text of a flag. A new flag that takes a path or URI belongs into config/paths.py; one
# that does not, here.
NO_PLACES = {
    "name", "arch", "num_workers", "checkpoint_every", "slice_by", "positive_class",
    "mlflow_experiment", "run_id", "date", "alias", "older_than", "image", "service_account",
    "pictures_older_than", "expires", "unit", "first", "second",
    "namespace", "schedule", "time_zone", "deadline",
    "group", "label", "columns", "since", "image_column", "gray_window", "keep", "memory",
    "token_secret", "address",
    "submission_id",
    "license", "image_px", "input_range", "mean", "std", "output_name",
}  # fmt: skip


def every_place() -> list[tuple[type[Config], str]]:
    configs = {command.config for command in COMMANDS.values()}
    ordered = sorted(configs, key=lambda config: config.__name__)
    return [(config, name) for config in ordered for name in path_flags(config)]


def build(config: type[Config], **given: str) -> Config:
    """Build a config with these values; what else it requires is made up."""
    required = {f.name: "x" for f in fields(config) if f.default is MISSING}
    return config(**{**required, **given})


def test_every_flag_that_takes_text_says_whether_it_names_a_place() -> None:
    for command in COMMANDS.values():
        assert issubclass(command.config, Config), command.config
        hints = get_type_hints(command.config)
        for field in fields(command.config):
            if hints[field.name] is str:
                is_place = field.name in path_flags(command.config)
                assert is_place != (field.name in NO_PLACES), (command.config, field.name)


@pytest.mark.parametrize(("config", "name"), every_place())
def test_every_place_is_the_same_from_every_folder_and_in_every_spelling(
    config: type[Config], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b" / "c").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    monkeypatch.setenv("HOME", str(tmp_path))
    absolute = f"{tmp_path}/a b/x.onnx@v1"
    spellings = {
        "x.onnx@v1": "a b", "./x.onnx@v1": "a b", "../x.onnx@v1": "a b/c",
        "../a b//x.onnx@v1": "a b",
        "a b/./x.onnx@v1": ".", "~/a b/x.onnx@v1": "a b/c", absolute: "elsewhere",
        "link/../../a b/x.onnx@v1": ".", "c/../x.onnx@v1": "a b",
    }  # fmt: skip
    found = set()
    for text, folder in spellings.items():
        monkeypatch.chdir(tmp_path / folder)
        once = build(config, **{name: text})
        again = build(config, **{name: getattr(once, name)})
        assert getattr(again, name) == getattr(once, name)
        found.add(getattr(once, name).removeprefix("file://"))
    assert found == {absolute}
    assert getattr(build(config, **{name: Path(absolute)}), name).endswith(absolute)  # type: ignore[arg-type]


@pytest.mark.parametrize(("config", "name"), every_place())
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("C:\\scans\\x", "write a Linux path"),
        ("x\r", "control character"),
        ("x\udcff", "not UTF-8"),
        ("  ", "names nothing"),
        ("a\0b", "NUL"),
        ("~nobody-of-this-name/x", "no such user"),
    ],
)
def test_what_could_only_be_a_slip_is_refused_by_flag_and_with_the_way_out(
    config: type[Config], name: str, text: str, hint: str
) -> None:
    if name == "weights" and not {"/", "@"} & set(text):
        text = f"x/{text}"  # else it is a name of torchvision's
        if hint in ("names nothing", "write a Linux path"):
            return
    if name == "mlflow_uri" and text.startswith(("s3:", "C:")):
        return  # MLflow has schemes of its own; it is asked before the first step
    with pytest.raises(ConfigError, match=hint) as caught:
        build(config, **{name: text})
    assert flag_of(name) in str(caught.value)


@pytest.mark.parametrize(("config", "name"), every_place())
@pytest.mark.parametrize("text", ["file:///x/y", "file:x/y", "ftp://host/x", "S3://b/x"])
def test_other_schemes_are_refused_where_only_stores_and_paths_are_read(
    config: type[Config], name: str, text: str
) -> None:
    if name == "mlflow_uri":
        return
    with pytest.raises(ConfigError, match=r"without file:|is not a scheme"):
        build(config, **{name: text})


@pytest.mark.parametrize(("config", "name"), every_place())
@pytest.mark.parametrize("text", ["http://host/x", "https://host/x.csv", "sftp://me@host/x"])
def test_servers_that_are_only_read_hold_sources_and_labels_and_nothing_else(
    config: type[Config], name: str, text: str
) -> None:
    if name == "mlflow_uri":
        return
    if name in ("source", "data", "labels", "also"):
        assert getattr(build(config, **{name: text}), name) == text
        return
    with pytest.raises(ConfigError, match="holds images and manifests only"):
        build(config, **{name: text})


@pytest.mark.parametrize(("config", "name"), every_place())
def test_a_required_place_may_not_be_empty(config: type[Config], name: str) -> None:
    empty = build(config, **{name: ""})
    assert getattr(empty, name) == ""
    if next(f for f in fields(config) if f.name == name).default is MISSING:
        with pytest.raises(ConfigError, match=f"{flag_of(name)}: an empty path"):
            refuse_empty(empty)
        with pytest.raises(ConfigError, match="names nothing"):
            join(getattr(empty, name), "x")
    else:
        refuse_empty(empty)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://b/p/", "s3://b/p"),
        ("s3://b/", "s3://b"),
        ("s3://b/a/../b/./c d", "s3://b/a/../b/./c d"),  # a key is opaque
        ("gs://b/~", "gs://b/~"),
        ("/x/y/", "/x/y"),
    ],
)
def test_a_key_stays_as_it_is_but_for_a_slash_at_its_end(given: str, expected: str) -> None:
    assert canonical_uri(given, "/w") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("in/*.png", "/w/in/*.png"),
        ("../in/**/x*.png", "/in/**/x*.png"),
        ("*.png", "/w/*.png"),
        ("/*", "/*"),
        ("s3://b/*/x", "s3://b/*/x"),
        ("s3://b/in//**/", "s3://b/in//**"),
    ],
)
def test_the_folders_before_a_star_are_canonical(
    source: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/w")
    assert ScoreConfig(source=source, model="m", output="o").source == expected


def test_two_dots_behind_a_star_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'\.\.' behind a '\*'"):
        ScoreConfig(source="a/*/../b", model="m", output="o")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("DEFAULT", "DEFAULT"),
        ("IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("w.pt", "/w/w.pt"),
        ("reg/m@v1", "/w/reg/m@v1"),
        ("m@v1", "/w/m@v1"),
    ],
)
def test_weights_are_a_name_or_a_place(
    weights: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/w")
    assert TrainConfig(data="d", registry="r", name="m", weights=weights).weights == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///runs.db", "sqlite:////w/runs.db"),
        ("sqlite:////x/runs.db", "sqlite:////x/runs.db"),
        ("file:./mlruns", "file:///w/mlruns"),
        ("file:///x/mlruns", "file:///x/mlruns"),
        ("mlruns", "file:///w/mlruns"),
        ("https://host:5000/x", "https://host:5000/x"),
        ("databricks", "databricks"),
    ],
)
def test_a_tracking_uri_holds_an_absolute_path(
    given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/w")
    assert TrainConfig(data="d", registry="r", name="m", mlflow_uri=given).mlflow_uri == expected


def test_a_link_before_two_dots_is_followed_as_every_other_program_does(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "data").mkdir()
    (tmp_path / "link").symlink_to("far/deep")
    path = f"{tmp_path}/link/../data"
    assert absolute_path(path) == f"{tmp_path}/far/data"
    assert Path(path).samefile(absolute_path(path))
    assert absolute_path(f"{tmp_path}/link/x") == f"{tmp_path}/link/x"


def test_a_working_folder_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="working folder was deleted"):
        EvaluateConfig(model="m", data="d")


def test_an_export_to_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--output: out/ is a folder: name a file"):
        ExportConfig(model="m", output="out/")


def test_outputs_in_the_working_folder_of_a_ray_job_are_refused_inputs_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "session_x/runtime_resources/working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="--registry reg: lies in the working directory of a Ray"):
        TrainConfig(data="d", registry="reg", name="m")
    config = TrainConfig(data="labels.csv", registry="s3://b/reg", name="m")
    assert config.data == f"{folder}/labels.csv"


def test_relative_places_among_the_flags_of_a_job_are_found() -> None:
    flags = ["--source", "in/*.png", "--model=reg/m@v1", "--output", "s3://b/o", "--output=~/out"]
    assert find_relative(ScoreConfig, flags) == [
        ("--source", "in/*.png", False),
        ("--model", "reg/m@v1", False),
        ("--output", "~/out", True),  # the last one counts
    ]
    assert find_relative(TrainConfig, ["--weights", "DEFAULT", "--data", "/x"]) == []


def test_submit_itself_takes_a_working_dir_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/w")
    assert SubmitConfig(job="score", working_dir="here").working_dir == "/w/here"
