"""What the decoders of a run could read, and by which versions of the decoding code.

In: this machine, or records of several. Out: the record that a commit carries, and that of a whole
run. Invariant: of a run it says no more than what each of its decoders could read; the driver's own
machine is asked only where it is the one that scores.
"""

import logging
from collections.abc import Iterable
from typing import Any

from imgcls import ray_cluster
from imgcls.image.formats.abilities import Abilities, abilities_here, shared
from imgcls.image.spec import DecodeSpec
from imgcls.image.versions import earliest, from_json, to_json, versions_here

log = logging.getLogger(__name__)


def record_here(spec: DecodeSpec) -> dict[str, Any]:
    """Return the record of decoders that this process starts, for a model of this spec."""
    return {
        "reads": abilities_here(),
        "versions": to_json(versions_here()),
        "moved_formats": spec.moved_formats(),
    }


def record_of_run(records: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return what all decoders of a run could do; None where one did not record it."""
    distinct: list[dict[str, Any]] = []
    for record in records:
        if record is None:
            return None
        if record not in distinct:
            distinct.append(record)
    if not distinct:
        return None
    versions = from_json(distinct[0]["versions"])
    for record in distinct[1:]:
        versions = earliest(versions, from_json(record["versions"]))
    return {"reads": shared(r["reads"] for r in distinct), "versions": to_json(versions)}


def moved_formats(records: Iterable[dict[str, Any] | None]) -> tuple[str, ...]:
    """Return the families whose pixels moved between the training of the model and the run."""
    return tuple(sorted({family for r in records if r for family in r["moved_formats"]}))


def abilities_of_cluster() -> Abilities:
    """Return what every node of the cluster that Ray finds here can read.

    Nothing where a node does not answer: then nothing counts as readable that was not before.
    """
    with ray_cluster.connected() as resources:
        nodes = [node.node_id for node in resources.nodes if node.num_cpus or node.num_gpus]
        try:
            return shared(ray_cluster.ask_nodes(nodes, abilities_here)) if nodes else {}
        except Exception as error:  # noqa: BLE001 - whatever Ray says: the night continues without it
            log.warning("what the nodes can read is not known, nothing is tried again: %s", error)
            return {}
