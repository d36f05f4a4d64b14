"""What a person reads on a terminal, and a program where there is none."""

import json
from pathlib import Path

import pytest

from imgcls.model.registry import register
from imgcls.terminal.result import lines_of
from tests.scoring.tiny import make_bundle, write_images
from tests.terminal.screen import Screen, run_on_terminal


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, Screen]:
    """A run over 40 images and three files that are none, on a terminal."""
    folder = tmp_path_factory.mktemp("terminal")
    register(str(folder / "registry"), "tiny", make_bundle())
    write_images(str(folder / "images"), 40)
    for number in range(3):
        (folder / "images" / f"note {number}.txt").write_text("not an image at all")
    code, screen = run_on_terminal(
        "score", "--source", f"{folder}/images", "--model", f"{folder}/registry/tiny@v1",
        "--output", f"{folder}/out", "--executor", "local", "--run-id", "night",
        "--batch-size", "8",
    )  # fmt: skip
    return folder, code, screen


def test_a_run_ends_in_words_with_two_examples_and_its_page(
    night: tuple[Path, int, Screen],
) -> None:
    _, code, screen = night
    text = "\n".join(screen.lines)
    assert code == 0, text
    assert "43 images: 40 scored, 3 are of a format that is not read." in screen.lines
    assert "Most probable class: " in text
    assert "3 not an image, such as:" in screen.lines
    named = [line for line in screen.lines if line.startswith("  /") and "note" in line]
    assert len(named) == 2
    page = next(line for line in screen.lines if line.startswith("page "))
    assert Path(page.split(maxsplit=1)[1]).exists()
    assert "{" not in text, "no JSON for people"
    assert screen.words.count("40 scored") == 1, "the log and the result say it once"


def test_the_bar_stands_below_the_log_and_gives_way_to_a_line(
    night: tuple[Path, int, Screen],
) -> None:
    _, _, screen = night
    assert "43/43 images" in screen.words
    last = [line for line in screen.lines if "scoring" in line]
    assert len(last) == 1, last
    assert "scoring: 43/43 images" in last[0]
    assert not any("━" in line for line in screen.lines)


def test_json_is_there_on_a_terminal_for_who_asks(night: tuple[Path, int, Screen]) -> None:
    folder, _, _ = night
    code, screen = run_on_terminal("verify", "--output", f"{folder}/out", json_too=True)
    assert code == 0
    assert json.loads(screen.words.splitlines()[-1])
    code, screen = run_on_terminal("verify", "--output", f"{folder}/out")
    assert code == 0
    assert "{" not in screen.words


def test_a_failure_is_said_once(tmp_path: Path) -> None:
    code, screen = run_on_terminal("verify", "--output", f"{tmp_path}/nowhere")
    assert code == 2
    assert screen.words.count("nowhere") == 1, screen.words
    assert "{" not in screen.words


def test_imgcls_alone_is_the_help() -> None:
    code, screen = run_on_terminal()
    assert code == 0
    assert any(line.startswith("usage: imgcls") for line in screen.lines)
    assert max(map(len, screen.lines)) <= 100


def test_a_verdict_of_one_word_is_a_value_like_others() -> None:
    """That of a promotion or a comparison is no record with sentences of its own."""
    assert list(lines_of({"alias": "production", "verdict": "better", "exit_code": 0})) == [
        "alias       production",
        "verdict     better",
    ]
    told = lines_of({"lines": ["a sentence"], "verdict": "worse", "page": "p"}, ("page",))
    assert list(told) == ["", "a sentence", "", "page        p"]
