"""A rank may be slow for as long as it takes: only what devices wait for has a limit."""

from collections.abc import Callable
from pathlib import Path

from tests.training.optim.test_loop import run_ranks


def test_what_the_first_rank_does_alone_outlasts_the_limit_of_collectives(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """Before the model is wrapped, after a step and after an epoch, 3 s each; the limit is 2 s."""
    histories = run_ranks(
        make_tree(20), "simple_cnn", tmp_path / "out", epochs=2, slow_s=3.0, limit_s=2.0
    )
    assert [len(history) for history in histories] == [2, 2]
    assert histories[0][1]["val_loss"] == histories[1][1]["val_loss"]
