"""Splitting and joining: keys are opaque, secrets stay out, local names stay in."""

from pathlib import Path

import pytest

from imgcls.errors import ConfigError
from imgcls.storage.uri import is_local, join, split_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b", ("s3", "b", "")),
        ("s3://b/", ("s3", "b", "")),
        ("s3://b/k", ("s3", "b", "k")),
        ("s3://b//a//b/", ("s3", "b", "/a//b/")),
        ("s3://b/a/../%2F?x#y z+\n", ("s3", "b", "a/../%2F?x#y z+\n")),
        ("s3://b/http://c@d", ("s3", "b", "http://c@d")),
        ("gs://my-bucket.x/k", ("gs", "my-bucket.x", "k")),
        ("az://container/k", ("az", "container", "k")),
        ("/a//b/../c", ("", "", "/a/c")),
        ("//a", ("", "", "/a")),
    ],
)
def test_split_cuts_after_the_bucket_and_leaves_the_key_alone(
    uri: str, expected: tuple[str, str, str]
) -> None:
    assert split_uri(uri) == expected


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_uri("x/y") == ("", "", str(tmp_path / "x/y"))
    assert is_local("x/y")
    assert not is_local("s3://b/k")


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("file:///x", "file:// is not a scheme"),
        ("ftp://host/x", "ftp:// is not a scheme"),
        ("S3://b/k", "S3:// is not a scheme"),
        ("s3://", "names no bucket"),
        ("s3:///k", "names no bucket"),
        ("s3://b c/k", "names no bucket"),
        ("s3://host:9000/b", "AWS_ENDPOINT_URL"),
        ("", "empty path"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_no_uri_is_refused_with_the_way_out(uri: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        split_uri(uri)


@pytest.mark.parametrize("uri", ["s3://KEYID:hush@bucket/k", "s3://hush@bucket"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_uri(uri)
    assert "hush" not in str(caught.value)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://b", "k"), "s3://b/k"),
        (("s3://b/", "k"), "s3://b/k"),
        (("s3://b/p//", "k"), "s3://b/p//k"),
        (("s3://b", "a", "b c", "d"), "s3://b/a/b c/d"),
        (("s3://b/p", "/k"), "s3://b/p//k"),
        (("s3://b/p", "../k"), "s3://b/p/../k"),
        (("s3://b", "%2F+?"), "s3://b/%2F+?"),
        (("/root/", "x", "y"), "/root/x/y"),
    ],
)
def test_join_adds_one_slash_and_leaves_parts_alone(parts: tuple[str, ...], expected: str) -> None:
    assert join(*parts) == expected


@pytest.mark.parametrize("part", ["../x", "a/../../x", ".."])
def test_join_never_leads_out_of_a_local_folder(part: str) -> None:
    with pytest.raises(ConfigError, match="lead out"):
        join("/root", part)


def test_an_absolute_part_stays_under_the_local_folder() -> None:
    assert split_uri(join("/root", "/etc/passwd"))[2] == "/root/etc/passwd"
