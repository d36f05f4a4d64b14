"""Archives of test images, as people and as attackers make them."""

import io
import tarfile
import zipfile
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq


def tar_bytes(files: Mapping[str, bytes], mode: str = "w", **options: object) -> bytes:
    """A tar of these files, in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these files, in order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet_bytes(
    files: Mapping[str, bytes | None], *, rows_per_group: int = 7, with_path: bool = True
) -> bytes:
    """A Parquet file of these images, as Hugging Face writes it."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": name if with_path else None} for name, data in files.items()]
    labels = pa.array(list(range(len(files))))
    table = pa.table({"image": pa.array(rows, struct), "label": labels})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_group)
    return buffer.getvalue()
