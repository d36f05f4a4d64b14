"""A difference as a sentence, for those who take the pictures."""

from imgcls.drift.axes import Axis
from imgcls.drift.observed import CARRIED
from imgcls.drift.record import TRAINING
from imgcls.drift.statistics import Difference

_EVERYTHING = "the whole night"


def sentence_of(
    axis: Axis, found: Difference, column: str, group: str, since: str, against: str, how: str = ""
) -> str:
    """Return what changed, where, and since when: `camera 3: 41 grey levels darker since 02:10`.

    A share is that of the whole night, so what began within it is only told to be more since then.
    `how` is in which way unfamiliar pictures differ.
    """
    subject = f"{_in_words(column)} {group}" if column else _EVERYTHING
    if axis.kind == "number":
        when = f" since {since} UTC" if since else ""
        what, values = words_of_number(axis, found)
        end = f"{values} in {against}" if values else f"compared with {against}"
        return f"{subject}: {what}{when}, {end}"
    when = f" (more since {since} UTC)" if since else ""
    what = axis.more if axis.kind == "defect" else f"have {_category(axis, found.category)}"
    what += f" ({how})" if how else ""
    now, before = _percent(found.now), _percent(found.before)
    return f"{subject}: {now} of the pictures {what}{when}, {before} in {against}"


def words_of_number(axis: Axis, found: Difference) -> tuple[str, str]:
    """Return what changed, and the values of the night and before where they say more."""
    if axis.name == "embedding":
        return "the pictures look different to the model", ""
    word = axis.more if found.shift > 0 else axis.less
    if axis.unit == "grey levels" and abs(found.shift) >= 1:
        amount = f"{abs(found.shift):.0f} grey levels"
        return (f"{amount} {word}" if axis.name == "brightness" else f"{word} by {amount}"), ""
    if found.shift == 0 or f"{found.now:.3g}" == f"{found.before:.3g}":
        return f"{axis.name} is spread differently", ""
    return word, f"{axis.name} {found.now:.3g}, {found.before:.3g}"


def _category(axis: Axis, category: str) -> str:
    if axis.name == "bits":
        return f"{category} bits a sample"
    if axis.name.startswith(CARRIED):
        return f"{_in_words(axis.name.removeprefix(CARRIED))} {category}"
    return f"{axis.name} {category}"


def _in_words(column: str) -> str:
    return column.replace("_", " ")


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f} %"


def summary_of(sentences: list[str], num_images: int, against: tuple[str, ...]) -> str:
    """Return the night in a sentence."""
    if sentences:
        num_more = len(sentences) - 1
        more = f", and {num_more} more change{'s' * (num_more > 1)}" if num_more else ""
        return f"{sentences[0]}{more}"
    if not against:
        return "nothing to compare these pictures with yet"
    told = " and ".join("its training" if one == TRAINING else one for one in against)
    return f"{num_images:,} pictures look like those of {told}"
