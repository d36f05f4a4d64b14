import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imgcls.errors import ConfigError
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.optim.loop import is_better
from imgcls.training.ranks.rank import Place
from tests.training.rank_main import make_model, run_and_list_bad, run_rank

ROOT = Path(__file__).parents[3]


def run_ranks(
    data: Path, model: str, out: Path, world_size: int = 2, **changes: Any
) -> list[list[dict]]:
    """Train with real processes over gloo; return each rank's history."""
    out.mkdir()
    processes = []
    for rank in range(world_size):
        args = {
            "data": str(data),
            "model": model,
            "rank": rank,
            "world_size": world_size,
            "out": str(out),
            "changes": changes,
        }
        (out / f"args-{rank}.json").write_text(json.dumps(args))
        command = [sys.executable, "-m", "tests.training.rank_main", str(out / f"args-{rank}.json")]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        )
    assert [p.wait(timeout=120) for p in processes] == [0] * world_size
    return [json.loads((out / f"history-{r}.json").read_text()) for r in range(world_size)]


def test_two_ranks_train_what_one_trains(make_tree: Callable[..., Path], tmp_path: Path) -> None:
    """Without batch statistics and dropout only the order of float sums differs."""
    data = make_tree(41)
    damaged = [str(data / "class0" / f"{number:03d}.png") for number in (0, 1, 3)]
    for path in damaged:
        Path(path).write_bytes(b"damaged")
    alone, bad = run_and_list_bad(str(data), "plain", Place())
    histories = run_ranks(data, "plain", tmp_path / "out")
    assert bad == damaged
    for rank in range(2):
        assert json.loads((tmp_path / "out" / f"bad-{rank}.json").read_text()) == bad
    assert alone.history[0]["num_val"] % 2 == 1, "the ranks should have to divide it unevenly"
    for history in histories:
        for ours, theirs in zip(alone.history, history, strict=True):
            # float32 has 6e-8; ten steps of AdamW, which divides by small roots, amplify it.
            assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-4)
            assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-4)
            assert theirs["num_val"] == ours["num_val"]
            assert theirs["train_accuracy"] == pytest.approx(ours["train_accuracy"], abs=0.02)
    weights = load_file(tmp_path / "out" / "weights")
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_ranks_with_batch_norm_and_dropout_end_close_to_one(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """On the CPU each rank normalises over its own half of the batch: close, not equal."""
    data = make_tree(40)
    alone = run_rank(str(data), "simple_cnn", Place())
    histories = run_ranks(data, "simple_cnn", tmp_path / "out")
    assert histories[0][-1]["val_loss"] == pytest.approx(alone.history[-1]["val_loss"], abs=0.15)
    # Every rank validated with the same running statistics, and added up the same numbers.
    assert histories[0][-1]["val_loss"] == histories[1][-1]["val_loss"]


def test_when_one_rank_is_asked_to_stop_all_stop_after_the_same_step(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    messages = run_ranks(make_tree(41), "plain", tmp_path / "out", stop_rank=1)
    assert messages[0] == messages[1]
    assert "in epoch 1 after step 3" in str(messages[0])


def test_training_learns_and_keeps_the_best_weights(make_tree: Callable[..., Path]) -> None:
    state = run_rank(str(make_tree(40)), "plain", Place(), epochs=6)
    losses = [numbers["val_loss"] for numbers in state.history]
    assert state.history[-1]["val_accuracy"] > 0.9
    assert state.best_metrics["val_loss"] == min(losses)
    assert set(state.best) == set(state.model.state_dict())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    make_tree: Callable[..., Path],
) -> None:
    data = str(make_tree(20))
    first, again = (run_rank(data, "simple_cnn", Place(), epochs=1) for _ in range(2))
    other = run_rank(data, "simple_cnn", Place(), epochs=1, seed=4)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert any(
        not torch.equal(t, other.model.state_dict()[n]) for n, t in first.model.named_parameters()
    )


def test_small_passes_add_up_to_the_whole_batch(make_tree: Callable[..., Path]) -> None:
    data = str(make_tree(20))
    whole = run_rank(data, "plain", Place(), epochs=1)
    in_parts = run_rank(data, "plain", Place(), epochs=1, batch_size=3)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(in_parts.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_and_names_the_images(
    make_tree: Callable[..., Path],
) -> None:
    data = make_tree(20)
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf).*--lr.*class\d/\d+\.png"):
        run_rank(str(data), "plain", Place(), optimizer="sgd", lr=1e30, warmup_fraction=0.0)


def test_a_loss_of_one_rank_that_is_not_finite_stops_all_with_its_images(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """Ranks that only heard of it would wait for half an hour, or report another reason."""
    messages = run_ranks(make_tree(41), "breaks", tmp_path / "out")
    assert messages[0] == messages[1]
    assert re.search(r"the loss is nan in epoch 1, step 3 .*class\d/\d+\.png", str(messages[0]))


@pytest.mark.parametrize(
    ("best_by", "numbers", "expected"),
    [
        ("loss", {"val_loss": 0.4, "val_accuracy": 0.1}, True),
        ("loss", {"val_loss": 0.5, "val_accuracy": 0.9}, False),
        ("accuracy", {"val_loss": 0.9, "val_accuracy": 0.9}, True),
        ("accuracy", {"val_loss": 0.4, "val_accuracy": 0.8}, True),
        ("accuracy", {"val_loss": 0.6, "val_accuracy": 0.8}, False),
        ("loss", {"train_loss": 3.0}, True),
    ],
)
def test_what_counts_as_better(best_by: str, numbers: dict[str, float], expected: bool) -> None:
    best = {"val_loss": 0.5, "val_accuracy": 0.8}
    assert is_better(numbers, best, best_by) is expected  # type: ignore[arg-type]  # parametrised


def test_training_stops_when_validation_stops_improving(make_tree: Callable[..., Path]) -> None:
    # At a learning rate of next to nothing no epoch is better than the first by much.
    state = run_rank(
        str(make_tree(20)),
        "plain",
        Place(),
        epochs=50,
        lr=1e-12,
        patience_epochs=2,
        best_by="accuracy",
        augment=build_recipe("none"),
    )
    assert len(state.history) < 10


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"channels_last": True},
        {"max_grad_norm": 0.5},
        {"schedule": "onecycle"},
        {"loss": "focal", "label_smoothing": 0.1},
        {"mixup": 0.2, "cutmix": 1.0},
        {"policy": "trivialaugment", "epochs": 8},
        {"balance": "sampling"},
        {"optimizer": "sgd", "lr": 0.1},
    ],
)
def test_each_option_trains(changes: dict[str, Any], make_tree: Callable[..., Path]) -> None:
    state = run_rank(str(make_tree(40)), "simple_cnn", Place(), **{"epochs": 4} | changes)
    assert state.best_metrics["val_accuracy"] > 0.85


def test_clipping_bounds_the_step(make_tree: Callable[..., Path]) -> None:
    data = str(make_tree(20))
    free, clipped = (
        run_rank(
            data,
            "plain",
            Place(),
            epochs=1,
            optimizer="sgd",
            lr=1.0,
            max_grad_norm=limit,
            global_batch_size=28,
            batch_size=28,
            warmup_fraction=0.0,
        )
        for limit in (0.0, 1e-6)
    )
    start = make_model("plain", 2).state_dict()
    moved = [
        max(float((s.model.state_dict()[n] - t).abs().max()) for n, t in start.items())
        for s in (free, clipped)
    ]
    # weight decay of 0.01 at lr 1 would move the largest weight, of about 0.2, by 0.002 a step
    assert moved[0] > 0.01 > moved[1]
