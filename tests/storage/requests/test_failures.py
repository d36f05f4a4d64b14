"""What a store's replies mean: which are final, which may pass, and that no secret is repeated."""

import pytest

from imgcls.errors import (
    AccessDeniedError,
    ConfigError,
    ImgclsError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.requests.failures import from_obstore, from_status
from imgcls.storage.requests.retry import TransientError


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", ObjectMissingError),
        (404, "NoSuchBucket", ConfigError),
        (412, "PreconditionFailed", ObjectChangedError),
        (403, "AccessDenied", ObjectUnreadableError),
        (403, "InvalidObjectState", ObjectUnreadableError),
        (409, "BlobArchived", ObjectUnreadableError),
        (403, "ExpiredToken", AccessDeniedError),
        (403, "InvalidAccessKeyId", AccessDeniedError),
        (403, "SignatureDoesNotMatch", AccessDeniedError),
        (403, "RequestTimeTooSkewed", AccessDeniedError),
        (403, "AuthenticationFailed", AccessDeniedError),
        (401, "", AccessDeniedError),
        (400, "ExpiredToken", AccessDeniedError),
        (301, "PermanentRedirect", ConfigError),
        (400, "AuthorizationHeaderMalformed", ConfigError),
        (400, "InvalidRequest", StorageError),
        (501, "NotImplemented", ConfigError),
        (500, "InternalError", TransientError),
        (502, "", TransientError),
        (503, "SlowDown", TransientError),
        (429, "TooManyRequests", TransientError),
        (400, "RequestTimeout", TransientError),
        (409, "ConditionalRequestConflict", TransientError),
    ],
)
def test_status_and_code_decide(
    status: int, code: str, kind: type[ImgclsError | TransientError]
) -> None:
    assert type(from_status(status, code, "reason", "read x")) is kind


@pytest.mark.parametrize(("status", "slow"), [(503, True), (429, True), (500, False)])
def test_only_a_request_for_less_slows_down(status: int, slow: bool) -> None:
    error = from_status(status, "", "reason", "read x")
    assert isinstance(error, TransientError)
    assert error.slow_down is slow


def test_obstore_errors_are_cut_down_to_their_cause() -> None:
    text = (
        "Generic S3 error: Error performing GET http://h/b/k in 1ms - Server returned non-2xx"
        " status code: 503 Service Unavailable: <Error><Code>SlowDown</Code><Message>Less"
        " please</Message><AWSAccessKeyId>AKIAHUSH</AWSAccessKeyId></Error>\n\nDebug source:\nlong"
    )
    error = from_obstore(RuntimeError(text), "read x")
    assert isinstance(error, TransientError)
    assert str(error) == "SlowDown: Less please"
    assert error.slow_down


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ('Os { code: 111, message: "Connection refused" }', "Connection refused"),
        ("error: IncompleteBody", "truncated body"),
        ("source: TimedOut", "timed out"),
    ],
)
def test_obstore_connection_errors_name_their_cause(details: str, reason: str) -> None:
    error = from_obstore(RuntimeError(f"Generic S3 error\n\nDebug source:\n{details}"), "read x")
    assert isinstance(error, TransientError)
    assert reason in str(error)


def test_a_certificate_that_is_refused_is_final_and_says_how_to_name_ones_own() -> None:
    text = "Generic S3 error\n\nDebug source:\nInvalidCertificate(\n    UnknownIssuer"
    for uri, variable in (("s3://b/k", "AWS_CA_BUNDLE"), ("gs://b/k", "REQUESTS_CA_BUNDLE")):
        error = from_obstore(RuntimeError(text), f"read '{uri}'")
        assert isinstance(error, ConfigError)
        assert variable in str(error)
