import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from imgcls.errors import ConfigError, DamagedCheckpointError
from imgcls.storage.objects import put
from imgcls.training.optim.optimizer import build_optimizer
from imgcls.training.optim.train_state import Snapshot, TrainState
from imgcls.training.record.checkpoint import (
    SUMS,
    TENSORS,
    VALUES,
    CheckpointSchedule,
    CheckpointWriter,
    list_checkpoints,
    read_checkpoint,
    read_latest,
    write_checkpoint,
)


def make_state(optimizer: str = "adamw", seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    return TrainState(
        model,
        build_optimizer(model, optimizer, lr=0.1, weight_decay=0.1),  # type: ignore[arg-type]  # parametrised
    )


def train(state: TrainState, num_steps: int) -> None:
    for _ in range(num_steps):
        state.total_steps += 1
        x = torch.rand(8, 4, generator=torch.Generator().manual_seed(state.total_steps))
        state.optimizer.zero_grad()
        state.model(x).square().mean().backward()
        state.optimizer.step()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def run_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/runs/one"
    return str(tmp_path / "runs" / "one")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_from_a_checkpoint_ends_bit_identical(optimizer: str, run_uri: str) -> None:
    undisturbed = make_state(optimizer)
    train(undisturbed, 7)
    first = make_state(optimizer)
    train(first, 3)
    first.keep_as_best({"val_loss": 0.1 + 0.2})
    first.history.append({"epoch": 1, "train_loss": 1 / 3})
    first.begin_next_epoch()
    folder = write_checkpoint(run_uri, first.snapshot())
    resumed = make_state(optimizer, seed=9)
    resumed.restore(read_checkpoint(folder))
    assert resumed.history == first.history
    assert resumed.best_metrics == first.best_metrics
    assert resumed.run_id == first.run_id
    assert all(torch.equal(resumed.best[k], v) for k, v in first.best.items())
    train(resumed, 4)
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_a_checkpoint_of_before_the_training_accuracy_can_be_read() -> None:
    state = make_state()
    state.num_right, state.num_seen = 3, 4
    snapshot = state.snapshot()
    assert (snapshot.values["num_right"], snapshot.values["num_seen"]) == (3, 4)
    for name in ("num_right", "num_seen", "num_images", "epoch_s", "waited_s"):
        del snapshot.values[name]
    state.restore(snapshot)
    assert (state.num_right, state.num_seen) == (0, 0)
    assert (state.num_images, state.epoch_s, state.waited_s) == (0, 0.0, 0.0)


def test_a_snapshot_does_not_change_while_training_goes_on() -> None:
    state = make_state()
    train(state, 2)
    snapshot = state.snapshot()
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    values = json.dumps(snapshot.values)
    train(state, 2)
    state.keep_as_best({"val_loss": 0.5})
    state.history.append({"epoch": 1})
    state.begin_next_epoch()
    assert json.dumps(snapshot.values) == values
    assert all(torch.equal(snapshot.tensors[name], tensor) for name, tensor in before.items())


def test_an_epoch_that_ended_while_an_older_version_wrote_is_told_once() -> None:
    state = make_state()
    snapshot = state.snapshot()
    snapshot.values["history"] = [{"epoch": 1}]
    state.restore(snapshot)
    assert (state.epoch, state.history) == (0, [])


def test_the_writer_keeps_the_last_and_removes_what_came_before(run_uri: str) -> None:
    state = make_state()
    for _ in range(2):
        train(state, 1)
        write_checkpoint(run_uri, state.snapshot())
    put(f"{run_uri}/checkpoints/000000000009-unfinished/{TENSORS}", b"killed while it was written")
    with CheckpointWriter(run_uri, list_checkpoints(run_uri), keep=2) as writer:
        for total_steps in (3, 4, 5):
            train(state, 1)
            writer.write(state.snapshot())
            writer.wait()
            kept = [read_checkpoint(f).values["total_steps"] for f in list_checkpoints(run_uri)]
            assert kept == [total_steps - 1, total_steps]
        writer.remove_all()
        assert list_checkpoints(run_uri) == {}


def test_an_incomplete_or_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    state = make_state()
    folders = []
    for _ in range(4):
        train(state, 1)
        folders.append(Path(write_checkpoint(str(tmp_path), state.snapshot())))
    (folders[3] / SUMS).unlink()
    weights = bytearray((folders[2] / TENSORS).read_bytes())
    weights[-1] ^= 1
    (folders[2] / TENSORS).write_bytes(weights)
    (folders[1] / VALUES).unlink()
    with pytest.raises(DamagedCheckpointError, match=TENSORS):
        read_checkpoint(str(folders[2]))
    found = list_checkpoints(str(tmp_path))
    assert list(found.values()) == [True, True, True, False]
    latest = read_latest(found)
    assert latest is not None
    assert latest.values["total_steps"] == 1


def test_nothing_to_resume_is_no_checkpoint(run_uri: str) -> None:
    assert read_latest(list_checkpoints(run_uri)) is None


def test_a_failed_write_is_raised_by_the_next(tmp_path: Path) -> None:
    in_the_way = tmp_path / "checkpoints"
    in_the_way.write_text("a file where the folder should be")
    with CheckpointWriter(str(tmp_path), {}) as writer:
        writer.write(make_state().snapshot())
        with pytest.raises(Exception, match="checkpoints"):
            writer.write(make_state().snapshot())


def test_state_files_are_no_pickles(tmp_path: Path) -> None:
    state = make_state()
    train(state, 1)
    folder = Path(write_checkpoint(str(tmp_path), state.snapshot()))
    assert sorted(p.name for p in folder.iterdir()) == [SUMS, VALUES, TENSORS]
    assert isinstance(read_checkpoint(str(folder)), Snapshot)
    assert not (folder / TENSORS).read_bytes().startswith((b"PK", b"\x80"))


def test_schedule_by_steps_by_minutes_and_never() -> None:
    every = CheckpointSchedule("3")
    assert [step for step in range(1, 10) if every.is_due(step)] == [3, 6, 9]
    assert not CheckpointSchedule("10m").is_due(1)
    often = CheckpointSchedule("0.0001m")
    time.sleep(0.01)
    assert often.is_due(1)
    assert not often.is_due(2)
    assert not CheckpointSchedule("never").is_due(100)


@pytest.mark.parametrize("every", ["", "0", "-1", "10s", "0m", "soon"])
def test_a_schedule_that_means_nothing_is_refused(every: str) -> None:
    with pytest.raises(ConfigError, match="--checkpoint-every"):
        CheckpointSchedule(every)
