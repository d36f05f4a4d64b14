"""No library that works for imgcls reports its use to its makers.

In: nothing. Out: the setting by which each is told so, made when imgcls is imported, so before any
of them is, in every process. Invariant: what the environment says already stays.
"""

import os
import sys
from typing import Final

RAY: Final = {"RAY_USAGE_STATS_ENABLED": "0"}
_SETTINGS: Final = RAY | {
    "DO_NOT_TRACK": "true",  # the word of donottrack.sh, which some take for all
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NNCF_CI": "1",
}


def switch_off() -> None:
    """Make the settings that are not made yet."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # OpenVINO asks no variable: it reports where this package can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not there
