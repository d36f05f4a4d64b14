"""A label finds its one row, or is refused; never another's."""

import pytest

from imgcls.config.choices import MatchBy
from imgcls.data.matching import Matching, refuse_no_match
from imgcls.errors import ConfigError

LABELS = ["/w/labels/in/dark/1.png", "/w/labels/in/light/1.png", "/w/labels/in/light/2.png"]


def test_by_uri_only_the_very_same_matches() -> None:
    matching = Matching(LABELS, "uri")
    assert matching.of(LABELS[0]) == LABELS[0]
    assert matching.of("s3://b/in/dark/1.png") is None
    assert matching.of(LABELS[0]) == LABELS[0]  # another frame, another run


def test_by_suffix_the_longest_common_end_wins() -> None:
    matching = Matching(LABELS, "suffix")
    assert matching.of("s3://b/in/dark/1.png") == LABELS[0]
    assert matching.of("s3://b/in/light/1.png") == LABELS[1]
    assert matching.of("s3://b/x/2.png") == LABELS[2]
    assert matching.of("s3://b/x/3.png") is None


def test_by_name_folders_do_not_count() -> None:
    matching = Matching(LABELS[1:], "name")
    assert matching.of("s3://b/1.png") == LABELS[1]
    assert matching.of("s3://b/1.png") == LABELS[1]
    with pytest.raises(ConfigError, match=r"light/1.png fits s3://b/1.png and s3://b/other/1.png"):
        matching.of("s3://b/other/1.png")


def test_what_several_labels_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 labels are of files called '1.png'.*suffix"):
        Matching(LABELS, "name")
    with pytest.raises(ConfigError, match=r"fit s3://b/1.png equally"):
        Matching(LABELS, "suffix").of("s3://b/1.png")


@pytest.mark.parametrize("match_by", ["uri", "suffix", "name"])
def test_where_none_matches_one_of_each_side_is_shown(match_by: MatchBy) -> None:
    with pytest.raises(ConfigError, match=r"3 labels has a row.*labels/in/dark/1.png.*'s3://b/x'"):
        refuse_no_match(LABELS, "s3://b/x", match_by)
