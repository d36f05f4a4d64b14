"""All that decoding may ever import, open or look up, before the sandbox closes.

In: nothing. Out: modules, codecs and tables in memory. Invariant: an image decodes to the same
pixels in a process that has loaded this and can open no file, and in one that can.
"""

import codecs
import sys
import time
from typing import Final

import numpy as np

from imgcls.image.facts.source import looking, see_greys
from imgcls.image.formats.dicom import plugins
from imgcls.image.formats.raster import decode

# pydicom would download its test files by it; a decoder reaches no network, and without it saves
# 177 modules and 5 MiB.
_NEVER_NEEDED: Final = "requests"
# Of texts in headers; Python imports each at its first use.
_ENCODINGS: Final = ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "idna")


def load_everything() -> None:
    """Load every decoder that is installed; for a process that does nothing else."""
    sys.modules.setdefault(_NEVER_NEEDED, None)  # type: ignore[arg-type]  # documented by importlib
    decode.load_plugins()
    plugins.load_plugins()
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    with looking("ranges"):  # NumPy imports some of itself at the first use
        see_greys(np.zeros((2, 2)), bits=16, rule="declared", kind="")
    time.localtime()  # reads the time zone
