"""How far an image is from those that a model knows, by the sketch of its embedding.

In: sketches of known images. Out: a distance per image, and the one that hardly any known image
reaches. Invariant: one half of the known images says where they lie, the other how far images like
them are from there: no image is measured by itself.

Mahalanobis distance (1936), of a covariance that is shrunk towards its diagonal, for there may be
few images.

Legend: B image, S sketch, P direction.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

# The share of images like the known ones that are called unfamiliar.
UNFAMILIAR_SHARE: Final = 0.01
NUM_DIRECTIONS: Final = 8
_SHRINK: Final = 0.1
# Of fewer, the middle of a cloud in 32 dimensions is not known.
_MIN_IMAGES: Final = 100
_TINY: Final = 1e-12

Sketches = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Familiar:
    """Where known images lie.

    Attributes:
        middle_S: their mean.
        whiten_SS: a sketch less the mean, times this, has the length of its distance.
        directions_SP: those in which they differ most.
        distance_B: of the half that did not decide the above.
    """

    middle_S: Sketches
    whiten_SS: Sketches
    directions_SP: Sketches
    distance_B: Sketches

    @classmethod
    def of(cls, known_BS: Sketches) -> Self | None:
        """Fit to known images; None where there are too few."""
        known_BS = known_BS[np.isfinite(known_BS).all(axis=1)]
        if len(known_BS) < _MIN_IMAGES:
            return None
        # By turns: neighbours in a listing are alike.
        fitted_BS, measured_BS = known_BS[::2], known_BS[1::2]
        middle_S = fitted_BS.mean(axis=0)
        cov_SS = np.cov(fitted_BS, rowvar=False)
        diagonal_SS = np.diag(np.diag(cov_SS)) + np.eye(len(cov_SS)) * (
            _TINY + 1e-3 * np.trace(cov_SS) / len(cov_SS)
        )
        values_S, vectors_SS = np.linalg.eigh((1 - _SHRINK) * cov_SS + _SHRINK * diagonal_SS)
        found = cls(
            middle_S,
            vectors_SS / np.sqrt(np.maximum(values_S, _TINY)),
            vectors_SS[:, ::-1][:, :NUM_DIRECTIONS],
            np.zeros(0),
        )
        return cls(middle_S, found.whiten_SS, found.directions_SP, found.distances(measured_BS))

    def distances(self, sketch_BS: Sketches) -> Sketches:
        """Return the distance of each image; NaN of one without a sketch."""
        found: Sketches = np.linalg.norm((sketch_BS - self.middle_S) @ self.whiten_SS, axis=1)
        return found

    def along(self, sketch_BS: Sketches) -> Sketches:
        """Return where images lie in the directions in which known ones differ most: [B,P]."""
        found: Sketches = (sketch_BS - self.middle_S) @ self.directions_SP
        return found

    @property
    def threshold(self) -> float | None:
        """The distance beyond which UNFAMILIAR_SHARE of images like the known ones are.

        Of too few of them nobody can tell: None. A rank beyond the share, as in conformal
        prediction (Vovk 2005): the share holds on average, whatever the distribution is.
        """
        rank = int(np.ceil((len(self.distance_B) + 1) * (1 - UNFAMILIAR_SHARE)))
        if rank > len(self.distance_B):
            return None
        return float(np.sort(self.distance_B)[rank - 1])
