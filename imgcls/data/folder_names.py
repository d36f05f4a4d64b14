"""What names of folders and files say by themselves: a split, litter, or a work of imgcls.

In: names. Out: what they mean, or "". Invariant: a name alone never makes an image of a class
disappear unless no person gives it to one.
"""

import re

from imgcls.errors import SourceError

SPLITS = ("train", "val", "test")

# Folders that programs make beside or among those of people, by their names in lower case. Every
# folder whose name begins with a dot is left out, too: .ipynb_checkpoints, .git, .Trash-1000.
_LITTER_FOLDERS = frozenset(
    {
        "__macosx", "$recycle.bin", "recycler", "recycled", "system volume information",
        "lost+found", "#recycle", "#snapshot", "@eadir", "@tmp", "@recycle", "~snapshot",
        "node_modules", "__pycache__", "cvs", "thumbs", "aquota.user", "network trash folder",
        "temporary items",
    }
)  # fmt: skip
# Left in folders by Windows, macOS and version control; never images. In lower case.
_LITTER_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"}
)
_IMAGE_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,5}")
# A text about the data set is usual beside the class folders, where no image can be.
_DOCUMENT_SUFFIXES = (".txt", ".md", ".csv", ".json", ".jsonl", ".parquet", ".yaml", ".pdf")
_SPLIT_WORDS = {
    "train": ("train", "training", "trn", "learn", "learning"),
    "val": ("val", "valid", "validate", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
    "": ("eval", "evaluation", "evaluate"),  # val to some, test to others
}
_WORD_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
_SPLIT_NAME = re.compile(
    r"(?:images?|imgs?|data)?([a-z]+?)(?:set|data|dataset|images?|imgs?|split)?"
)
_DOCUMENTS = frozenset({"license", "licence", "readme", "sha256sums", "md5sums", "makefile"})
# What an output, a registry or a training's folder cannot be without.
_OWN_FILES = re.compile(
    r"(?:^|/)(?:v[0-9]+/SHA256SUMS|_lease\.json|_runs/[^/]+/plan\.json"
    r"|date=[^/]+/run=[^/]+/_manifest\.json|_training/[^/]+/run-[0-9a-f]+/run\.json)$"
)


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" for a folder that is called so in any usual spelling.

    Returns:
        The split; "" for a name that is val to some and test to others; None for any other name.
    """
    letters = re.sub(r"[^a-z]", "", name.casefold())
    match = _SPLIT_NAME.fullmatch(letters)
    return _WORD_OF.get(letters, _WORD_OF.get(match[1]) if match else None)


def litter(key: str) -> str:
    """Return why a file below a folder tree is left out, "" for one that stays.

    Args:
        key: Its path from the folder tree on.
    """
    *folders, name = key.split("/")
    for folder in folders:
        if is_litter_folder(folder):
            return f"in a folder {folder}, which holds no images of a class"
    lower = name.lower()
    if lower in _LITTER_FILES or lower.startswith("._") or lower.endswith(":zone.identifier"):
        kind = "._* (of macOS)" if lower.startswith("._") else name
        return f"{kind} is not an image"
    if name.startswith(".") and not _IMAGE_SUFFIX.search(name[1:]):
        return f"{name} is not an image"
    if not folders and (lower in _DOCUMENTS or lower.endswith(_DOCUMENT_SUFFIXES)):
        return f"{name} lies beside the class folders and is not an image"
    return ""


def is_litter_folder(name: str) -> bool:
    """Tell a folder that some program made from one that a person named."""
    return name.startswith(".") or name.lower() in _LITTER_FOLDERS


def refuse_own(key: str, root: str) -> None:
    """Refuse a folder tree that holds what imgcls wrote.

    Raises:
        SourceError: `key` is of a registry, an output or a training's folder.
    """
    if _OWN_FILES.search(key):
        raise SourceError(
            f"{root} holds what imgcls itself wrote ({key}): a registry or an output would become "
            "a class; keep it outside of the data, or put the class folders into one of their own"
        )
