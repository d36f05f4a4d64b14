"""When hardly anything is left of a deep grey, for training, which refuses it, and for a night."""

from typing import Final

from imgcls.image.facts.image_facts import ImageFacts

# Fewer of the 256 greys in what the model sees than this, and
FEW_LEVELS: Final = 32
# less than this part of those that the file has.
FEW_FRACTION: Final = 0.25


def loses_levels(facts: ImageFacts, pixel_type: str) -> bool:
    """Tell whether a deep grey lost nearly all of its levels in pixels of a type, not of floats."""
    had = facts.source.levels if pixel_type == "uint8" else None
    return had is not None and facts.looks.levels < min(FEW_LEVELS, FEW_FRACTION * had)
