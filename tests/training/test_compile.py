"""A compiled training is compiled once: its steps differ by one image, its passes do not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgcls.training.ranks.rank import Place
from tests.training.optim.test_loop import run_ranks
from tests.training.rank_main import count_compilations, run_rank


def test_steps_that_differ_by_one_image_compile_once(make_tree: Callable[..., Path]) -> None:
    # 62 images in 5 steps of 12 or 13, in passes of at most 8.
    changes: dict[str, Any] = {"epochs": 2, "global_batch_size": 14, "batch_size": 8}
    with count_compilations() as shapes:
        state = run_rank(str(make_tree(41)), "simple_cnn", Place(), compile_model=True, **changes)
    assert len(shapes) == 1, shapes
    assert state.history[-1]["num_val"] > 0


def test_the_wrapped_model_is_compiled_once_on_each_of_two_ranks(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = make_tree(41), tmp_path / "out"
    changes: dict[str, Any] = {"epochs": 3, "global_batch_size": 14, "batch_size": 8}
    [history, _] = run_ranks(data, "simple_cnn", out, compile_model=True, **changes)
    for rank in range(2):
        shapes = json.loads((out / f"compilations-{rank}.json").read_text())
        assert len(shapes) == 1, shapes
    assert history[-1]["val_accuracy"] > 0.85, "rows that are there twice weigh nothing"
