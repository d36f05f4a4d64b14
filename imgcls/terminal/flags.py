"""Flags from the config class of a job, with their help.

In: a config class. Out: a parser's arguments. Invariants: help text exists once, under the field;
required flags stand first, inherited ones never before those of the command itself.
"""

import argparse
import ast
import difflib
import shutil
import textwrap
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args, get_origin, get_type_hints

from imgcls.config import labelling, models, operations, scoring, source_options, training
from imgcls.config.paths import flag_of
from imgcls.inert import in_log
from imgcls.terminal.flag_groups import EXAMPLES, GROUPED, GROUPS, OTHERS, REQUIRED

_GROUP_OF: Final = {name: title for title, names in GROUPS.items() for name in names}


class _Append(argparse.Action):
    """A flag that may be given several times; its value is the tuple of them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401  (argparse's)
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lines of at most 100 characters, the text of a flag close to its name."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, 100)
        super().__init__(prog, max_help_position=28, width=max(columns, 40) - 2)


class Parser(argparse.ArgumentParser):
    """Argparse, with errors in one line that names the value and the way out."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (argparse's)
        # Examples keep their lines; a help text is filled all the same.
        super().__init__(formatter_class=_Formatter, **settings)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {in_log(message)}; see {self.prog} --help\n")

    def checked(self, values: dict[str, Any], unknown: list[str]) -> dict[str, Any]:
        """Return the values, or exit 2 for an unknown flag, then for a missing one."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        for word in unknown:
            near = difflib.get_close_matches(word.split("=")[0], flags, n=1)
            self.error(f"unknown {word}" + (f", did you mean {near[0]}?" if near else ""))
        missing = [name for name, value in values.items() if value is MISSING]
        if missing:
            self.error("missing " + ", ".join(map(flag_of, missing)))
        return values


@cache
def _read_docs() -> dict[tuple[str, str], str]:
    """Read the docstrings under the fields of configs, which Python itself does not keep."""
    docs = {}
    modules = (labelling, models, operations, scoring, source_options, training)
    sources = (Path(str(module.__file__)) for module in modules)
    trees = (ast.parse(source.read_text(encoding="utf-8")) for source in sources)
    for cls in (node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)):
        for target, text in zip(cls.body, cls.body[1:], strict=False):
            match target, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(doc))),
                ):
                    docs[cls.name, name] = " ".join(doc.split())
    return docs


def add_flags(parser: argparse.ArgumentParser, config: type, name: str) -> None:
    """Add the flags of a job, those that it cannot do without first.

    Args:
        parser: of the job.
        config: its config class.
        name: of the command; there are examples for some.
    """
    hints, docs = get_type_hints(config), _read_docs()
    groups = {field.name: group_of(field, name) for field in _all_fields(config)}
    is_grouped = name in GROUPED
    order = [*GROUPS, OTHERS]
    added: dict[str, Any] = {}
    for field in sorted(_all_fields(config), key=lambda field: order.index(groups[field.name])):
        title = groups[field.name]
        if is_grouped and title not in added:
            added[title] = parser.add_argument_group(title)
        docs_of = (docs.get((cls.__name__, field.name)) for cls in config.__mro__)
        text = next(filter(None, docs_of)).replace("%", "%%")
        if field.default is MISSING:
            text = text if is_grouped else f"{text} (required)"
        elif field.default not in ("", False, ()):
            text = f"{text} (default: {field.default})"
        _add_flag(added.get(title, parser), field, hints[field.name], text)
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON on a terminal, too"
    )
    if is_grouped:
        needed = [field for field in _all_fields(config) if field.default is MISSING]
        words = (f"{flag_of(field.name)} {field.name.upper()}" for field in needed)
        parser.usage = " ".join([parser.prog, *words, "[further flags]"])
    if name in EXAMPLES:
        shown = "\n\n".join(f"  {about}:\n    {_folded(line)}" for about, line in EXAMPLES[name])
        parser.epilog = f"examples:\n{shown}"


def _folded(line: str) -> str:
    """Return a command as a shell takes it, in lines that fit."""
    parts = textwrap.wrap(line, 88, break_long_words=False, break_on_hyphens=False)
    return " \\\n      ".join(parts)


def _all_fields(config: type) -> list[Field[Any]]:
    """Return the fields in order, inherited ones that a command does not need by itself last."""
    own = set(config.__annotations__)
    return sorted(
        fields(config), key=lambda field: (field.default is not MISSING, field.name not in own)
    )


def group_of(field: Field[Any], command: str) -> str:
    """Return the title of the group that a flag stands in."""
    if field.default is MISSING:
        return REQUIRED
    return _GROUP_OF.get(f"{command}.{field.name}") or _GROUP_OF.get(field.name, OTHERS)


def _add_flag(parser: Any, field: Field[Any], hint: Any, text: str) -> None:  # noqa: ANN401
    if field.metadata.get("positional"):
        parser.add_argument(field.name, help=text, **_positional(field, hint))
        return
    parser.add_argument(
        flag_of(field.name), dest=field.name, help=text, default=field.default, **_kind(hint)
    )


def _kind(hint: Any) -> dict[str, Any]:  # noqa: ANN401 - a type annotation has no type
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"action": _Append, "metavar": "TEXT"}
    return {"type": hint, "metavar": {str: "TEXT", int: "N", float: "X"}[hint]}


def _positional(field: Field[Any], hint: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """Return how argparse takes an argument without a flag: one, one or none, or all the rest."""
    shown = {"metavar": field.name.upper().replace("_", " ")}
    if get_origin(hint) is tuple:
        return shown | {"nargs": argparse.REMAINDER}
    if field.default is not MISSING:
        choices = {"choices": get_args(hint)} if get_origin(hint) is Literal else shown
        return choices | {"nargs": "?", "default": field.default}
    return {"choices": get_args(hint)} if get_origin(hint) is Literal else shown
