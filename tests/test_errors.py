import inspect
import pickle
import re

import pytest

from imgcls import errors
from imgcls.errors import DecodeError, ImgclsError
from imgcls.schema import Status

ERRORS = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ImgclsError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_survives_pickling(kind: type[ImgclsError]) -> None:
    again = pickle.loads(pickle.dumps(kind("what, value, way out")))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert str(again) == "what, value, way out"
    assert again.exit_code == kind.exit_code


def test_every_decode_error_has_a_status_of_the_schema() -> None:
    kinds = [kind for kind in ERRORS if issubclass(kind, DecodeError)]
    assert {Status(kind.status) for kind in kinds} == {
        Status.NOT_AN_IMAGE,
        Status.UNSUPPORTED,
        Status.CORRUPT,
        Status.TOO_LARGE,
        Status.TIMEOUT,
        Status.DECODER_CRASH,
    }


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"([A-Z]\w+Error)\b", errors.__doc__ or "")
    assert sorted(set(drawn)) == sorted(kind.__name__ for kind in ERRORS)
    for kind in ERRORS:
        told = re.search(rf"\b{kind.__name__} +exit (\d)", errors.__doc__ or "")
        if told:
            assert int(told[1]) == kind.exit_code
