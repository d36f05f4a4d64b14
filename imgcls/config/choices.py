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
ResultForm = Literal["csv", "delta", "dicom-sr"]
CsvSeparator = Literal["comma", "semicolon", "tab"]
UnitPooling = Literal["auto", "max", "mean", "top3_mean", "noisy_or"]
Heatmaps = Literal["flagged", "all", "none"]
PageNames = Literal["plain", "hashed"]
Drift = Literal["off", "warn", "hold"]
MatchBy = Literal["uri", "suffix", "name"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "onecycle"]
Loss = Literal["cross_entropy", "focal"]
TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]
BestBy = Literal["loss", "accuracy"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_IMAGE_PX = re.compile(r"([0-9]{1,5})(?:x([0-9]{1,5}))?")
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


def parse_image_px(text: str) -> tuple[int, int]:
    """Read the height and width of a model's input: "224" for a square, "400x1600".

    Raises:
        ConfigError: anything else.
    """
    match = _IMAGE_PX.fullmatch(str(text).strip())
    height_px, width_px = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if height_px < 1 or width_px < 1:
        raise ConfigError(
            f"--image-px {text}: write the side of a square in pixels, such as 224, or "
            "HEIGHTxWIDTH, such as 400x1600"
        )
    return height_px, width_px


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
