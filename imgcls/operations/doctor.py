"""What this machine can do, or what is wrong with a cluster.yaml.

In: this machine, or a file. Out: a report, as tables on stderr and as the JSON line. Invariant: a
format is called readable after an image of it was decoded here, not because a package is installed.
"""

import logging
import os
import sys
from dataclasses import asdict
from importlib import metadata
from typing import Any

from imgcls.config.operations import DoctorConfig
from imgcls.errors import ConfigError
from imgcls.image.capabilities import decode_capabilities
from imgcls.operations.cluster_file import check_cluster_file

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "botocore", "obstore", "duckdb")


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Report what this machine can decode and on what it computes, or check a cluster.yaml.

    Raises:
        ConfigError: a cluster.yaml that cannot be read; what is wrong with a readable one is all in
            the result, whose exit code is 2 then.
    """
    if config.cluster_file and config.data:
        raise ConfigError("doctor looks at a cluster.yaml, or at --data, not both")
    if config.data:
        from imgcls.labelling.doctor.driver import look_through

        return look_through(config)
    if config.cluster_file:
        return _check(config.cluster_file)
    import torch

    report = decode_capabilities()
    report["packages"] |= {name: metadata.version(name) for name in _PACKAGES}
    report["devices"] = {
        "cpu": f"{len(os.sched_getaffinity(0))} cores, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
    _show(report)
    return report


def _check(path: str) -> dict[str, Any]:
    findings = check_cluster_file(path)
    for finding in findings:
        kind = "warning" if finding.is_warning else "refused"
        log.log(
            logging.WARNING if finding.is_warning else logging.ERROR,
            "%s: %s: %s %s. Way out: %s",
            kind, finding.name, finding.where, finding.problem, finding.way_out,
        )  # fmt: skip
    refused = [asdict(finding) for finding in findings if not finding.is_warning]
    return {
        "cluster_file": path,
        "ok": not refused,
        "refused": refused,
        "warnings": [asdict(finding) for finding in findings if finding.is_warning],
        "exit_code": ConfigError.exit_code if refused else 0,
    }


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
