"""One run of an output: where everything of it lies, and what of that stays.

In: an output prefix and a run id. Out: URIs. Invariant: where a file below `_runs` lies is asked
here, so that its writer, its readers and what cleans up mean the same file. `_OF_A_RUN` repeats the
names, and those of what is published, as patterns: a file that is new here is new there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imgcls.storage.info import ObjectInfo
from imgcls.storage.objects import exists, list_objects
from imgcls.storage.uri import join

_RUNS: Final = "_runs"
# Tables beside the rows, each named by a field of the manifest that is called as it.
TABLES: Final = ("tiles", "groups")
# All else stays, whoever wrote it: of a published run the plan and the commits are what `verify`
# reads, and the records are all that tells how it went. Its parts hold the rows of its attempts.
_GOES_WHEN_PUBLISHED: Final = "attempts/"
_PLAN_NAME: Final = re.compile(rf"/{_RUNS}/([^/]+)/plan\.json$")
_OF_A_RUN: Final = re.compile(
    rf"/{_RUNS}/[^/]+/(?:[^/]+\.(?:json|zip)"
    r"|(?:plan|attempts|commits|facts|logs)/[^/]+\.(?:parquet|json|jsonl|log)"
    r"|(?:pages|pictures)/[^/]+\.(?:html|csv|json|png|webp))$"
    r"|/date=[^/]+/run=[^/]+/(?:part-[0-9]+\.parquet|_manifest\.json)$"
    r"|/_(?:tiles|groups)/date=[^/]+/run=[^/]+/[^/]+\.parquet$"
    r"|/_pages/[^/]+\.(?:html|csv)$|/_(?:queues|answers)/[0-9]+\.parquet$"
    r"|/_(?:lease|store_probe|clock)\.json$|/_delta_log/[^/]+\.(?:json|parquet)$"
    r"|/(?:results(?:-units)?\.csv|latest\.sql)$|/_reports/[^/]+\.dcm$"
)
# Pages and pictures: `gc --pictures-older-than` takes them away, and nothing else of a run.
_FOR_EYES: Final = re.compile(rf"/(?:{_RUNS}/[^/]+/(?:pages|pictures)|_pages)/[^/]+$")
_FACTS: Final = re.compile(rf"/{_RUNS}/[^/]+/facts/[^/]+\.parquet$")


@dataclass(frozen=True, slots=True)
class Run:
    """The places of one run. `output` is canonical: an absolute path or a URI."""

    output: str
    run_id: str

    @property
    def uri(self) -> str:
        """The folder of its bookkeeping: OUT/_runs/<run_id>."""
        return join(self.output, _RUNS, self.run_id)

    def file(self, path: str) -> str:
        """A file that plan.json or a commit names, by its path below the folder."""
        return join(self.uri, path)

    def published(self, date: str) -> str:
        """The folder that it publishes to: OUT/date=D/run=R."""
        return join(self.output, f"date={date}", f"run={self.run_id}")

    def table(self, name: str, date: str) -> str:
        """The folder of one of TABLES: OUT/_<name>/date=D/run=R."""
        assert name in TABLES, "a table that manifests have a field for"
        return join(self.output, f"_{name}", f"date={date}", f"run={self.run_id}")

    def everything_published(self, date: str) -> Iterator[ObjectInfo]:
        """Yield what lies where it publishes to, its rows and its tables."""
        yield from list_objects(self.published(date))
        for name in TABLES:
            yield from list_objects(self.table(name, date))

    @property
    def plan(self) -> str:
        """plan.json: the run exists."""
        return self.file("plan.json")

    @property
    def commits(self) -> str:
        """The folder of the commits."""
        return self.file("commits")

    def commit(self, shard_id: str) -> str:
        """The record that makes one attempt the outcome of a shard."""
        return self.file(f"commits/{shard_id}.json")

    @property
    def facts(self) -> str:
        """The folder of what was measured of the images."""
        return self.file("facts")

    @property
    def rolled_back(self) -> str:
        """The marker of a run that was taken back; such a run is never resumed."""
        return self.file("rolled_back.json")

    @property
    def precision(self) -> str:
        """The arithmetic that the first worker chose, for all others."""
        return self.file("precision.json")

    def int8_network(self, model_digest: str) -> str:
        """The calibrated network; a later run of few images takes it over."""
        return self.file(f"int8-{model_digest[:16]}.zip")

    @property
    def gpu_decode(self) -> str:
        """How far the images that a GPU decoded differ."""
        return self.file("gpu_decode.json")

    @property
    def held(self) -> str:
        """Why a run is held back from publishing; it stays when the run is released."""
        return self.file("held.json")

    @property
    def released(self) -> str:
        """A person let a held run go: its publication has begun."""
        return self.file("released.json")

    @property
    def drift(self) -> str:
        """Whether its pictures have changed."""
        return self.file("drift.json")

    @property
    def observed(self) -> str:
        """A sample of what was observed of its images, which later runs are compared with."""
        return self.file("observed.zip")

    @property
    def progress(self) -> str:
        """How far the run is, for people."""
        return self.file("progress.json")

    @property
    def report(self) -> str:
        """Who did what, for people."""
        return self.file("report.json")

    @property
    def counts(self) -> str:
        """How many rows of which status, class and decision, for the pages of later nights."""
        return self.file("counts.json")

    def log(self, start: str) -> str:
        """The log of one start of the run."""
        return self.file(f"logs/{start}.log")

    @property
    def pages(self) -> str:
        """The folder of pages for people, which hold pictures."""
        return self.file("pages")

    def page(self, name: str) -> str:
        """A page for people."""
        return join(self.pages, name)

    def is_rolled_back(self) -> bool:
        """Return whether the run was taken back."""
        return exists(self.rolled_back)

    def stays_when_published(self, uri: str) -> bool:
        """Return whether an object below `uri` is needed once the manifest is there."""
        return not uri.removeprefix(f"{self.uri}/").startswith(_GOES_WHEN_PUBLISHED)

    def order_of_removal(self, uri: str) -> int:
        """Return when an object below `uri` goes, of a run that is removed whole.

        Commits go before the plan: a plan of the same run id must never find another plan's.
        """
        first = uri.removeprefix(f"{self.uri}/").split("/")[0]
        return {"commits": 0, "attempts": 1, "precision.json": 1, "plan.json": 2}.get(first, 3)


def attempt_path(shard_id: str, writer: str) -> str:
    """Return the path of one attempt at a shard, as its commit names it."""
    return f"attempts/{shard_id}-{writer}.parquet"


def tiles_path(shard_id: str, writer: str) -> str:
    """Return the path of what one attempt says of each tile, as its commit names it."""
    return f"attempts/{shard_id}-{writer}.tiles.parquet"


def facts_path(shard_id: str, writer: str) -> str:
    """Return the path of what one attempt measured of its images, as its commit names it."""
    return f"facts/{shard_id}-{writer}.parquet"


def plan_path(number: int, planner: str) -> str:
    """Return the path of a plan file, as plan.json names it."""
    return f"plan/{number:05d}-{planner}.parquet"


def skipped_path(planner: str) -> str:
    """Return the path of what was listed and not planned, one JSON object a line."""
    return f"plan/skipped-{planner}.jsonl"


def runs_folder(output: str) -> str:
    """Return the folder with the bookkeeping of all runs; it ends in "/"."""
    return f"{join(output, _RUNS)}/"


def pages_folder(output: str) -> str:
    """Return the folder of pages that show several runs; it ends in "/"."""
    return f"{join(output, '_pages')}/"


def list_run_ids(output: str) -> Iterator[str]:
    """Yield the ids of all planned runs of an output."""
    for info in list_objects(runs_folder(output)):
        found = _PLAN_NAME.search(info.uri)
        if found:
            yield found[1]


def is_of_a_run(uri: str) -> bool:
    """Return whether a run wrote an object, by its whole name.

    An output that lies in a source, also by a link, would be scored again every night.
    """
    return _OF_A_RUN.search(uri) is not None


def is_for_eyes(uri: str) -> bool:
    """Return whether an object of a run is a page, a list beside it, or a picture."""
    return _FOR_EYES.search(uri) is not None


def is_facts(uri: str) -> bool:
    """Return whether an object is what a shard measured of its images, thumbnails among it."""
    return _FACTS.search(uri) is not None
