"""Images that failed and files that are no images: who is told from whom, and by what."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from imgcls.errors import DecodeError, StorageError
from imgcls.image.decode import decode
from imgcls.image.formats.sniff import family_of
from imgcls.image.outcome import outcome_of
from imgcls.image.png import encode_png
from imgcls.image.spec import DecodeSpec
from imgcls.schema import Status
from tests.scoring.tiny import image_bytes


def status_of(data: bytes, uri: str) -> Status:
    try:
        decode(data, DecodeSpec())
    except DecodeError as error:
        return outcome_of(error, uri, family_of(data))[0]
    return Status.OK


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.dcm", b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


TEXTS = {
    "json": json.dumps({"station": 4}).encode(),
    "xml": b'<?xml version="1.0"?><study/>',
    "html": b"<!DOCTYPE html><html><body>503</body></html>",
    "text": "uri,label\nä.png,1\n".encode(),
    "latin": ("Befund: unauffällig, Größe 4 mm. " * 4).encode("latin-1"),
    "utf-16": "[.ShellClassInfo]\r\nIcon=1\r\n".encode("utf-16"),
    "bmi": b"BMI,weight,height\n22.1,70,178\n",
}
KINDS = {
    "pdf": b"%PDF-1.7\n",
    "zip": zipped(),
    "gzip": gzip.compress(b"x"),
    "tar": tarred(),
    "ole": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
    "ds_store": b"\x00\x00\x00\x01Bud1" + bytes(100),
    "sqlite": b"SQLite format 3\x00" + bytes(80),
    "video": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(50),
}


@pytest.mark.parametrize("kind", [*TEXTS, *KINDS])
def test_files_of_other_kinds_are_not_images_unless_their_name_says_so(kind: str) -> None:
    data = (TEXTS | KINDS)[kind]
    for uri in ("s3://b/x.json", "/in/Thumbs.db", "/in/a.txt", "/in/.hidden", "/in/x.TAR"):
        assert status_of(data, uri) == Status.NOT_AN_IMAGE, uri
    for uri in ("/in/x.jpg", "/in/x.JPEG", "/in/x.dcm", "/in/x.nii.gz", "/in/.hidden.png"):
        assert status_of(data, uri) == Status.UNSUPPORTED, uri
    # What a failed download leaves where an image was meant is text.
    alone = Status.UNSUPPORTED if kind in TEXTS else Status.NOT_AN_IMAGE
    assert status_of(data, "/in/IM0001") == alone
    assert status_of(data, "/in/1.2.840.113619.2.55") == alone


@pytest.mark.parametrize("data", [b"", b"\xff", bytes(500), bytes(range(1, 9)) * 20, b"\x00\xff"])
def test_content_that_says_nothing_is_a_failure_unless_the_name_says_another_kind(
    data: bytes,
) -> None:
    for uri in ("/in/x.jpg", "/in/IM0001", "/in/x.dat", "/in/x.ima", "/in.json/x", "/in/.x.jpg"):
        assert status_of(data, uri) == Status.UNSUPPORTED, uri
    for uri in ("/in/x.csv", "/in/Thumbs.db", "/in/.gitkeep"):
        assert status_of(data, uri) == Status.NOT_AN_IMAGE, uri


@pytest.mark.parametrize("uri", ["/in/x.json", "/in/x.txt", "/in/Thumbs.db", "/in/.x", "/in/._x"])
def test_an_image_is_one_under_whatever_name_also_when_it_is_damaged(uri: str) -> None:
    png = image_bytes(1)
    assert status_of(png, uri) == Status.OK
    assert status_of(png[: len(png) // 2], uri) == Status.CORRUPT
    assert status_of(b"\xff\xd8\xff\xe0" + bytes(200), uri) == Status.CORRUPT
    assert status_of(b"8BPS" + bytes(100), uri) == Status.UNSUPPORTED


def test_what_macos_leaves_beside_an_image_is_none_although_it_has_its_suffix() -> None:
    assert status_of(b"\x00\x05\x16\x07" + bytes(100), "/in/._x.png") == Status.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("kind", "family"),
    [("latin", "text"), ("utf-16", "text"), ("bmi", "text"), ("html", "html"), ("zip", "zip")],
)
def test_the_family_of_another_kind_is_named(kind: str, family: str) -> None:
    assert family_of((TEXTS | KINDS)[kind]) == family


def test_the_family_of_an_image_is_told_by_content() -> None:
    import numpy as np

    assert family_of(encode_png(np.zeros((4, 4, 3), np.uint8))) == "png"
    assert family_of(b"\xff\xd8\xff\xe0") == "jpeg"
    assert family_of(bytes(128) + b"DICM") == "dicom"
    assert family_of(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic") == "heif"
    assert family_of(b"") is None


def test_an_error_that_is_of_no_image_is_raised() -> None:
    with pytest.raises(StorageError):
        outcome_of(StorageError("the disk"), "/in/x.png", None)
