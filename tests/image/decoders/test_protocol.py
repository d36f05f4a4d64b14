"""What a child says of an image becomes the error of that kind, and never another image's fate."""

import pytest

from imgcls import errors
from imgcls.errors import DecodeError
from imgcls.image.decoders.protocol import error_from
from imgcls.image.outcome import outcome_of
from imgcls.schema import Status


def kinds() -> list[type[DecodeError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, DecodeError) and kind is not DecodeError]


@pytest.mark.parametrize("kind", kinds())
def test_each_error_of_an_image_has_a_status_and_comes_back_as_itself(
    kind: type[DecodeError],
) -> None:
    error = error_from({"status": kind.status, "reason": "why"})
    assert type(error) is kind
    if kind is not errors.NotAnImageError:  # of which the name decides too
        assert outcome_of(error, "x.png", "png") == (Status(kind.status), "why")


def test_a_kind_that_is_not_known_here_keeps_its_reason_and_takes_no_process_along() -> None:
    """It was a LookupError once: the process was killed, and after it the next, as a crash."""
    error = error_from({"status": "of_a_newer_version", "reason": "why"})
    assert outcome_of(error, "x.png", "png") == (Status.CORRUPT, "of_a_newer_version: why")
