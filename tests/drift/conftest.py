"""One thread for torch: small networks are faster so, and their numbers the same everywhere."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    torch.set_num_threads(1)
