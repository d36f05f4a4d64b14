"""What README, its pages and ARCHITECTURE.md say of the code is checked against the code."""

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from imgcls.cli import COMMANDS, parse_job
from imgcls.config.paths import flag_of
from imgcls.schema import WIDEST_SCHEMA, Status

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "imgcls" / "ARCHITECTURE.md").read_text(encoding="utf-8")
DOCS = ROOT / "imgcls" / "docs"
PAGES = {"README.md": README} | {
    page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))
}
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_names_every_command_and_no_other() -> None:
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `imgcls (\w+)", table, re.MULTILINE)) == set(COMMANDS)


def test_reference_explains_every_column_and_status() -> None:
    columns = PAGES["reference.md"].partition("## Output columns")[2].partition("\n## ")[0]
    for name in WIDEST_SCHEMA.names:
        assert f"`{name}`" in columns
    for status in Status:
        assert f"`{status}`" in columns


def test_ci_runs_the_readme_line_for_the_tests() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n 2"
    assert install in README
    assert "python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[test]'" in CI
    assert CI.rstrip().endswith(".venv/bin/pytest -n 2")


def command_lines(page: str) -> list[list[str]]:
    """Every line of `imgcls` in the indented blocks of a page, as words: [command, flag, ...]."""
    blocks = page.replace("\\\n", " ")
    lines = re.findall(r"^    (?:[0-9*]+ [0-9* ]+ )?imgcls (.*)$", blocks, re.MULTILINE)
    return [shlex.split(line.partition(" | ")[0], comments=True) for line in lines]


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_are_taken_as_typed(name: str) -> None:
    found = command_lines(PAGES[name])
    assert found or name in ("stores.md", "reference.md")
    for command, *arguments in found:
        values = parse_job(command, arguments)
        if "job" in values:
            parse_job(values["job"], values["arguments"])
        COMMANDS[command].config(**values)


@pytest.mark.parametrize("name", PAGES)
def test_flags_in_the_text_of_a_page_exist(name: str) -> None:
    flags = {"--help", "--json"} | {
        flag_of(f"{no}{field.name}")
        for command in COMMANDS.values()
        for field in fields(command.config)
        for no in ("", "no-")
    }
    quoted = " ".join(
        re.findall(r"`([^`]+)`", re.sub(r"^    .*$", "", PAGES[name], flags=re.MULTILINE))
    )
    assert set(re.findall(r"(?<![\w-])--[a-z0-9-]+", quoted)) <= flags


def test_links_of_the_pages_lead_somewhere() -> None:
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else DOCS
        for link in re.findall(r"\]\(([^)]+)\)", text):
            path, _, section = link.partition("#")
            target = (folder / path).resolve() if path else folder / name
            assert target.exists(), (name, link)
            if target.suffix == ".png":
                continue
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = [
                re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles
            ]
            assert not section or section in anchors, (name, link)


def test_every_page_is_linked_from_readme_and_goes_into_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package_data = project["tool"]["setuptools"]["package-data"]["imgcls"]
    for page in DOCS.iterdir():
        path = page.relative_to(ROOT / "imgcls")
        assert any(path.match(pattern) for pattern in package_data), path
        assert f"(imgcls/{path})" in README
    assert len(README.splitlines()) < 200


def listed_paths(tree: str) -> list[str]:
    """The whole paths of the modules in the tree of ARCHITECTURE: its folders are indented."""
    folders: list[tuple[int, str]] = []
    paths = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        if folder := re.match(r" *([a-z0-9_]+/) ", f"{line} "):
            folders.append((indent, folder[1]))
        parent = "".join(name for _, name in folders)
        paths += [f"{parent}{name}" for name in re.findall(r"\b\w+\.py\b", line)]
    return paths


def test_architecture_lists_every_module_once_in_its_room() -> None:
    tree = ARCHITECTURE.partition("## The tree")[2].partition("\n## ")[0]
    modules = [
        path.relative_to(ROOT).as_posix()
        for package in ("imgcls", "jobs")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(listed_paths(tree)) == sorted(modules)
    assert len(ARCHITECTURE.splitlines()) <= 240


def test_a_file_listed_in_the_wrong_room_is_noticed() -> None:
    tree = "  imgcls/   all\n    a/   first: x.py\n      y.py   more\n    b/   second\n      z.py\n"
    assert listed_paths(tree) == ["imgcls/a/x.py", "imgcls/a/y.py", "imgcls/b/z.py"]
    moved = tree.replace("      y.py   more\n    b/   second\n", "    b/   second\n      y.py\n")
    assert "imgcls/b/y.py" in listed_paths(moved)
    assert "imgcls/a/y.py" not in listed_paths(moved)


def place_of(path: str) -> Path | None:
    """The file or folder that ARCHITECTURE means: below imgcls/, or below the root."""
    return next((at for at in (ROOT / "imgcls" / path, ROOT / path) if at.exists()), None)


def test_paths_and_names_in_architecture_exist() -> None:
    quoted = re.findall(r"`([^`\n]+)`", ARCHITECTURE)
    paths = [text for text in quoted if re.fullmatch(r"[\w./]*(?:/|\.(?:py|md|toml|yaml))", text)]
    assert len(paths) > 50
    assert [path for path in paths if place_of(path) is None] == []
    # "`path` (`NAME`, `NAME`)": the file has such a name.
    named = re.findall(r"`([\w./]+\.py)`\s+\(((?:`\w+`,?\s*)+)\)", ARCHITECTURE)
    assert len(named) > 20
    for path, names in named:
        text = (place_of(path) or ROOT).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^ *(?:(?:def|class) )?{name}\b", text, re.MULTILINE), (path, name)


def test_layers_and_whitelist_of_architecture_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers, ray = (
        next(item for item in contracts["contracts"] if item["name"].startswith(start))
        for start in ("Each room", "Ray only")
    )
    section = ARCHITECTURE.partition("## Layers")[2].partition("\n## ")[0]
    written = " ".join(re.findall(r"^    (.*)$", section, re.MULTILINE)).split(">")
    assert [" ".join(layer.split()) for layer in written] == [
        layer.replace("imgcls.", "") for layer in layers["layers"]
    ]
    sentence = section.partition("Ray only in ")[2].partition(". Pillow")[0]
    assert set(re.findall(r"`(.*?)`", sentence)) == {
        f"{item.removeprefix('imgcls.').removesuffix(' -> ray').replace('.', '/')}.py"
        for item in ray["ignore_imports"]
    }


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
