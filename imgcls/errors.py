"""Every error imgcls raises on purpose, drawn as a tree.

In: nothing. Out: exception classes. Invariant: each takes ONE message and survives pickling,
because it crosses process borders (decoder children, Ray actors); what a caller must decide on is
its type.

    ImgclsError                     exit 1  anything unexpected
    ├── ConfigError                 exit 2  flags, config or data that the user can mend
    │   ├── BundleError                     a model bundle that is damaged or is none
    │   └── SourceError                     an image source that is missing, empty or unreadable
    ├── DamagedCheckpointError      exit 1  not what was written; an older one serves
    ├── BudgetExceededError         exit 3  more images failed than --max-failed-fraction allows
    ├── LeaseHeldError              exit 4  another run may write to this output
    ├── NightHeldError              exit 6  its pictures changed; a person decides
    ├── RunStoppedError             exit 5  stopped before the end; the same command resumes
    │   ├── ShardFailedError                a shard whose storage did not answer in time
    │   └── DeviceFailedError               the model does not run any more where it ran
    ├── StorageError                exit 1  the store failed after all retries
    │   ├── ObjectMissingError              404
    │   ├── ObjectChangedError              412 on If-Match: overwritten since it was planned
    │   ├── ObjectExistsError               412 on If-None-Match: another writer was first
    │   ├── CommitStateUnknownError         a PUT whose outcome could not be learnt
    │   └── AccessDeniedError       exit 2  401, 403, or no credentials at all
    │       └── ObjectUnreadableError       this one object is refused; others may be given
    └── DecodeError                         one image's failure: becomes a row, never ends a run
        ├── NotAnImageError                 by its content something else than an image
        ├── UnsupportedImageError           not an image format we read
        ├── CorruptImageError               damaged
        ├── ImageTooLargeError              header beyond max_pixels
        ├── DecodeTimeoutError              wall limit passed
        └── DecoderCrashError               the decoder process died on it, twice
"""

import re
from typing import ClassVar

_QUOTED_BYTES = re.compile(r"""b'(?:[^'\\]|\\.)*'?|b"(?:[^"\\]|\\.)*"?""")


class ImgclsError(Exception):
    """Root of all expected errors; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ConfigError(ImgclsError):
    """Flags, config or data that the user can mend."""

    exit_code = 2


class BundleError(ConfigError):
    """A model bundle that is damaged, incomplete or none at all."""


class DamagedCheckpointError(ImgclsError):
    """A checkpoint of which a file is missing, or is not the one that was written."""


class SourceError(ConfigError):
    """An image source or data set that is missing, empty or unreadable."""


class BudgetExceededError(ImgclsError):
    """More images failed than the run's failure budget allows."""

    exit_code = 3


class LeaseHeldError(ImgclsError):
    """Another run holds the lease of this output."""

    exit_code = 4


class NightHeldError(ImgclsError):
    """A night is held back from publishing, until a person releases it or takes it back."""

    exit_code = 6


class RunStoppedError(ImgclsError):
    """The run stopped before its end; the same command resumes it."""

    exit_code = 5


class ShardFailedError(RunStoppedError):
    """A shard could not be finished, for a reason of the infrastructure."""


class DeviceFailedError(RunStoppedError):
    """The model does not run here (any more), whatever the image: its device, memory or library."""


class StorageError(ImgclsError):
    """The store failed after all retries."""


class ObjectMissingError(StorageError):
    """The object does not exist (404)."""


class ObjectChangedError(StorageError):
    """The object is not the version that was asked for (412 on If-Match)."""


class ObjectExistsError(StorageError):
    """Another writer was first (412 on If-None-Match)."""


class CommitStateUnknownError(StorageError):
    """A PUT whose outcome could not be learnt, even by reading back."""


class AccessDeniedError(StorageError):
    """The store refuses us: 401, 403, or no credentials at all."""

    exit_code = 2


class ObjectUnreadableError(AccessDeniedError):
    """This object is refused, for a reason that may be its own: its owner and mode, its key."""


class DecodeError(ImgclsError):
    """One image's failure to become pixels; `status` is what its row says."""

    status: ClassVar[str] = "corrupt"

    def __init__(self, message: str) -> None:
        # Libraries quote what they do not understand. A list of images may name any file of this
        # machine, and this message becomes a cell of a table that others read.
        super().__init__(_QUOTED_BYTES.sub("(its bytes)", message))


class NotAnImageError(DecodeError):
    """The bytes are something else than an image, such as a report or a text; says what."""

    status = "not_an_image"


class UnsupportedImageError(DecodeError):
    """The bytes are of a format or variant that we do not read, or of none that is known."""

    status = "unsupported"


class CorruptImageError(DecodeError):
    """The bytes begin like an image and do not decode."""

    status = "corrupt"


class ImageTooLargeError(DecodeError):
    """The header promises more pixels than the decode spec allows."""

    status = "too_large"


class DecodeTimeoutError(DecodeError):
    """Decoding took longer than the wall limit."""

    status = "timeout"


class DecoderCrashError(DecodeError):
    """The decoder process died on this image, also when it was tried alone."""

    status = "decoder_crash"
