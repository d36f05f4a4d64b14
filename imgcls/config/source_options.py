"""The flags that say which images a command is about, alike for every command that takes a source.

In: nothing. Out: two classes that the configs build on. Invariant: what narrows a source, or tells
how its manifest is to be read, is a field here, so that `plan` and `nightly`, and training and
scoring, see the same images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from imgcls.config.paths import Config, SourceUri, SourceUris, Uri


@dataclass(frozen=True)
class ListingOptions(Config):
    """Which of the images that lie in a place are meant, and how a manifest of them is read.

    Fields here have defaults and are keywords only, so that required flags may follow them.
    """

    also: SourceUris = field(default=(), kw_only=True)
    """A further place to read together with the first; may be given several times."""
    columns: str = field(default="", kw_only=True)
    """What the columns of a manifest are called, where not uri, label, split, group and weight:
    uri=File,label=Finding,group=PatientID. weight= leaves the column of that name unread.
    """
    root: Uri = field(default="", kw_only=True)
    """Where relative names of a manifest begin; default the folder that holds it."""
    include: tuple[str, ...] = field(default=(), kw_only=True)
    """Only what matches one of these patterns; may be given several times. `*.jpg` is of the name,
    `line1/**` of the path below the source; `*` within a folder, `**` across folders, `?`, `[ab]`,
    `{jpg,png}`.
    """
    exclude: tuple[str, ...] = field(default=(), kw_only=True)
    """Not what matches one of these patterns; as for include, and goes before it."""
    ignore_case: bool = field(default=False, kw_only=True)
    """Let the patterns of include and exclude match in any case: `*.jpg` also x.JPG."""
    where: tuple[str, ...] = field(default=(), kw_only=True)
    """Only what lies in a folder that is called so, as in camera=3, or camera=3,4 for either; may
    be given several times, then all must hold.
    """
    since: str = field(default="", kw_only=True)
    """Only what was written since then: an age such as 24h, or a day or moment in UTC."""
    image_column: str = field(default="", kw_only=True)
    """Column of a Parquet file that holds the images as bytes; default is the one of Hugging Face's
    {bytes, path}. none takes Parquet files as manifests with a column uri, or as other files.
    """
    max_compressed_gib: float = field(default=4.0, kw_only=True)
    """A compressed tar (.tar.gz .tgz .tar.bz2 .tar.xz .tar.zst) above this is one row, too_large:
    it can only be read from its start on, once to plan it and once to score it, as one shard.
    """


def listing_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `ListingOptions` among the flags of a command of any version, as JSON has it.

    Two commands with the same ones and the same source mean the same images.
    """
    found = {each.name: flags.get(each.name, each.default) for each in fields(ListingOptions)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in found.items()
    }


@dataclass(frozen=True)
class SourceOptions(ListingOptions):
    """The source of `score`, `nightly` and `plan`."""

    source: SourceUri
    """Prefix, glob (* within a folder, ** across folders; beside a *, also ? [ab] {a,b}), manifest
    (.csv .parquet .jsonl and others, as for train) with a column uri, or one container. Of
    containers (.tar, also compressed, .zip, .parquet with images) every image in them is scored;
    its name is in the column member.
    """

    @property
    def sources(self) -> tuple[str, ...]:
        """All places that are read."""
        return (self.source, *self.also)
