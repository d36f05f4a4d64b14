"""Labels in files beside the images of a container, as WebDataset has them: a.jpg, a.cls.

In: the members of a container, in any order. Out: for each image the cells that the files of its
name hold, and which members are no images. Invariant: a file belongs to an image by its name, never
by its place: a.cls to a.png and to a.left.png, wherever each of them lies.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from imgcls.errors import SourceError
from imgcls.image.outcome import says_image
from imgcls.sources.located import Image, access_to, in_reading_order, request_for
from imgcls.sources.members import Member
from imgcls.storage.json_text import parse_json

# What may hold a label, in the order in which it is believed.
_SUFFIXES: Final = ("cls", "json", "txt")
_MAX_BYTES: Final = 1 << 20
_AGAIN: Final = re.compile(r"#[0-9]+$")

_log = logging.getLogger(__name__)


@dataclass
class Beside:
    """What lies beside the images of one container.

    Args:
        files: By the number of an image, the files of its name, by suffix.
        sample: By the number of an image, what WebDataset calls its key.
        no_images: The numbers of members that are no images, and why.
        unused: Files of labels without an image.
    """

    files: dict[int, dict[str, Member]] = field(default_factory=dict)
    sample: dict[int, str] = field(default_factory=dict)
    no_images: dict[int, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def find_beside(members: Sequence[Member], meant: Iterable[int]) -> Beside:
    """Match the files beside images with the images that they are of.

    Args:
        members: All of one container.
        meant: The numbers of those that are asked for.

    Raises:
        SourceError: two files of one name and suffix: nobody knows which of them counts.
    """
    by_base, twice = _files_of_labels(members)
    number_of = {str(members[n].name): n for files in by_base.values() for n in files.values()}
    found, by_sample = Beside(), defaultdict[str, list[int]](list)
    for number in meant:
        name = _once(str(members[number].name))
        if not by_base or is_of_labels(name):
            continue
        base = next((base for base in _bases(name) if base in by_base), None)
        if base is not None:
            if base in twice:
                raise SourceError(
                    f"{members[number].container.uri} holds {twice[base]} twice: nobody knows "
                    f"which is the label of {name}; pack it again"
                )
            files = {suffix: members[n] for suffix, n in by_base[base].items()}
            found.files[number], found.sample[number] = files, base
            by_sample[base].append(number)
    for numbers in by_sample.values():
        are_images = [says_image(_once(str(members[n].name))) for n in numbers]
        for number, is_image in zip(numbers, are_images, strict=True):
            if any(are_images) and not is_image:
                found.no_images[number] = "beside an image of its name, and not one itself"
    if found.files:
        found.no_images |= dict.fromkeys(number_of.values(), "a file of labels beside the images")
        used = {str(member.name) for files in found.files.values() for member in files.values()}
        found.unused = [name for name in number_of if name not in used]
    return found


def _files_of_labels(
    members: Sequence[Member],
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Return the numbers of files that may hold labels, by name and suffix; those of them twice."""
    found, twice = dict[str, dict[str, int]](), dict[str, str]()
    for number, member in enumerate(members):
        name = _once(str(member.name))
        base, _, suffix = name.rpartition(".")
        if not base or not is_of_labels(name):
            continue
        of_base = found.setdefault(base, {})
        if suffix.lower() in of_base:
            twice[base] = name
        of_base[suffix.lower()] = number
    return found, twice


def is_of_labels(name: str) -> bool:
    """Tell whether a file may hold the label of an image beside it, by its name."""
    return _once(name).lower().rpartition(".")[2] in _SUFFIXES


def _once(name: str) -> str:
    """Return a name as the archive has it, also where it has it twice; see `UniqueNames`."""
    return _AGAIN.sub("", name)


def _bases(name: str) -> Iterable[str]:
    """Yield what a label beside this image may be called, the longest first."""
    folder, slash, file = name.rpartition("/")
    parts = file.split(".")
    for end in range(len(parts) - 1, 0, -1):
        yield f"{folder}{slash}{'.'.join(parts[:end])}"


def read_beside(members: Sequence[Member]) -> dict[int, Mapping[str, Any]]:
    """Return the cells of files beside images, by the number of the file.

    a.cls gives the cell cls, a.txt the cell txt, a.json the fields of its object.

    Raises:
        SourceError: one is not text, or not JSON, or larger than a label is.
        StorageError: as for `get_images`.
    """
    images = [Image(member.container.uri, member) for member in members]
    found = dict[int, Mapping[str, Any]]()
    requests = in_reading_order(request_for(n, image) for n, image in enumerate(images))
    for number, data in access_to(images).read(requests) if images else ():
        member = members[number]
        where = f"{member.container.uri}/{member.name}"
        if not isinstance(data, bytes):
            raise SourceError(f"{where} cannot be read: {data}") from data
        if len(data) > _MAX_BYTES:
            raise SourceError(f"{where} holds {len(data):,} bytes: too many for a label")
        found[number] = _cells(data, where)
    return found


def _cells(data: bytes, where: str) -> Mapping[str, Any]:
    suffix = where.rpartition(".")[2].lower()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not UTF-8: {error}") from error
    if suffix != "json":
        return {suffix: text.strip() or None}
    value = parse_json(text, where, SourceError)
    return value if isinstance(value, dict) else {"label": value}


def tell_beside(root: str, several: Mapping[str, Sequence[str]], unused: Sequence[str]) -> None:
    """Say what of the files beside images may be other than was meant.

    Args:
        root: Of the data.
        several: Samples with several images, and the names of these.
        unused: Files of labels without an image.
    """
    if several:
        names = next(iter(several.values()))
        _log.warning(
            "%d samples of %s hold several images (such as %s): each is an image of its label, and "
            "they stay on one side of the split. --exclude '*.SUFFIX' leaves some out",
            len(several), root, ", ".join(names),
        )  # fmt: skip
    if unused:
        _log.warning(
            "%s: %d files of labels have no image of their name, such as %s",
            root, len(unused), unused[0],
        )  # fmt: skip
