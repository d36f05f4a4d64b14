"""What this machine can do: formats, DICOM transfer syntaxes, devices, and their versions.

In: this machine. Out: a report, as tables on stderr and as the JSON line. Invariant: a format is
called readable after an image of it was decoded here, not because a package is installed.
"""

import os
import sys
from importlib import metadata
from typing import Any

from imgcls.config.operations import DoctorConfig
from imgcls.image.capabilities import decode_capabilities

_PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "botocore", "obstore", "duckdb")


def doctor(_config: DoctorConfig) -> dict[str, Any]:
    """Report what this machine can decode and on what it computes."""
    import torch

    report = decode_capabilities()
    report["packages"] |= {name: metadata.version(name) for name in _PACKAGES}
    report["devices"] = {
        "cpu": f"{len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
    _show(report)
    return report


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stderr, soft_wrap=True)
    for title, rows in report.items():
        if not isinstance(rows, dict):
            continue
        table = Table(title=title.replace("_", " "), show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, ", ".join(value) or "none" if isinstance(value, list) else value)
        console.print(table)
