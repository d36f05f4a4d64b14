"""The same contract on every store: `root` is a fresh, empty place on a disk and each server."""

from pathlib import Path

import pytest

from tests.kit.stores import SERVERS, new_bucket

_PARAMS = [pytest.param(name, marks=[pytest.mark.s3] if name == "s3" else []) for name in SERVERS]


@pytest.fixture(params=["local", *_PARAMS])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI under which nothing is yet."""
    if request.param == "local":
        return str(tmp_path / "store")
    return new_bucket(request, request.param)
