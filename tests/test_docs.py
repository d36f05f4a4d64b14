"""What README and ARCHITECTURE.md say of the code is checked against the code."""

import re
from dataclasses import fields
from pathlib import Path

import yaml

from imgcls.cli import COMMANDS
from imgcls.schema import Status, prediction_schema

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "imgcls" / "ARCHITECTURE.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_names_every_command_and_no_other() -> None:
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `imgcls (\w+)", table, re.MULTILINE)) == set(COMMANDS)


def test_readme_explains_every_column_and_status() -> None:
    columns = README.partition("## Output columns")[2].partition("\n## ")[0]
    every = prediction_schema(
        multi_label=True,
        is_calibrated=True,
        has_operating_point=True,
        write_probs=True,
        write_embedding=True,
    )
    for name in every.names:
        assert f"`{name}`" in columns
    for status in Status:
        assert f"`{status}`" in columns


def test_ci_runs_the_readme_line_for_the_tests() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n 2"
    assert install in README
    assert "python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[test]'" in CI
    assert CI.rstrip().endswith(".venv/bin/pytest -n 2")


def test_flags_in_readme_exist() -> None:
    for command, flags in re.findall(r"imgcls ([a-z]+)((?: +\\?\n? *--[^`\n]*)+)", README):
        names = {f"--{field.name.replace('_', '-')}" for field in fields(COMMANDS[command].config)}
        assert set(re.findall(r"--[a-z0-9-]+", flags)) <= names, command


def test_architecture_lists_every_module_once() -> None:
    tree = ARCHITECTURE.partition("## The tree")[2].partition("\n## ")[0]
    listed = re.findall(r"\b(\w+\.py)\b", tree)
    packages = ("imgcls", "jobs")
    modules = [
        path.name
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(listed) == sorted(modules)
    assert len(ARCHITECTURE.splitlines()) <= 120


def test_top_level_holds_what_the_design_allows() -> None:
    allowed = {"pyproject.toml", "README.md", "cluster.yaml", "jobs", "imgcls", "tests", "LICENSE"}
    import subprocess

    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {path.partition("/")[0] for path in tracked}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_linters_of_pre_commit_are_those_of_ci() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        command = hook["entry"].removeprefix(".venv/bin/").split(" --fix")[0]
        assert command.split()[0] in CI
