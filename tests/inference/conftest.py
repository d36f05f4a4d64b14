"""One thread for torch: small networks are faster so, and their numbers the same everywhere."""

import logging

import pytest
import torch

from imgcls.inference.backends import choose


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def log_of_imgcls(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="imgcls")
    logging.getLogger("imgcls").propagate = True
    return caplog


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CPU can run bf16; only some can fast."""
    monkeypatch.setattr(choose, "has_fast_bf16", lambda: True)
