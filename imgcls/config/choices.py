"""Values that several commands take."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from imgcls.errors import ConfigError

Executor = Literal["auto", "local", "ray"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"]
CpuHelpers = Literal["auto", "off"]
GpuDecode = Literal["on", "off"]
MatchBy = Literal["uri", "suffix", "name"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "onecycle"]
Loss = Literal["cross_entropy", "focal"]
TrainPrecision = Literal["fp32", "bf16"]
BestBy = Literal["loss", "accuracy"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORKERS = re.compile(r"(?:(?P<fewest>[0-9]{1,6}):)?(?P<most>[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class WorkerRange:
    """How many Ray Train workers: `most` where there is room, never below `fewest`.

    0 and 0 stand for no Ray at all.
    """

    fewest: int
    most: int

    @staticmethod
    def parse(text: str) -> "WorkerRange":
        """Read "2" (always two), "1:4" (elastic) or "0" (in this process).

        Raises:
            ConfigError: anything else.
        """
        match = _WORKERS.fullmatch(text.strip())
        most = int(match["most"]) if match else -1
        fewest = int(match["fewest"] or most) if match else -1
        if not (fewest == most == 0 or 1 <= fewest <= most):
            raise ConfigError(
                f"--num-workers {text}: write a number such as 4, 0 to train in this process, or "
                "MIN:MAX such as 1:4, with MIN at least 1 and at most MAX"
            )
        return WorkerRange(fewest, most)

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while the run continues."""
        return self.fewest < self.most


def check_name(name: str, flag: str) -> None:
    """Refuse a name that cannot stand in a path on every store, in every reader."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{flag} {name!r}: use 1 to 100 letters, digits, dots, dashes or underscores, "
            "beginning with a letter or digit"
        )


def value_of(flag: str, arguments: Sequence[str]) -> str:
    """Return the value of a flag among the flags of a job, "" where it is not given.

    Of several, the last one counts, as for the job itself.
    """
    return (values_of(flag, arguments) or [""])[-1]


def values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """Return all values of a flag that may be given several times."""
    values = list[str]()
    for number, word in enumerate(arguments):
        if word == flag:
            values.append(arguments[number + 1] if number + 1 < len(arguments) else "")
        elif word.startswith(f"{flag}="):
            values.append(word.partition("=")[2])
    return values
