"""The int8 network of an unfinished run of before: then a run made its own, and kept it.

In: a run and its bundle. Out: the bundle, with the network that the run began with. Invariant: a
run is finished by the network that it was begun with; none is made here (`imgcls quantize` does).
"""

from imgcls.errors import ObjectMissingError
from imgcls.inference.backends import int8
from imgcls.model.bundle import Bundle
from imgcls.model.bundle_files import INT8
from imgcls.runs.run import Run
from imgcls.storage.objects import read


def with_int8_of_run(run: Run, bundle: Bundle) -> Bundle:
    """Return the bundle with the int8 network of the run; as it is where the run has none.

    Raises:
        StorageError: the store failed after all retries.
    """
    if INT8 in bundle.attachments:
        return bundle
    try:
        data = read(run.int8_network(bundle.digest))
    except ObjectMissingError:
        return bundle
    # That version judged by labels, and ran no model with thresholds.
    return int8.with_network(bundle, data, {})
