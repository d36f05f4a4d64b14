from pathlib import Path

import numpy as np
import pytest

from imgcls.errors import ConfigError
from imgcls.training.data.image_cache import (
    CacheKind,
    ImageCache,
    choose_kind,
    forget,
    free_memory_bytes,
    num_bytes,
    private_buffer,
    shared_buffer,
)

SHAPE = (3, 4, 4)


def make_cache(kind: CacheKind, num_samples: int) -> ImageCache:
    return ImageCache(private_buffer(kind, num_bytes(num_samples, SHAPE)), num_samples, SHAPE)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_images_come_back_and_each_index_knows_its_state(kind: CacheKind) -> None:
    cache = make_cache(kind, 5)
    x_CHW = np.arange(48, dtype=np.uint8).reshape(SHAPE)
    cache.put(3, x_CHW)
    cache.put_bad(1)
    every = np.arange(5)
    assert cache.unknown(every).tolist() == [True, False, True, False, True]
    assert cache.good(every).tolist() == [False, False, False, True, False]
    assert np.array_equal(cache.take(np.array([3, 3])), [x_CHW, x_CHW])


def test_taken_images_are_copies() -> None:
    cache = make_cache("ram", 1)
    cache.put(0, np.ones(SHAPE, np.uint8))
    cache.take(np.array([0]))[:] = 9
    assert cache.take(np.array([0])).max() == 1


def test_disk_cache_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = make_cache("disk", 100)
    cache.put(99, np.full(SHAPE, 7, np.uint8))
    assert list(tmp_path.iterdir()) == []
    assert cache.take(np.array([99])).min() == 7


def test_disk_cache_larger_than_the_disk_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="TMPDIR"):
        private_buffer("disk", 1 << 50)


def test_auto_takes_ram_only_where_everything_fits() -> None:
    free = free_memory_bytes()
    assert choose_kind("auto", 1000) == "ram"
    assert choose_kind("auto", free // 8) == "ram"
    assert choose_kind("auto", free // 2) == "none"
    assert choose_kind("disk", 1000) == "disk"
    assert choose_kind("none", 1000) == "none"


def open_shared(kind: CacheKind, name: str) -> ImageCache:
    return ImageCache(shared_buffer(kind, num_bytes(4, SHAPE), name), 4, SHAPE)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_what_one_rank_puts_another_takes_and_no_name_is_left(
    kind: CacheKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    name = f"imgcls-cache-test-{tmp_path.name}"
    ours, theirs = open_shared(kind, name), open_shared(kind, name)
    forget(kind, name)
    forget(kind, name)
    ours.put(2, np.full(SHAPE, 8, np.uint8))
    ours.put_bad(3)
    assert theirs.unknown(np.arange(4)).tolist() == [True, True, False, False]
    assert theirs.take(np.array([2])).min() == 8
    assert not list(tmp_path.iterdir())
    assert not Path(f"/dev/shm/{name}").exists()  # noqa: S108  # where "ram" is shared


def test_ranks_without_shared_memory_cache_on_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    cache = open_shared("ram", f"imgcls-cache-test-{tmp_path.name}")
    forget("ram", f"imgcls-cache-test-{tmp_path.name}")
    cache.put(0, np.ones(SHAPE, np.uint8))
    assert cache.good(np.array([0])).all()
    assert "too small" in caplog.text
