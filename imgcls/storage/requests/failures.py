"""What the clients' exceptions mean.

In: an exception of obstore or of botocore. Out: one of ours, or TransientError. Invariant: this
is the only place that reads a client's status codes and messages; what is not known to be final is
transient.
"""

import re
from typing import Any

from imgcls.errors import (
    AccessDeniedError,
    ConfigError,
    ImgclsError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.requests.advice import advice_for
from imgcls.storage.requests.retry import TransientError

_NO_BUCKET = re.compile(
    r"NoSuchBucket|ContainerNotFound|ContainerBeingDeleted|InvalidBucketName|InvalidResourceName"
    r"|bucket does not exist"
)
_EXPIRED = re.compile(r"ExpiredToken|TokenRefreshRequired|InvalidToken|RequestTimeTooSkewed")
# A 403 with one of these is about who we are; any other may be about the one object.
_OF_CREDENTIALS = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|RequestExpired|AuthenticationFailed|AccountProblem"
    r"|InvalidAuthenticationInfo|InvalidSecurity|NotSignedUp|AllAccessDisabled|AccountIsDisabled"
)
_ARCHIVED = re.compile(r"BlobArchived|BlobBeingRehydrated|KMS\.\w*Exception")
_WRONG_REGION = re.compile(
    r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint|Received redirect"
)
_MAY_PASS = re.compile(r"RequestTimeout|IncompleteBody|OperationAborted|ConditionalRequestConflict")
_STATUS = re.compile(r"status code: (\d{3})")
_XML_ERROR = re.compile(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", re.DOTALL)
_OS_ERROR = re.compile(r'(?:message|error): "([^"]+)"')
_BAD_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
_URL = re.compile(r"https?://\S+|location .* not found")
_ON_THE_WAY = re.compile(r"Error performing|HTTP error")
_SLOW_DOWN_STATUSES = (429, 503)
_NO_SUCH_BYTES = re.compile(r"Wanted range starting at")
_MAX_REASON = 300


def from_status(status: int, code: str, reason: str, what: str) -> ImgclsError | TransientError:
    """Say what an HTTP error reply means.

    Args:
        status: HTTP status, 0 where the client does not tell.
        code: the store's error code, or any text that holds it.
        reason: the reply in one line, for the message.
        what: operation and URI, for the message.
    """
    if status == 501:
        return ConfigError(
            f"{what}: the store does not support this request ({reason}). imgcls needs writes on"
            " condition (If-None-Match, If-Match); use a store that has them"
        )
    if status >= 500 or status in _SLOW_DOWN_STATUSES or _MAY_PASS.search(code):
        return TransientError(reason, slow_down=status in _SLOW_DOWN_STATUSES)
    if _NO_BUCKET.search(code):
        return ConfigError(f"{what}: the bucket does not exist ({reason})")
    if _WRONG_REGION.search(code) or status in (301, 307):
        return ConfigError(f"{what}: {advice_for(what).elsewhere} ({reason})")
    if status in (401, 403) or _EXPIRED.search(code):
        is_of_us = status != 403 or _EXPIRED.search(code) or _OF_CREDENTIALS.search(code)
        kind = AccessDeniedError if is_of_us else ObjectUnreadableError
        return kind(f"{what}: access denied ({reason}); {advice_for(what).credentials}")
    if _ARCHIVED.search(code):
        return ObjectUnreadableError(f"{what}: {reason}")
    if status == 404:
        return ObjectMissingError(f"{what}: no such object")
    if status == 412:
        return ObjectChangedError(f"{what}: not the version that was asked for")
    if status == 416:
        return ObjectChangedError(f"{what}: it ends before the bytes that were asked for")
    return StorageError(f"{what}: {reason}")


def from_obstore(error: Exception, what: str) -> ImgclsError | TransientError:
    """Say what an exception of obstore means."""
    from obstore import exceptions

    text, _, details = str(error).partition("\n\nDebug source")
    reason = _reason_of_obstore(text, details, what)
    reply = _XML_ERROR.search(text)
    # Not the whole text where it can be helped: the name of the object is in it.
    code = reply[1] if reply else _URL.sub("", text)
    match = _STATUS.search(text)
    status = int(match[1]) if match else 416 if _NO_SUCH_BYTES.search(text) else 0
    if isinstance(error, FileNotFoundError):
        status = 404
    elif isinstance(error, exceptions.UnauthenticatedError):
        status = 401
    elif isinstance(error, exceptions.PermissionDeniedError):
        status = 403
    elif isinstance(error, exceptions.AlreadyExistsError):
        return ObjectExistsError(f"{what}: another writer was first")
    elif isinstance(error, exceptions.PreconditionError):
        status = 412
    elif isinstance(error, ValueError | exceptions.NotSupportedError | exceptions.InvalidPathError):
        return StorageError(f"{what}: {reason}")
    if status or _WRONG_REGION.search(code):
        return from_status(status, code, reason, what)
    if _BAD_CERTIFICATE.search(details):
        return ConfigError(f"{what}: {reason}")
    if isinstance(error, exceptions.GenericError) and not _ON_THE_WAY.search(text):
        # The client would not send it: it will not the next time either.
        return StorageError(f"{what}: {reason}")
    return TransientError(reason)


def _reason_of_obstore(text: str, details: str, what: str) -> str:
    """Cut an error of obstore, some 40 lines, down to what a reader needs."""
    reply = _XML_ERROR.search(text)
    if reply:
        return f"{reply[1]}: {reply[2] or ''}"[:_MAX_REASON]
    if "IncompleteBody" in details:
        return "truncated body"
    if "TimedOut" in details:
        return "timed out"
    refused = _BAD_CERTIFICATE.search(details)
    if refused:
        return _bad_certificate(refused[1], what)
    causes = _OS_ERROR.findall(details)
    return causes[-1] if causes else " ".join(text.split())[:_MAX_REASON]


def _bad_certificate(reason: str, what: str) -> str:
    return (
        f"the certificate is refused ({reason}); {advice_for(what).certificate} names a CA of your"
        " own"
    )


def from_botocore(error: Exception, what: str) -> ImgclsError | TransientError:
    """Say what an exception of botocore means."""
    from botocore import exceptions  # type: ignore[import-untyped]  # botocore ships no types

    reason = " ".join(str(error).split())[:_MAX_REASON]
    if isinstance(error, exceptions.ClientError):
        response: dict[str, Any] = error.response
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(response.get("Error", {}).get("Code", ""))
        if status == 400 and code == "400":
            # The reply to a HEAD has no body. Expired credentials are the usual reason.
            status, reason = (
                403,
                f"{reason}: expired credentials, or another region than AWS_REGION",
            )
        return from_status(status, code, reason, what)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return AccessDeniedError(f"{what}: no credentials; {advice_for(what).credentials}")
    if isinstance(
        error,
        exceptions.CredentialRetrievalError | exceptions.TokenRetrievalError | exceptions.SSOError,
    ):
        return AccessDeniedError(f"{what}: {reason}; {advice_for(what).credentials}")
    if isinstance(
        error,
        exceptions.ProfileNotFound
        | exceptions.ConfigParseError
        | exceptions.ParamValidationError
        | ValueError,
    ):
        return ConfigError(f"{what}: {reason}")
    on_the_way = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.MetadataRetrievalError,
    )
    if isinstance(error, exceptions.BotoCoreError) and not isinstance(error, on_the_way):
        # The client would not send it: it will not the next time either.
        return StorageError(f"{what}: {type(error).__name__}: {reason}")
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in reason:
        return ConfigError(f"{what}: {_bad_certificate(reason, what)}")
    never_sent = (
        exceptions.EndpointConnectionError,
        exceptions.ConnectTimeoutError,
        exceptions.ProxyConnectionError,
    )
    return TransientError(
        f"{type(error).__name__}: {reason}", sent=not isinstance(error, never_sent)
    )


