"""What every picture of a training shares: a canvas without pyplot, colours, and PNG bytes.

In: sizes. Out: a figure, and its bytes. Invariant: no global state, so that any thread may draw.
"""

import io
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI: Final = 100
# The class that is looked for, the others, and what a person decides; told apart in grey, too.
POSITIVE, OTHERS, REVIEW = "#b8442f", "#4a78a8", "#f2d98b"
GUESS: Final = "#8a8a8a"


def make_figure(
    width_inch: float, height_inch: float, layout: Literal["constrained"] | None = None
) -> "Figure":
    """Return an empty figure."""
    # Half a second to import, and scoring never draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inch, height_inch), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: "Figure") -> bytes:
    """Return the figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def make_plain(ax: "Axes") -> None:
    """Take away what says nothing: the upper and the right line; a faint grid stays."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
