"""What decides a row, beside the model and the image.

In: the flags of the command that planned a run. Out: RowOptions, kept in plan.json. Invariant: a
flag that changes rows is a field here too: workers take its value from the plan, so that every
start of a run makes the same rows, and the next start compares it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from imgcls.config.choices import GpuDecode, Heatmaps, Precision, UnitPooling
from imgcls.config.scoring import ScoreConfig


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The row options of one run; each field has the name of its flag.

    The default of a field is what the versions did that had no such flag: plans of theirs are read
    with it.
    """

    top_k: int = 5
    precision: Precision = "auto"
    write_probs: bool = False
    write_embedding: bool = False
    gpu_decode: GpuDecode = "off"
    carry: tuple[str, ...] = ()
    write_tiles: bool = False
    unit: str = ""
    unit_rule: UnitPooling = "auto"
    heatmaps: Heatmaps = "none"
    review_unfamiliar: bool = False

    @classmethod
    def of(cls, config: ScoreConfig) -> Self:
        """Return those of a command's flags."""
        return cls.of_flags(vars(config))

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> Self:
        """Return those among the flags of a command, whatever version of imgcls had them."""
        names = {field.name for field in fields(cls)}
        given = {name: value for name, value in flags.items() if name in names}
        if "carry" in given:
            given["carry"] = tuple(given["carry"])  # JSON knows no tuples
        return cls(**given)

    def reasons(self) -> frozenset[str]:
        """Return the names of those that are on: what asks for optional columns of rows."""
        found = {each.name for each in fields(self) if getattr(self, each.name) is True}
        # Units are made of the probabilities of their images.
        found |= {"write_probs"} if self.unit else set()
        return frozenset(found | ({"heatmaps"} if self.heatmaps != "none" else set()))

    def difference(self, other: Self) -> str:
        """Return the first field in which another one differs, "" where none does."""
        names = (field.name for field in fields(self))
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


ALL_DEFAULT: Final = RowOptions()
