"""Tables beside the rows, named by the same manifest: of tiles, of units.

In: commits, or tables. Out: OUT/_<table>/date=D/run=R/*.parquet. Invariant: they are written before
the manifest that names them; a run that is not published has none that a manifest names.
"""

import hashlib
from collections.abc import Iterable, Iterator

from imgcls.errors import ImgclsError, ObjectExistsError, ObjectMissingError, RunStoppedError
from imgcls.runs.commits import Commit, read_tiles
from imgcls.runs.plan import Plan
from imgcls.runs.published import Manifest, TableFile
from imgcls.runs.run import TABLES
from imgcls.storage.info import ObjectInfo
from imgcls.storage.objects import list_objects, put_new, read
from imgcls.storage.uri import join


def publish_tiles(plan: Plan, commits: Iterable[Commit]) -> tuple[TableFile, ...]:
    """Copy the tables that commits name, one in memory at a time; return what is there then.

    Raises:
        ImgclsError: one is damaged, or something else lies there.
    """
    folder, files = plan.run.table("tiles", plan.date), list[TableFile]()
    for commit in commits:
        if commit.tiles is None:
            continue
        path = f"{commit.shard_id}.parquet"
        data = read_tiles(plan.run, commit.tiles)
        put_table(folder, path, data)
        files.append(TableFile(path, commit.tiles.sha256, commit.tiles.num_rows, len(data)))
    return tuple(files)


def put_table(folder: str, path: str, data: bytes) -> None:
    """Write a file of a table; a twin's of the same bytes is as good.

    Raises:
        ImgclsError: something else lies there.
    """
    try:
        put_new(join(folder, path), data)
    except ObjectExistsError:
        if read(join(folder, path)) != data:
            raise ImgclsError(
                f"{join(folder, path)}: holds another table than this run made. Something else "
                "wrote there; move it away and start the same command again."
            ) from None


def unnamed_files(plan: Plan, manifest: Manifest) -> Iterator[ObjectInfo]:
    """Yield the files of tables that the manifest does not name: of a start that was killed."""
    for name in TABLES:
        folder = plan.run.table(name, plan.date)
        named = {join(folder, file.path) for file in manifest.table(name)}
        yield from (info for info in list_objects(folder) if info.uri not in named)


def check_committed_tiles(plan: Plan, commit: Commit, *, published: bool) -> Iterator[str]:
    """Yield what is wrong with the table of tiles that a commit names."""
    if commit.tiles is None:
        return
    try:
        read_tiles(plan.run, commit.tiles)
    except ObjectMissingError:
        # `gc` may remove the attempts of a published run, and what lies beside them.
        if not published:
            yield f"{commit.tiles.path} is committed and missing"
    except RunStoppedError:
        raise
    except ImgclsError as error:
        yield str(error)


def check_tables(plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Yield every way in which the tables differ from what the manifest says of them."""
    for name in TABLES:
        folder, files = plan.run.table(name, plan.date), manifest.table(name)
        for file in files:
            uri = join(folder, file.path)
            try:
                data = read(uri)
            except ObjectMissingError:
                yield f"{uri} is named by the manifest and missing"
                continue
            if hashlib.sha256(data).hexdigest() != file.sha256:
                yield f"{uri}: not the bytes that the manifest names"
    for info in unnamed_files(plan, manifest):
        yield f"{info.uri} is published, and the manifest does not name it: imgcls gc removes it"
