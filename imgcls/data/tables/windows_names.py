r"""Names of files as Windows writes them: scans\a.png.

In: the names in a manifest. Out: the same, with "/" in relative names. Invariant: a name that has a
"/" is as it is, and so is one that a file of this disk has, backslash and all; a drive or a share
is refused, since nobody knows where it lies here.
"""

import logging
import os
import re
from dataclasses import dataclass

from imgcls.errors import SourceError
from imgcls.storage.uri import is_local

_ABSOLUTE = re.compile(r"[A-Za-z]:\\|\\\\")

_log = logging.getLogger(__name__)


@dataclass
class WindowsNames:
    """The names of one manifest.

    Args:
        manifest: Its URI.
        folder: Where its relative names begin.
    """

    manifest: str
    folder: str
    num_translated: int = 0
    example: str = ""

    def translated(self, given: str, where: str) -> str:
        """Return a name with the separators of this system.

        Args:
            given: The name as it stands in the manifest.
            where: Words that name its row.

        Raises:
            SourceError: the name begins with a drive or a share.
        """
        if "\\" not in given or "/" in given:
            return given
        if is_local(self.folder) and os.path.lexists(f"{self.folder}{given}"):
            return given
        if _ABSOLUTE.match(given):
            raise SourceError(
                f"{where}: {given} is a path of another system: write names below a folder, "
                r"such as line1\x.png, and say by --root where that folder lies here"
            )
        self.num_translated += 1
        self.example = self.example or given
        return given.replace("\\", "/")

    def tell(self) -> None:
        """Say in the log what was translated."""
        if self.num_translated:
            _log.info(
                "%s: %d names are written with backslashes, such as %s: read with /",
                self.manifest, self.num_translated, self.example,
            )  # fmt: skip