def from_requests(error: Exception, what: str) -> ImgclsError | TransientError:
    """Say what an exception of requests means: a request without a reply, or half of one."""
    from requests import exceptions
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = " ".join(str(error).split())[:_MAX_REASON]
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in reason:
        return ConfigError(f"{what}: {_bad_certificate(reason, what)}")
    if isinstance(error, ValueError) and not isinstance(error, exceptions.RetryError):
        # The client would not send it: it will not the next time either.
        return ConfigError(f"{what}: {reason}")
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    never_sent = isinstance(error, exceptions.ConnectTimeout | exceptions.ProxyError) or isinstance(
        cause, ConnectTimeoutError | NewConnectionError
    )
    return TransientError(f"{type(error).__name__}: {reason}", sent=not never_sent)


def from_google(error: Exception, what: str) -> ImgclsError | TransientError:
    """Say what an exception of google-auth means: no credentials, or none that work."""
    from google.auth.exceptions import TransportError

    reason = " ".join(str(error).split())[:_MAX_REASON]
    if isinstance(error, TransportError) or getattr(error, "retryable", False):
        return TransientError(f"no token: {reason}", sent=False)
    return AccessDeniedError(f"{what}: no credentials ({reason}); {advice_for(what).credentials}")


def from_azure(error: Exception, what: str) -> ImgclsError | TransientError:
    """Say what an exception of Azure's client means."""
    from azure.core import exceptions

    lines = str(error).split("\n")
    reason = " ".join(lines[0].split())[:_MAX_REASON]
    if isinstance(error, exceptions.HttpResponseError) and error.status_code:
        code = str(getattr(error, "error_code", None) or "")
        status = error.status_code
        if status == 409 and code == "BlobAlreadyExists":
            return ObjectExistsError(f"{what}: another writer was first")
        return from_status(status, code, f"{code}: {reason}" if code else reason, what)
    if isinstance(error, exceptions.ClientAuthenticationError):
        return AccessDeniedError(f"{what}: {reason}; {advice_for(what).credentials}")
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return ConfigError(f"{what}: {_bad_certificate(reason, what)}")
    on_the_way = (
        exceptions.ServiceRequestError,
        exceptions.ServiceResponseError,
        exceptions.IncompleteReadError,
        exceptions.HttpResponseError,
        OSError,
    )
    if not isinstance(error, on_the_way):
        return ConfigError(f"{what}: {reason}")
    return TransientError(
        f"{type(error).__name__}: {reason}",
        sent=not isinstance(error, exceptions.ServiceRequestError),
    )
