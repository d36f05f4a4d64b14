"""A difference as a sentence, for those who take the pictures."""

from imgcls.drift.axes import Axis
from imgcls.drift.observed import CARRIED
from imgcls.drift.record import TRAINING
from imgcls.drift.statistics import Difference

_EVERYTHING = "the pictures"


def sentence_of(
    axis: Axis, found: Difference, column: str, group: str, since: str, against: str
) -> str:
    """Return what changed, where, and since when: `camera 3: 41 grey levels darker since 02:10`."""
    subject = f"{column} {group}" if column else _EVERYTHING
    when = f" since {since}" if since else ""
    return f"{subject}: {_what(axis, found)}{when} (beside {against})"


def _what(axis: Axis, found: Difference) -> str:
    if axis.name == "embedding":
        return "they look otherwise to the model"
    if axis.kind == "number":
        return _number(axis, found)
    now, before = _percent(found.now), _percent(found.before)
    if axis.kind == "defect":
        return f"{now} {axis.more}, {before} before"
    return f"{_category(axis, found.category)} in {now} of them, {before} before"


def _number(axis: Axis, found: Difference) -> str:
    word = axis.more if found.shift > 0 else axis.less
    if axis.unit == "grey levels" and abs(found.shift) >= 1:
        amount = f"{abs(found.shift):.0f} grey levels"
        return f"{amount} {word}" if axis.name == "brightness" else f"{word} by {amount}"
    if found.shift == 0 or f"{found.now:.3g}" == f"{found.before:.3g}":
        return f"{axis.name} is spread otherwise"
    return f"{word} ({axis.name} {found.now:.3g}, {found.before:.3g} before)"


def _category(axis: Axis, category: str) -> str:
    if axis.name == "bits":
        return f"{category} bits a sample"
    if axis.name.startswith(CARRIED):
        return f"{axis.name.removeprefix(CARRIED)} {category}"
    return f"{axis.name} {category}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f} %"


def summary_of(sentences: list[str], num_images: int, against: tuple[str, ...]) -> str:
    """Return the night in a sentence."""
    if sentences:
        more = f", and {len(sentences) - 1} more" if len(sentences) > 1 else ""
        return f"{sentences[0]}{more}"
    if not against:
        return "nothing to compare these pictures with yet"
    told = " and ".join("its training" if one == TRAINING else one for one in against)
    return f"{num_images:,} pictures look like those of {told}"
