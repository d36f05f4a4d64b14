import pytest

from imgcls.data.class_names import ClassNames, from_labels
from imgcls.errors import ConfigError


def test_names_are_sorted_and_map_both_ways() -> None:
    names = from_labels(["b", "a", "10", "2", "a"])
    assert names.names == ("10", "2", "a", "b")
    assert [names.label_of(names.names[label]) for label in range(4)] == [0, 1, 2, 3]


def test_unknown_class_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'cat'.*'a', 'b'"):
        ClassNames(("a", "b")).label_of("cat")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no classes"),
        (["a", "a"], "one class only, 'a'"),
        (["a", " "], "empty"),
        (["Cat", "dog", "cat"], "case.*'Cat', 'cat'"),
        (["cat", "cat "], "blanks.*'cat', 'cat '"),
    ],
)
def test_unusable_names_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_labels(labels)
