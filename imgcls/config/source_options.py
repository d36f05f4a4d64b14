"""The flags that say which images a command is about, alike for every command that takes a source.

In: nothing. Out: two classes that the configs build on. Invariant: what narrows a source, or tells
how its manifest is to be read, is a field here, so that `plan` and `nightly`, and training and
scoring, see the same images.
"""

from dataclasses import dataclass, field

from imgcls.config.paths import Config, SourceUri, Uri


@dataclass(frozen=True)
class ListingOptions(Config):
    """Which of the images that lie in a place are meant, and how a manifest of them is read.

    Fields here have defaults and are keywords only, so that required flags may follow them.
    """

    columns: str = field(default="", kw_only=True)
    """What the columns of a manifest are called, where not uri, label, split, group and weight:
    uri=File,label=Finding,group=PatientID. weight= leaves the column of that name unread.
    """
    root: Uri = field(default="", kw_only=True)
    """Where relative names of a manifest begin; default the folder that holds it."""


@dataclass(frozen=True)
class SourceOptions(ListingOptions):
    """The source of `score`, `nightly` and `plan`."""

    source: SourceUri
    """Prefix, glob (* within a folder, ** across folders), or manifest (.csv .parquet .jsonl and
    others, as for train) with a column uri.
    """
