"""What a submitted job takes along: the code it runs, and nothing else.

In: the packages of this installation, or a folder. Out: a folder of copies for Ray to upload, and
its size. Invariant: no data, no secret, no environment and no history leaves this machine; what is
uploaded can be read by every client of the cluster.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import imgcls
from imgcls.errors import ConfigError
from imgcls.scratch import scratch_folder

# The job API refuses larger requests (DASHBOARD_CLIENT_MAX_SIZE in ray/_private/ray_constants.py);
# Ray packs without compression.
MAX_UPLOAD_BYTES = 100 * 1024**2

PACKAGES = ("imgcls", "jobs")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "build", "dist", "data", "venv"})
_KEPT_DOT_FILES = frozenset({".gitignore", ".rayignore"})  # Ray reads them when it packs
_LEFT_OUT = re.compile(
    r"\.(png|jpe?g|gif|bmp|webp|tiff?|dcm|nii|np[yz]|parquet|arrow|h5|safetensors|pth?|ckpt|onnx|pkl"
    r"|zip|tar|[gx]z|bz2|whl|db|sqlite|duckdb|mp4|log|pyc"
    r"|pem|key|p12|pfx)",  # the last four hold secrets
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Upload:
    """A folder of copies, ready for Ray."""

    folder: str
    num_files: int
    size_bytes: int
    num_left_out: int
    """Files and folders that stay here: data, secrets, caches, environments, history."""


@contextmanager
def staged(working_dir: str, max_bytes: int = MAX_UPLOAD_BYTES) -> Iterator[Upload]:
    """Copy what is to be uploaded to a folder that ends with the block.

    Args:
        working_dir: a folder with the packages imgcls and jobs; "" takes only these two, as they
            are installed here.
        max_bytes: most bytes that the cluster takes.

    Raises:
        ConfigError: no such folder, no jobs in it, or more than `max_bytes`.
    """
    root = Path(working_dir) if working_dir else Path(str(imgcls.__file__)).parent.parent
    if not (root / "jobs" / "__init__.py").is_file():
        raise ConfigError(
            f"--working-dir {working_dir}: no folder with the package jobs in it; name a checkout "
            "of imgcls, or leave the flag out to upload the installed packages"
        )
    tops = [root] if working_dir else [root / name for name in PACKAGES]
    files, num_left_out = _choose(tops)
    sizes = {path: path.stat().st_size for path in files}
    size_bytes = sum(sizes.values())
    if size_bytes > max_bytes:
        largest = sorted(files, key=lambda path: sizes[path], reverse=True)[:3]
        named = ", ".join(f"{path.relative_to(root)} {megabytes(sizes[path])}" for path in largest)
        raise ConfigError(
            f"--working-dir {working_dir}: {megabytes(size_bytes)} in {len(files)} files, but the "
            f"job API of Ray takes at most {megabytes(max_bytes)}; largest: {named}. Keep data in "
            "the bucket; a folder called data is never uploaded"
        )
    with scratch_folder("upload") as folder:
        for path in files:
            copy = Path(folder) / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        yield Upload(folder, len(files), size_bytes, num_left_out)


def megabytes(size_bytes: int) -> str:
    """Write a size as people read it."""
    return f"{size_bytes / 1e6:.1f} MB"


def _choose(tops: list[Path]) -> tuple[list[Path], int]:
    """Return the files to upload below `tops`, and how much stays here."""
    files: list[Path] = []
    num_left_out = 0
    for top in tops:
        for folder, names, file_names in os.walk(top):
            kept = [name for name in names if not _is_skipped(Path(folder) / name)]
            num_left_out += len(names) - len(kept)
            names[:] = kept
            chosen = [name for name in file_names if _is_wanted(name)]
            num_left_out += len(file_names) - len(chosen)
            files += [Path(folder) / name for name in chosen if (Path(folder) / name).is_file()]
    return sorted(files), num_left_out


def _is_skipped(folder: Path) -> bool:
    return (
        folder.name.startswith(".")
        or folder.name in _SKIPPED_FOLDERS
        or folder.name.endswith(".egg-info")
        or folder.is_symlink()
        or (folder / "pyvenv.cfg").exists()  # a virtual environment, whatever its name
        or (folder / "CACHEDIR.TAG").exists()  # a cache (https://bford.info/cachedir/)
    )


def _is_wanted(name: str) -> bool:
    if name.startswith("."):
        return name in _KEPT_DOT_FILES
    return not _LEFT_OUT.fullmatch(Path(name).suffix)
