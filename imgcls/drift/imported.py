"""`imgcls import` as the command line has it: with --check, the bundle gets a reference too.

In: an ImportConfig. Out: a registered bundle. Invariant: what is imported, and whether, is decided
by model/importing/driver.py alone.
"""

import logging
from collections.abc import Sequence
from typing import Any

from imgcls.config.models import ImportConfig
from imgcls.drift.reference import with_reference
from imgcls.errors import ImgclsError
from imgcls.inference.device import num_cores_here
from imgcls.model.bundle import Bundle
from imgcls.model.importing import driver
from imgcls.sources.located import Located, request_for

log = logging.getLogger(__name__)


def import_model(config: ImportConfig) -> dict[str, Any]:
    """Run `imgcls import`; see `imgcls.model.importing.driver.import_model`."""
    return driver.import_model(config, finish=_with_reference)


def _with_reference(bundle: Bundle, images: Sequence[Located]) -> Bundle:
    requests = [request_for(index, image) for index, image in enumerate(images)]
    try:
        bundle, _ = with_reference(
            bundle, requests, made_by="imgcls import --check", num_cores=num_cores_here()
        )
    except ImgclsError as error:
        log.warning("the model gets no reference for its nights: %s. Try imgcls reference", error)
    return bundle
