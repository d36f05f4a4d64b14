"""What the names of members say: the path that a loose file would have, and a split.

In: members of containers below one root. Out: for each a key, as that of a loose file, and a path,
as filters see it. Invariant: no two members have the same key; a name such as ../x or /x leads
nowhere but below the root.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from imgcls.data.class_names import enumerate_names
from imgcls.data.folder_names import is_litter_folder, split_of
from imgcls.errors import SourceError
from imgcls.sources.members import Member, plain_name

_ROW_NUMBER = re.compile(r"[0-9]{8}")
_WORD_END = re.compile(r"[^A-Za-z]")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Names:
    """How one member is called.

    Args:
        key: What a loose file would be called below the root: without the container's own name,
            which follows only where another member of the data is called so too.
        path: The same with the name of the container: CONTAINER/MEMBER below the root.
    """

    key: str
    path: str


def name_members(
    members: Sequence[Member], root: str, *, is_single: bool, classes: Collection[str] = ()
) -> list[Names]:
    """Return how members are called.

    Args:
        members: Those of all containers of the data, each with a name.
        root: The folder that holds the containers, with a "/" at its end.
        is_single: The data are this one container. Where all of it lies in one folder, as a folder
            that was packed whole, this is no part of the keys.
        classes: Those that are known: a folder that is called so is none to leave out.
    """
    inner = [plain_name(str(member.name)) for member in members]
    if is_single and (top := _wrapper(inner, classes)):
        _log.info("all images of %s lie in its folder %s/: what is below counts", root, top)
        inner = [name.removeprefix(f"{top}/") for name in inner]
    found = list[tuple[str, bool]]()
    for member, name in zip(members, inner, strict=True):
        folder = "" if is_single else member.container.uri.removeprefix(root).rpartition("/")[0]
        is_numbered = member.place.method == "row" and bool(_ROW_NUMBER.fullmatch(name))
        found.append((f"{folder}/{name}".lstrip("/"), is_numbered and not is_single))
    count = Counter(key for key, _ in found)
    again = next((key for key, is_numbered in found if count[key] > 1 and not is_numbered), None)
    if again is not None:
        _log.info(
            "some images in several containers are called the same, such as %r: the names of their "
            "containers tell them apart", again,
        )  # fmt: skip
    return [
        Names(
            f"{key}#{_file(member)}" if is_numbered or count[key] > 1 else key,
            f"{member.container.uri.removeprefix(root)}/{member.name}",
        )
        for member, (key, is_numbered) in zip(members, found, strict=True)
    ]


def _file(member: Member) -> str:
    return member.container.uri.rpartition("/")[2]


def _wrapper(names: Sequence[str], classes: Collection[str]) -> str:
    """Return the only folder at the top, where all images lie in folders below it; "" for none."""
    split = [name.split("/") for name in names]
    meant = [parts for parts in split if not any(map(is_litter_folder, parts[:-1]))]
    tops = {parts[0] for parts in meant if len(parts) > 1 or not parts[0].startswith(".")}
    if len(tops) != 1 or not all(len(parts) > 2 or _is_text(parts[-1]) for parts in meant):
        return ""
    [top] = tops
    return "" if top in classes or split_of(top) is not None else top


def _is_text(name: str) -> bool:
    return name.startswith(".") or name.lower().endswith((".txt", ".md", ".json", ".csv"))


def splits_by_container(containers: Collection[str], root: str) -> dict[str, str]:
    """Return the split that each container's folder or name says; {} where they say none.

    train/000.tar is of train, and so is train-00000-of-00002.parquet, where others are of another
    split: a set of one split is not divided yet.

    Raises:
        SourceError: some say a split and others none, or one may mean two.
    """
    said = dict[str, str | None]()
    for uri in containers:
        folder, _, name = uri.removeprefix(root).rpartition("/")
        word = folder.partition("/")[0] if folder else _WORD_END.split(name, maxsplit=1)[0]
        said[uri] = split_of(word) if word else None
    named = {split for split in said.values() if split is not None}
    if len(named) < 2:
        return {}
    by_split = defaultdict[str | None, list[str]](list)
    for uri, split in sorted(said.items()):
        by_split[split].append(uri.removeprefix(root))
    if None in by_split:
        others = [name for split in sorted(named) for name in by_split[split]]
        raise SourceError(
            f"{root} holds containers that are named like splits ({enumerate_names(others)}) "
            f"beside others ({enumerate_names(by_split[None])}): move those away"
        )
    if "" in by_split:
        raise SourceError(
            f"{root}: {by_split[''][0]} is val to some and test to others: rename it to the one"
        )
    return {uri: str(split) for uri, split in said.items()}
