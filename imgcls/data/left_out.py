"""Rows of labelled data that nothing can be measured on, named and counted.

In: rows, and the classes of a model where there is one. Out: those with a label that it knows, and
the others. Invariant: every row is in one of the two.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from imgcls.config.selection import LeftOutByFlags, Selection
from imgcls.data.class_names import ClassNames, describe_unknown
from imgcls.data.label_manifest import MULTI_LABEL_SEPARATOR, LabelRow
from imgcls.errors import ConfigError, SourceError
from imgcls.storage.access import head_many
from imgcls.storage.info import ObjectInfo

_NUM_NAMED = 10  # images that a result names one by one

_log = logging.getLogger(__name__)


@dataclass
class LeftOut:
    """Rows of DATA that nothing could be measured on."""

    unlabelled: list[str] = field(default_factory=list)
    """Images without a label."""
    unknown: dict[str, list[str]] = field(default_factory=dict)
    """Images by a label that the model does not know."""

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the first few names, as values for JSON."""
        return {
            "num_without_label": len(self.unlabelled),
            "without_label": self.unlabelled[:_NUM_NAMED],
            "num_unknown_label": sum(map(len, self.unknown.values())),
            "unknown_labels": {name: len(uris) for name, uris in sorted(self.unknown.items())},
        }

    def tell(self, data: str) -> None:
        """Say in the log what was left out."""
        if self.unlabelled:
            _log.warning(
                "%s: %d rows without a label are left out, such as %s",
                data, len(self.unlabelled), self.unlabelled[0],
            )  # fmt: skip
        for name, uris in sorted(self.unknown.items()):
            _log.warning(
                "%s: the model does not know %r: %d rows are left out, such as %s",
                data, name, len(uris), uris[0],
            )  # fmt: skip


def leave_out(
    rows: list[LabelRow], class_names: ClassNames | None, multi_label: bool, data: str
) -> tuple[list[LabelRow], LeftOut]:
    """Return the rows that have a label which a model knows, and the others.

    Raises:
        ConfigError: there are no others.
    """
    left, kept = LeftOut(), list[LabelRow]()
    for row in rows:
        names = split_label(row.label, multi_label)
        unknown = names - set(class_names.names) if class_names is not None else frozenset[str]()
        if not multi_label and not row.label.strip():
            left.unlabelled.append(row.uri)
        elif unknown:
            left.unknown.setdefault(min(unknown), []).append(row.uri)
        else:
            kept.append(row)
    if not kept:
        if class_names is not None and left.unknown:
            refuse_unknown(frozenset(left.unknown), class_names, data)
        raise ConfigError(f"{data}: none of {len(rows)} rows has a label")
    left.tell(data)
    return kept, left


def split_label(label: str, multi_label: bool) -> frozenset[str]:
    """Return the class names that a manifest's label holds: itself, or those joined by "|"."""
    if not multi_label:
        return frozenset([label])
    return frozenset(label.split(MULTI_LABEL_SEPARATOR)) if label else frozenset()


def refuse_unknown(found: frozenset[str], class_names: ClassNames, data: str) -> None:
    """Refuse class names that a model does not have.

    Raises:
        ConfigError: names them, and those that it has.
    """
    unknown = sorted(found - set(class_names.names))
    if unknown:
        raise ConfigError(
            f"{data} holds classes that the model does not know: "
            f"{describe_unknown(unknown, class_names.names)}"
        )


def select_rows(rows: list[LabelRow], selection: Selection, data: str) -> list[LabelRow]:
    """Return the rows of a manifest that the flags ask for, and say how many they leave out.

    Raises:
        SourceError: they leave none.
        AccessDeniedError, StorageError: for --since, as for `head_many`.
    """
    if selection.is_all:
        return rows
    heads: Iterable[object] = repeat(None)
    if selection.since:
        heads = head_many([row.uri for row in rows])
    kept, left_out = list[LabelRow](), LeftOutByFlags()
    for row, head in zip(rows, heads, strict=False):
        changed_at = head.last_modified if isinstance(head, ObjectInfo) else None
        if flag := selection.left_out_by(row.key, changed_at):
            left_out.add(flag, row.uri)
        else:
            kept.append(row)
    for line in left_out.lines():
        _log.info("%s", line)
    if not kept:
        raise SourceError(f"{data}: no row is left: {'; '.join(left_out.lines())}")
    return kept
