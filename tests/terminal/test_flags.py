"""The flags of the long commands stand in groups, with examples that work."""

import shlex
from dataclasses import fields

import pytest

from imgcls.cli import COMMANDS, main
from imgcls.terminal.flag_groups import EXAMPLES, GROUPED, GROUPS, OTHERS
from imgcls.terminal.flags import group_of


@pytest.mark.parametrize("command", GROUPED)
def test_every_flag_of_a_long_command_has_a_group(command: str) -> None:
    homeless = [
        field.name
        for field in fields(COMMANDS[command].config)
        if group_of(field, command) == OTHERS
    ]
    assert not homeless, "give each a place in imgcls/terminal/flag_groups.py"


@pytest.mark.parametrize("command", GROUPED)
def test_what_is_needed_stands_first_and_what_is_inherited_after_it(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    order = list(GROUPS)
    groups = [title for title in titles if title in order]
    assert groups == sorted(groups, key=order.index)
    assert max(map(len, text.splitlines())) <= 100
    where = {flag: text.find(f"\n  {flag} ") for flag in ("--model", "--data", "--also")}
    needed = [at for flag, at in where.items() if flag != "--also" and at > 0]
    assert all(at < where["--also"] or where["--also"] < 0 for at in needed)


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_commands_that_are_understood(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr("imgcls.cli._run", lambda name, _values: ran.append(name) or 0)
    for _, line in EXAMPLES[command]:
        words = shlex.split(line)
        assert main(words[words.index("imgcls") + 1 :]) == 0
    assert ran == [command] * len(EXAMPLES[command])
