"""Records of any version are read by the one library, or refused in words."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from imgcls.errors import ConfigError, SourceError
from imgcls.storage.records import parse_record, record_text


@dataclass(frozen=True)
class Inner:
    color: Literal["red", "blue"] = "red"


@dataclass(frozen=True)
class Outer:
    name: str
    sizes: tuple[int, ...]
    share: float = 0.5
    by_name: dict[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = ()
    any: dict[str, Any] | None = None


WHOLE = Outer("a", (1, 2), 1.0, {"x": 1}, Inner("blue"), (Inner(), Inner("blue")), {"k": [1]})


def test_a_record_comes_back_as_it_was_written() -> None:
    assert parse_record(record_text(WHOLE), "it", ConfigError, Outer) == WHOLE
    text = record_text(WHOLE, format_version=3, indent=1)
    assert json.loads(text)["format_version"] == 3
    assert parse_record(text, "it", ConfigError, Outer, format_version=3) == WHOLE
    assert "name" not in json.loads(record_text(WHOLE, leave_out=("name",)))


def test_fields_of_a_later_version_are_passed_over_at_any_depth() -> None:
    fields = json.loads(record_text(WHOLE))
    fields["added"] = {"deep": [1]}
    fields["inner"]["added"] = 1
    fields["inners"][1]["added"] = None
    assert parse_record(json.dumps(fields), "it", ConfigError, Outer) == WHOLE


def test_fields_that_an_earlier_version_lacks_have_their_default() -> None:
    read = parse_record('{"name": "a", "sizes": []}', "it", ConfigError, Outer)
    assert read == Outer("a", ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": None}, r"\$\.name"),
        ({"sizes": [1, "2"]}, r"\$\.sizes\[1\]"),
        ({"sizes": 3}, r"\$\.sizes"),
        ({"inner": {"color": "pink"}}, r"'pink' - at `\$\.inner\.color`"),
        ({"by_name": {"x": 1.5}}, "by_name"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_place(
    change: dict[str, Any], words: str
) -> None:
    text = json.dumps(json.loads(record_text(WHOLE)) | change)
    with pytest.raises(SourceError, match=f"^a/b.json is not what imgcls writes there: .*{words}"):
        parse_record(text, "a/b.json", SourceError, Outer)


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(SourceError, match="sizes"):
        parse_record('{"name": "a"}', "it", SourceError, Outer)


@pytest.mark.parametrize("found", [2, "1", None, {"a": 1}])
def test_another_format_is_refused_by_its_number_before_anything_else(found: object) -> None:
    with pytest.raises(SourceError, match="reads 1"):
        parse_record(
            json.dumps({"format_version": found}), "it", SourceError, Outer, format_version=1
        )
    with pytest.raises(SourceError, match="missing"):
        parse_record("{}", "it", SourceError, Outer, format_version=1)
