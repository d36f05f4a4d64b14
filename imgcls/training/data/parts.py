"""What is decoded of a training sample: all that the specs take, or the part that its draws want.

In: a sample, the changes of an epoch or None where samples are measured. Out: a Part, and which
frame. Invariant: a frame is the same one whether the others were decoded, or kept, beside it.
"""

from imgcls.image.fit.view import ALL, Part
from imgcls.training.augment.changes import ImageChanges
from imgcls.training.augment.counter_rng import hash64


def part_of(
    index: int,
    changes: ImageChanges | None,
    shape_CHW: tuple[int, int, int],
    *,
    is_one_frame: bool,
) -> Part:
    """Return what is decoded of a sample.

    Args:
        index: Of the sample in its split.
        changes: Of the epoch.
        shape_CHW: Of the model's input.
        is_one_frame: Of many frames one is wanted.
    """
    chance = frame_chance(index, changes) if is_one_frame else None
    if changes is None:
        return ALL if chance is None else Part(chance=chance)
    _, height_px, width_px = shape_CHW
    return Part(changes.view_of(index, width_px / height_px), chance)


def frame_chance(index: int, changes: ImageChanges | None) -> int:
    """Return what picks the frame of a sample: to measure by, always the same one."""
    chance_I = hash64(index) if changes is None else changes.chance(index)(1)
    return int(chance_I[0])
