"""The sentence of a night, for its pages and for the terminal."""

from collections.abc import Mapping

from imgcls.schema import READ_LATER, Status, UnitStatus


def sentence_of(by_status: Mapping[str, int], by_decision: Mapping[str, int]) -> str:
    """Return what a night found, in one sentence.

    Args:
        by_status: how many rows of each status.
        by_decision: how many of each decision; empty where the model has no threshold.
    """
    whole, num_ok = sum(by_status.values()), by_status.get(Status.OK, 0)
    num_new_formats = sum(by_status.get(status, 0) for status in READ_LATER)
    num_failed = whole - num_ok - num_new_formats
    parts = [f"{num_ok:,} scored"]
    if num_failed:
        parts.append(f"{num_failed:,} could not be read")
    if num_new_formats:
        are = "is" if num_new_formats == 1 else "are"
        parts.append(f"{num_new_formats:,} {are} of a format that is not read")
    return f"{whole:,} image{'' if whole == 1 else 's'}: {', '.join(parts)}{_decided(by_decision)}"


def sentence_of_units(by_status: Mapping[str, int], by_decision: Mapping[str, int]) -> str:
    """Return what the units of a night are, in one sentence; counts as for `sentence_of`."""
    whole = sum(by_status.values())
    num_ok, num_incomplete = (by_status.get(s, 0) for s in (UnitStatus.OK, UnitStatus.INCOMPLETE))
    parts = [f"{num_ok:,} with every image scored"]
    if num_incomplete:
        parts.append(f"{num_incomplete:,} incomplete")
    if num_without := whole - num_ok - num_incomplete:
        parts.append(f"{num_without:,} without an answer")
    return f"{whole:,} unit{'' if whole == 1 else 's'}: {', '.join(parts)}{_decided(by_decision)}"


def _decided(by_decision: Mapping[str, int]) -> str:
    if not by_decision:
        return ""
    positive, review = by_decision.get("positive", 0), by_decision.get("review", 0)
    return f"; {positive:,} positive, {review:,} to review"
