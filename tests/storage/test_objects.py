"""The contract of the control plane, the same on a local disk and on S3."""

from datetime import UTC, datetime, timedelta

import pytest

from imgcls.errors import ObjectChangedError, ObjectExistsError, ObjectMissingError
from imgcls.storage.bucket import Folder
from imgcls.storage.objects import (
    delete,
    exists,
    head,
    list_entries,
    list_folder,
    list_objects,
    put,
    put_if_match,
    put_new,
    read,
    read_with_etag,
)
from imgcls.storage.stores import s3
from imgcls.storage.uri import join


def test_what_was_put_is_read(root: str) -> None:
    uri, body = join(root, "a/b/c"), bytes(range(256)) * 4000
    etag = put(uri, body)
    assert read(uri) == body
    assert read_with_etag(uri) == (body, etag)


def test_empty_object_is_an_object(root: str) -> None:
    etag = put_new(join(root, "empty"), b"")
    assert read_with_etag(join(root, "empty")) == (b"", etag)
    assert head(join(root, "empty")).size_bytes == 0


def test_head_and_listing_and_put_agree(root: str) -> None:
    uri = join(root, "x")
    etag = put(uri, b"12345")
    info = head(uri)
    (listed,) = list_objects(root)
    assert (info.uri, info.etag, info.size_bytes) == (uri, etag, 5)
    assert (listed.uri, listed.etag, listed.size_bytes) == (uri, etag, 5)
    assert '"' not in etag
    assert abs(datetime.now(UTC) - listed.last_modified) < timedelta(minutes=1)
    assert listed.last_modified.utcoffset() == timedelta(0)


def test_one_level_is_listed_without_what_is_below(root: str) -> None:
    for name in ("p/1", "p/q/2", "p/q/r/3", "x"):
        put(join(root, name), b"x")
    level = list_folder(join(root, "p"))
    if root.startswith("az://"):
        assert level is None, "listed in one stream"
        return
    assert level is not None
    assert level.folders == [f"{join(root, 'p/q')}/"]
    assert [entry.uri for entry in level.entries] == [join(root, "p/1")]
    assert list_folder(join(root, "nothing")) == Folder([], [])


def test_missing_object_is_said_to_be_missing(root: str) -> None:
    put(join(root, "other"), b"")
    for operation in (head, read, read_with_etag):
        with pytest.raises(ObjectMissingError, match="nothing-here"):
            operation(join(root, "nothing-here"))
    assert not exists(join(root, "nothing-here"))
    assert exists(join(root, "other"))


def test_a_folder_is_no_object(root: str) -> None:
    put(join(root, "folder/x"), b"")
    assert not exists(join(root, "folder"))
    with pytest.raises(ObjectMissingError):
        read(join(root, "folder"))


def test_delete_removes_and_forgives(root: str) -> None:
    put(join(root, "x"), b"")
    delete(join(root, "x"))
    delete(join(root, "x"))
    assert not exists(join(root, "x"))


def test_put_new_refuses_a_taken_name_even_for_equal_bytes(root: str) -> None:
    put_new(join(root, "x"), b"first")
    for body in (b"second", b"first"):
        with pytest.raises(ObjectExistsError):
            put_new(join(root, "x"), body)
    assert read(join(root, "x")) == b"first"


def test_put_if_match_replaces_only_the_version_it_names(root: str) -> None:
    uri = join(root, "x")
    first = put_new(uri, b"1")
    second = put_if_match(uri, b"2", first)
    assert second != first
    with pytest.raises(ObjectChangedError):
        put_if_match(uri, b"3", first)
    assert read_with_etag(uri) == (b"2", second)


def test_put_if_match_of_nothing_is_missing(root: str) -> None:
    put(join(root, "other"), b"")
    with pytest.raises(ObjectMissingError):
        put_if_match(join(root, "x"), b"1", "etag")
    assert not exists(join(root, "x"))


def test_listing_is_of_a_folder_not_of_a_prefix_of_names(root: str) -> None:
    for name in ("p/1", "p/q/2", "pq/3", "p.4"):
        put(join(root, name), b"x")
    for prefix in (join(root, "p"), join(root, "p/")):
        assert {info.uri for info in list_objects(prefix)} == {
            join(root, "p/1"),
            join(root, "p/q/2"),
        }
    assert len(list(list_objects(root))) == 4


def test_empty_place_lists_nothing(root: str) -> None:
    assert list(list_entries(join(root, "nothing"))) == []


def test_listing_goes_on_after_any_object_of_it(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 4)
    for i in range(11):
        put(join(root, f"{i % 3}/{i:02d}"), b"x")
    uris = [info.uri for info in list_objects(root)]
    assert len(uris) == len(set(uris)) == 11
    for position, uri in enumerate(uris):
        rest = [info.uri for info in list_objects(root, start_after=uri)]
        assert rest == uris[position + 1 :]


def test_listing_may_be_left_early(root: str) -> None:
    for i in range(5):
        put(join(root, f"{i}"), b"x")
    listing = list_objects(root)
    next(listing)
    listing.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(list_objects(root))) == 5
