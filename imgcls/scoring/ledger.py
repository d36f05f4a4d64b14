"""The ledger: which images are published already, read from the published rows themselves.

In: an output prefix, a model and a spec digest. Out: (uri, etag, status) of every published row of
these digests. Invariant: there is no second book; what no manifest names was never scored.
"""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.published import list_published
from imgcls.storage.objects import read
from imgcls.storage.uri import join

_COLUMNS = ["uri", "etag", "status"]


def published_keys(output: str, model_digest: str, spec_digest: str) -> Iterator[pa.Table]:
    """Yield (uri, etag, status) of all rows published for this model and spec, a part at a time."""
    for folder, manifest in list_published(output):
        if (manifest.model_digest, manifest.spec_digest) != (model_digest, spec_digest):
            continue
        for part in manifest.parts:
            table = pq.read_table(io.BytesIO(read(join(folder, part["path"]))), columns=_COLUMNS)
            status = table.schema.get_field_index("status")
            yield table.set_column(status, "status", table["status"].cast(pa.string()))
