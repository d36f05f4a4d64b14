"""What rows of earlier versions mean to this one."""

import pyarrow as pa

from imgcls.runs.published import with_comparable_etags


def test_only_a_local_etag_loses_its_inode() -> None:
    md5 = "d41d8cd98f00b204e9800998ecf8427e"
    told = [
        ("/in/x.png", "18a1-5f-1f2e", "18a1-5f"),
        ("/in/x.png", "18a1-5f", "18a1-5f"),
        ("/in/gone.png", "", ""),
        ("/in/odd.png", "W/odd-5f-1", "W/odd-5f-1"),
        ("s3://b/x.png", "18a1-5f-1f2e", "18a1-5f-1f2e"),
        ("s3://b/parts.png", f"{md5}-12", f"{md5}-12"),
        ("az://c/x.png", "0x8DE2C0FFEE", "0x8DE2C0FFEE"),
    ]
    uris, etags, expected = (list(column) for column in zip(*told, strict=True))
    table = with_comparable_etags(pa.table({"etag": etags, "uri": uris}))
    assert table.column_names == ["etag", "uri"]
    assert table["etag"].to_pylist() == expected
