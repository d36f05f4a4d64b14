"""`imgcls reference`: a model's next version, which knows what its pictures should look like.

In: a registered model, images that are as they should be. Out: the next version of its name, of the
same network. Invariant: its network digest is that of the version before, so that no night scores
an image again for it.
"""

from dataclasses import replace
from itertools import repeat
from typing import Any, Final

import torch

from imgcls.config.scoring import ReferenceConfig, ScoreConfig
from imgcls.drift.reference import with_reference
from imgcls.errors import ConfigError
from imgcls.inference.device import num_cores_here
from imgcls.model.bundle import read_bundle
from imgcls.model.bundle_files import refuse_backbone
from imgcls.model.registry import name_of, register, resolve
from imgcls.schema import carried_fields
from imgcls.scoring.planning.carry import Carry
from imgcls.scoring.planning.listing import list_source
from imgcls.scoring.planning.staging import stage
from imgcls.sources.requests import requests_of
from imgcls.storage.bulk_get import GetRequest

_ROWS_AT_A_TIME: Final = 8192
_OF_A_SCORE: Final = frozenset(ScoreConfig.__dataclass_fields__) - {"output"}


def reference(config: ReferenceConfig) -> dict[str, Any]:
    """Run `imgcls reference`.

    Returns:
        JSON-able: model (REGISTRY/NAME@v<N>), uri, version, digest, of, num_images (of the
        reference), num_listed.

    Raises:
        ConfigError: the model is in no registry, or too few images.
        StorageError: the store failed after all retries.
    """
    registry, name = name_of(config.model)
    bundle = read_bundle(resolve(config.model))
    refuse_backbone(bundle.is_backbone, config.model, "reference")
    num_cores = num_cores_here()
    torch.set_num_threads(num_cores)
    requests, columns = _list(config)
    made, num_images = with_reference(
        bundle,
        requests,
        made_by="imgcls reference",
        num_cores=num_cores,
        device=config.device,
        num_decoders=config.num_decoders,
        columns=columns,
    )
    if not num_images:
        raise ConfigError(
            f"--source {config.source}: {len(requests)} images are too few for a reference; "
            "nothing was registered"
        )
    model = register(registry, name, made)
    return {
        "model": model.reference,
        "uri": model.uri,
        "version": model.version,
        "digest": model.digest,
        "of": config.model,
        "num_images": num_images,
        "num_listed": len(requests),
    }


def _list(config: ReferenceConfig) -> tuple[list[GetRequest], dict[str, list[str | None]]]:
    """Return what to read, and what is carried of each, by column."""
    requests: list[GetRequest] = []
    columns: dict[str, list[str | None]] = {}
    given = {name: value for name, value in vars(config).items() if name in _OF_A_SCORE}
    carry = Carry.of(ScoreConfig(**given, output=config.model))
    with stage(list_source(config.source, config)) as staging:
        if carry.cells is not None:
            staging.carry(carry.cells)
        for table in staging.sorted_tables(repeat(_ROWS_AT_A_TIME)):
            planned, start = carry.added(table), len(requests)
            requests += [replace(one, index=start + one.index) for one in requests_of(planned)]
            for field in carried_fields(planned.schema):
                texts = [None if v is None else str(v) for v in planned[field.name].to_pylist()]
                columns.setdefault(field.name, []).extend(texts)
    return requests, columns
