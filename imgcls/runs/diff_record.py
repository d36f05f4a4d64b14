"""What a comparison of two models leaves for machines: how many answers differ, who is right.

In: OUT/_runs/<run of the second>/pages/diff-<run of the first>.json. Out: the record, or why it
forbids a promotion. Invariant: a comparison counts for the two models that it names by digest, and
for no others.
"""

from dataclasses import dataclass

from imgcls.errors import ConfigError
from imgcls.storage.objects import read
from imgcls.storage.records import parse_record


@dataclass(frozen=True, slots=True)
class DiffRecord:
    """One comparison."""

    first_run: str
    second_run: str
    first_model: str
    second_model: str
    first_digest: str
    second_digest: str
    num_compared: int
    """Images with an answer of both."""
    num_flips: int
    num_lost: int
    """Images that only the first gave an answer to."""
    num_labelled: int = 0
    """Labelled images that neither model was trained on."""
    verdict: str = "unknown"
    """Of the second one: better, no_difference, worse; unknown without labels."""

    @property
    def flip_fraction(self) -> float:
        """Share of images that the second answers otherwise, or no more."""
        asked = self.num_compared + self.num_lost
        return (self.num_flips + self.num_lost) / asked if asked else 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a promotion asks of a comparison."""

    uri: str
    max_flips: float
    not_worse: bool

    def check(self, name: str, digest: str, current_digest: str | None) -> DiffRecord:
        """Return the comparison, if it allows a version to take the place of another.

        Args:
            name: of the version, for messages.
            digest: of the version.
            current_digest: of what the alias stands for; None where it is new.

        Raises:
            ConfigError: it does not, with the reason.
        """
        record = parse_record(read(self.uri), self.uri, ConfigError, DiffRecord)
        if record.second_digest != digest:
            raise ConfigError(
                f"{name} is not promoted: {self.uri} is about {record.second_model}, another model"
            )
        if current_digest is not None and record.first_digest != current_digest:
            raise ConfigError(
                f"{name} is not promoted: {self.uri} compares it with {record.first_model}, and "
                "the alias stands for another model now: compare it with that one"
            )
        if record.flip_fraction > self.max_flips:
            raise ConfigError(
                f"{name} is not promoted: it answers {record.num_flips} of {record.num_compared} "
                f"images otherwise and {record.num_lost} not at all, {record.flip_fraction:.2%}; "
                f"--max-flips allows {self.max_flips:.2%}"
            )
        if self.not_worse and record.verdict == "unknown":
            raise ConfigError(
                f"{name} is not promoted: --not-worse needs labels, and {self.uri} knows of none "
                "that are new to both models: add --data to imgcls diff"
            )
        if self.not_worse and record.verdict == "worse":
            raise ConfigError(
                f"{name} is not promoted: on {record.num_labelled} labelled images it is right "
                f"less often than {record.first_model}, by more than chance explains"
            )
        return record
