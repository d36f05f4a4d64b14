"""Every figure that `imgcls bench train` promises, on few and small images; no figure is judged."""

import pytest

from imgcls.bench import driver as bench
from imgcls.bench.memory import NUM_EPOCHS, TIMES, read_memory
from imgcls.config.operations import BenchConfig


@pytest.mark.slow
def test_each_side_of_training_has_a_row_with_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.bench(
        BenchConfig(
            what="train",
            arch="simple_cnn",
            image_px=16,
            num_images=16,
            batch_size=4,
            repeats=1,
            device="cpu",
        )
    )
    printed = capsys.readouterr().out
    rows = {row["stage"]: row for row in result["stages"]}
    for name in ("simple_cnn 32 px", "simple_cnn 16 px"):
        assert rows[f"{name}, bare step"]["ratio"] is None
        assert rows[f"{name}, cached"]["limit"] == f"{name}, bare step"
        assert 0 <= rows[f"{name}, cached"]["waited_fraction"] <= 1
    one, two = rows["1 rank of 1 thread"], rows["2 ranks of 1 thread"]
    assert two["limit_images_per_s"] == pytest.approx(2 * one["images_per_s"], rel=1e-2)
    assert all(name in printed for name in rows)
    weighed = [(row["cache"], row["num_images"]) for row in result["memory"]]
    assert weighed == [(cache, 16 * times) for times in TIMES for cache in ("ram", "disk")]
    for row in result["memory"]:
        assert len(row["epochs"]) == NUM_EPOCHS
        assert all(epoch["own_mib"] > 10 for epoch in row["epochs"])


def test_own_memory_is_told_from_pages_of_files() -> None:
    before = read_memory()["own_mib"]
    block = bytearray(b"x") * (64 << 20)
    assert 50 < read_memory()["own_mib"] - before < 80
    del block
