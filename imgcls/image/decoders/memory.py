"""How much memory the decoder processes of a pool may take, each and all together.

In: how many there are, the largest image of the spec, this machine. Out: the limits of one process.
Invariant: the limits of all add up to at most `total_bytes`, by which an image that needs more than
its everyday share is decoded while no other process decodes such a one.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Of the machine's memory, or the container's: the model, the file cache and the rest need theirs.
MACHINE_FRACTION: Final = 0.5
# The largest image in the widest form on its way, and what a library needs beside it.
_BYTES_PER_PIXEL: Final = 32
_MARGIN_BYTES: Final = 512 << 20
# Below this even small images would wait for each other: 4 megapixels and their margin.
_MIN_EVERYDAY_BYTES: Final = 256 << 20
# A file is held as it came, with room to grow, and as it was cut out of the stream.
_COPIES_OF_FILE: Final = 2.5
_CGROUP, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What one decoder process may allocate beyond what it has loaded, in bytes."""

    everyday_bytes: int
    """For any image, at any time."""
    most_bytes: int
    """For one that needs more, by one process at a time."""
    total_bytes: int
    """What that is for all processes together."""

    @property
    def everyday_pixels(self) -> int:
        """How many pixels an image may have that needs no more than the everyday share."""
        margin = min(_MARGIN_BYTES, self.everyday_bytes // 2)
        return (self.everyday_bytes - margin) // _BYTES_PER_PIXEL

    @property
    def everyday_file_bytes(self) -> int:
        """How long a file may be that needs no more than the everyday share."""
        return int(self.everyday_bytes / 2 / _COPIES_OF_FILE)

    @property
    def most_file_bytes(self) -> int:
        """How long a file may be at all."""
        return int(self.most_bytes / _COPIES_OF_FILE)

    @property
    def is_shared(self) -> bool:
        """True where images that need more wait for each other."""
        return self.everyday_bytes < self.most_bytes


def memory_limits(num_processes: int, max_pixels: int, memory_bytes: int) -> MemoryLimits:
    """Divide `memory_bytes` between the processes of a pool.

    One image of `max_pixels` can always be decoded, and every process has its least share: where
    `memory_bytes` is less than that, `total_bytes` says what it comes to.
    """
    most = _MARGIN_BYTES + _BYTES_PER_PIXEL * max_pixels
    if num_processes * most <= memory_bytes:
        return MemoryLimits(most, most, num_processes * most)
    others = max(1, num_processes - 1)
    everyday = max(_MIN_EVERYDAY_BYTES, (memory_bytes - most) // others)
    everyday = min(everyday, most)
    return MemoryLimits(everyday, most, most + (num_processes - 1) * everyday)


def pool_memory_bytes(num_processes: int) -> int:
    """Return the share of a pool in this machine's memory: as its processes in the CPUs.

    So several pools on one machine, one per GPU, add up to no more than one on all of it.
    """
    share = min(1.0, num_processes / num_cpus_here())
    return int(MACHINE_FRACTION * share * machine_memory_bytes())


def machine_memory_bytes() -> int:
    """Return the memory of this machine, or of the container or job, whichever is least."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [_words(folder / "memory.max") for folder in _cgroups()]
    limits.append(_words(_CGROUP / "memory" / "memory.limit_in_bytes"))
    return min(pages, *(int(words[0]) for words in limits if words and words[0].isdigit()), pages)


def num_cpus_here() -> float:
    """Return the CPUs of this process, or of the container or job where those are fewer."""
    quotas = [_words(folder / "cpu.max") for folder in _cgroups()]
    given = [int(words[0]) / int(words[1]) for words in quotas if words and words[0].isdigit()]
    return min(float(len(os.sched_getaffinity(0))), *given, float("inf"))


def _cgroups() -> list[Path]:
    """Return the control group of this process and all those around it (cgroups(7), version 2)."""
    own = next((line[3:] for line in _lines(_OWN_CGROUP) if line.startswith("0::")), "/")
    folder = _CGROUP / own.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUP))]


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no such limit here
        return []
