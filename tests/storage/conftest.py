"""The same contract on every store: `root` is a fresh, empty place on each of five."""

from pathlib import Path

import pytest

from tests.stores import Store


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), "moto", "az", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI under which nothing is yet."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "s3":
        return str(request.getfixturevalue("s3_bucket"))
    store: Store = request.getfixturevalue(f"{request.param}_store")
    return store.new_bucket()
