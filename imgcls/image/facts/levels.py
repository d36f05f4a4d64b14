"""When hardly anything is left of a deep grey, for training, which refuses it, and for a night."""

from typing import Final

from imgcls.image.facts.image_facts import ImageFacts

# Fewer of the 256 greys in what the model sees than this, and
FEW_LEVELS: Final = 32
# less than this part of those that the file has.
FEW_FRACTION: Final = 0.25


def loses_levels(facts: ImageFacts) -> bool:
    """Tell whether a deep grey lost nearly all of its levels."""
    had = facts.source.levels
    return had is not None and facts.looks.levels < min(FEW_LEVELS, FEW_FRACTION * had)
