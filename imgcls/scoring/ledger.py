"""The ledger: which images are published already, read from the published rows themselves.

In: an output prefix, a model and a spec digest. Out: (uri, etag, status) of every published row of
these digests. Invariant: there is no second book; what no manifest names was never scored.
"""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.scoring.publish import Manifest, read_manifest
from imgcls.storage.objects import list_objects, read
from imgcls.storage.uri import join

_COLUMNS = ["uri", "etag", "status"]


def list_published(output: str) -> Iterator[tuple[str, Manifest]]:
    """Yield every published run of an output: its folder and its manifest, oldest date first."""
    # "~" sorts after "/": the listing starts behind everything under _runs/.
    for info in list_objects(output, start_after=join(output, "_runs~")):
        folder, _, name = info.uri.rpartition("/")
        if name != "_manifest.json":
            continue
        manifest = read_manifest(folder)
        # None: rolled back between the listing and this read.
        if manifest is not None:
            yield folder, manifest


def published_keys(output: str, model_digest: str, spec_digest: str) -> Iterator[pa.Table]:
    """Yield (uri, etag, status) of all rows published for this model and spec, a part at a time."""
    for folder, manifest in list_published(output):
        if (manifest.model_digest, manifest.spec_digest) != (model_digest, spec_digest):
            continue
        for part in manifest.parts:
            table = pq.read_table(io.BytesIO(read(join(folder, part["path"]))), columns=_COLUMNS)
            status = table.schema.get_field_index("status")
            yield table.set_column(status, "status", table["status"].cast(pa.string()))
