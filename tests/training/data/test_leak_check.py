import csv
import dataclasses
import logging
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls import cli
from imgcls.config.training import TrainConfig
from imgcls.data.dataset import read_dataset
from imgcls.data.leaks import LeakCheck
from imgcls.errors import BudgetExceededError, SourceError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.training.data.leak_check import check_groups, check_images
from imgcls.training.driver import train
from imgcls.training.optim.setup import make_loaders
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import TrainPlan
from tests.training.bars import bars_config

MakeTree = Callable[..., Path]


def write_manifest(data: Path, *, copies: int = 0, groups: bool = False) -> Path:
    """List a tree with every fourth image in test, each of a patient of its own side.

    Args:
        data: the tree.
        copies: of so many training images a copy lies in test.
        groups: let one patient have images on both sides.
    """
    lines = []
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        split = ("train", "train", "val", "test")[number % 4]
        patient = f"{split}{number % 8}" if not (groups and number < 4) else "p0"
        lines.append((path, path.parent.name, split, patient))
    for number, (path, label, _, _) in enumerate([line for line in lines if line[2] == "train"]):
        if number < copies:
            copy = path.with_name(f"copy-{path.name}")
            shutil.copy(path, copy)
            lines.append((copy, label, "test", f"copied{number}"))
    manifest = data.parent / "m.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "label", "split", "group"), *lines])
    return manifest


make_config = partial(bars_config, epochs=1, lr=1e-3, num_decoders=1)


def flags(config: TrainConfig) -> list[str]:
    pairs = [(f"--{name.replace('_', '-')}", v) for name, v in dataclasses.asdict(config).items()]
    given = [(flag, value) for flag, value in pairs if not isinstance(value, bool | tuple)]
    assert not any(value for _, value in pairs if isinstance(value, tuple)), "not written yet"
    return [str(word) for pair in given for word in pair] + [
        flag for flag, value in pairs if value is True
    ]


def run_cli(arguments: list[str]) -> int:
    """Run a command as the shell does, and give the log back to pytest after it."""
    root = logging.getLogger("imgcls")
    before = root.handlers[:], root.propagate, signal.getsignal(signal.SIGTERM)
    try:
        return cli.main(arguments)
    finally:
        root.handlers[:], root.propagate = before[:2]
        signal.signal(signal.SIGTERM, before[2])


def check(plan: TrainPlan, place: Place | None = None, *, resumed: bool = False) -> dict[str, int]:
    with DecoderPool(plan.decode_spec, plan.preprocess_spec, 1) as pool:
        place = place or Place()
        return check_images(plan, make_loaders(plan, pool, place), place, resumed=resumed).counts


def test_a_patient_on_two_sides_stops_the_training_by_the_command_line(
    make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(write_manifest(make_tree(12), groups=True))
    assert run_cli(["train", *flags(config)]) == 2
    message = capsys.readouterr().out
    assert "2 by group" not in message
    assert "3 by group" in message
    assert "group 'number:1'" in message
    assert "--allow-leaks" in message
    [listed] = (Path(config.registry) / "_training").rglob("leaks.csv")
    assert str(listed) in message
    kinds = [line.split(",")[:2] for line in listed.read_text().splitlines()[1:]]
    assert kinds == [["group", "number:1"]] * 3
    assert not (Path(config.registry) / "bars").exists()


def test_copies_in_the_test_split_stop_the_training_and_are_all_listed(
    make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(write_manifest(make_tree(12), copies=7))
    assert run_cli(["train", *flags(config)]) == 2
    message = capsys.readouterr().out
    assert "7 by bytes" in message
    assert "near-duplicate" not in message
    [listed] = (Path(config.registry) / "_training").rglob("leaks.csv")
    rows = list(csv.DictReader(listed.open()))
    assert len(rows) == 7
    assert {Path(r["other_uri"]).name for r in rows} == {
        f"copy-{Path(r['uri']).name}" for r in rows
    }
    assert {(r["split"], r["other_split"]) for r in rows} == {("train", "test")}
    assert not (Path(config.registry) / "bars").exists()


@pytest.mark.parametrize("image_px", [8, 20, 32, 224])
def test_a_smaller_jpeg_of_a_training_image_is_a_near_duplicate_at_any_size(
    image_px: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = tmp_path / "data" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    first = tmp_path / "data" / "c0" / "0.png"
    second = tmp_path / "data" / "c1" / "1.png"
    Image.open(first).resize((48, 48)).save(second.with_name("1.jpg"), quality=70)
    second.unlink()
    plan = make_plan(
        make_config(write_manifest_of(tmp_path / "data"), image_px=image_px, allow_leaks=True)
    )
    assert check(plan) == {"near-duplicate": 1}


def write_manifest_of(data: Path) -> Path:
    """List a tree with files 1, 3, ... in test."""
    lines = [
        f"{path},{path.parent.name if int(path.stem) != 1 else 'c1'},"
        f"{'test' if int(path.stem) in (1, 2, 5) else 'train'}"
        for path in sorted(data.rglob("*.*"))
    ]
    manifest = data.parent / "m.csv"
    manifest.write_text("\n".join(["uri,label,split", *lines]) + "\n")
    return manifest


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_equal_images_under_two_classes_are_named_whatever_the_splits(
    val_fraction: float, make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_tree(12)
    for number in range(3):
        shutil.copy(data / f"class0/{number:03}.png", data / f"class1/copy{number}.png")
    config = make_config(data, val_fraction=val_fraction, test_fraction=0.0, allow_leaks=True)
    train(config)
    assert "3 images are the same, byte for byte, as one of another label" in caplog.text
    [listed] = Path(config.registry).rglob("label_conflicts.csv")
    rows = list(csv.DictReader(listed.open()))
    both = {
        frozenset(
            [(Path(r["uri"]).name, r["label"]), (Path(r["other_uri"]).name, r["other_label"])]
        )
        for r in rows
    }
    assert both == {
        frozenset([(f"{number:03}.png", "class0"), (f"copy{number}.png", "class1")])
        for number in range(3)
    }


def test_clean_splits_pass_and_the_first_epoch_finds_them_in_the_cache(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(make_config(make_tree(12), cache="ram"))
    check_groups(plan)
    with DecoderPool(plan.decode_spec, plan.preprocess_spec, 1) as pool:
        loaders = make_loaders(plan, pool, Place())
        with caplog.at_level(logging.INFO, "imgcls"):
            assert check_images(plan, loaders, Place(), resumed=False) == LeakCheck({})
        pool.close()  # nothing is left to decode
        for loader in loaders.values():
            [batch] = loader.batches([np.arange(len(loader.samples))])
            assert int((batch.weight_B > 0).sum()) == len(loader.samples)
    assert "compared 24 images" in caplog.text


def test_allowed_leaks_are_counted_and_a_resumed_run_does_not_look_again(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(write_manifest(make_tree(12), copies=2, groups=True), allow_leaks=True)
    plan = make_plan(config)
    check_groups(plan)
    first = check(plan)
    assert first == {"bytes": 2, "group": 3}
    assert "--allow-leaks" in caplog.text
    for path in Path(config.data).parent.rglob("*.png"):
        path.unlink()
    assert check(plan, resumed=True) == first
    with pytest.raises(SourceError, match="2 by bytes, 3 by group"):
        check(
            dataclasses.replace(plan, config=dataclasses.replace(config, allow_leaks=False)),
            resumed=True,
        )


@pytest.mark.parametrize("groups", [False, True])
def test_a_refused_start_changes_no_file_of_an_earlier_run(
    groups: bool, make_tree: MakeTree
) -> None:
    manifest = write_manifest(make_tree(12), copies=2, groups=groups)
    config = make_config(manifest, allow_leaks=True)
    plan = make_plan(config)
    run = Path(train(config)["run"])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {"run.json", "split.csv", "leaks.csv", "leak_check.json"} < {p.name for p in before}
    refused = dataclasses.replace(config, allow_leaks=False, slice_by="group")
    with pytest.raises(SourceError, match="the splits share images") as raised:
        train(refused)
    assert {path: path.read_bytes() for path in before} == before
    # What it was refused for is listed all the same: where that is another list, under its own name
    assert str(raised.value).count(str(run)) == 1
    [new] = (
        [p for p in run.rglob("leaks*.csv") if p not in before] if groups else [run / "leaks.csv"]
    )
    assert f"all in {new}" in str(raised.value)
    assert len(new.read_text().splitlines()) == (4 if groups else 3)
    assert check(plan, resumed=True) == ({"bytes": 2, "group": 3} if groups else {"bytes": 2})


def test_a_search_that_ended_early_is_told_by_a_resumed_run_too(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(make_config(write_manifest(make_tree(12), copies=3), allow_leaks=True))
    monkeypatch.setattr("imgcls.data.leaks._MAX_LEAKS", 2)
    for resumed in (False, True):
        caplog.clear()
        with DecoderPool(plan.decode_spec, plan.preprocess_spec, 1) as pool:
            loaders = make_loaders(plan, pool, Place())
            found = check_images(plan, loaders, Place(), resumed=resumed)
        assert found.counts == {"bytes": 3}
        because = "the search for near-duplicates stopped at 2 pairs found"
        assert found.to_dict() == {"complete": False, "incomplete_because": [because]}
        assert f"the leak check is incomplete: {because}" in caplog.text


def test_images_that_give_no_pixels_are_known_before_the_first_step(make_tree: MakeTree) -> None:
    data = make_tree(12)
    for path in sorted(data.rglob("*.png"))[:3]:
        path.write_bytes(b"damaged")
    with pytest.raises(BudgetExceededError, match="give no pixels"):
        check(make_plan(make_config(data, max_bad_fraction=0.0)))
    assert check(make_plan(make_config(data, max_bad_fraction=0.5))) == {}


def test_the_frozen_split_repeats_the_very_same_training(make_tree: MakeTree) -> None:
    data = make_tree(20)
    config = make_config(data, seed=3)
    assert run_cli(["train", *flags(config)]) == 0
    [frozen] = (Path(config.registry) / "_training").rglob("split.csv")
    again = dataclasses.replace(config, data=str(frozen))
    first, second = make_plan(config), make_plan(again)
    assert second.split_digest == first.split_digest
    assert second.run_uri == first.run_uri
    assert second.splits == first.splits
    # It stays what it is although the folder grows.
    shutil.copy(next(data.rglob("*.png")), data / "class0" / "new.png")
    assert make_plan(again).split_digest == first.split_digest
    assert (
        read_dataset(str(frozen), val_fraction=0.4, test_fraction=0.0, seed=9).split_digest
        == first.split_digest
    )


def test_two_ranks_read_half_each_and_find_the_same(make_tree: MakeTree, tmp_path: Path) -> None:
    plan = make_plan(
        make_config(write_manifest(make_tree(12), copies=3), allow_leaks=True, cache="none")
    )
    alone = check(plan)
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(2) as ranks:
        store = str(tmp_path / "store")
        both = ranks.starmap(_check_as_rank, [(plan, rank, store) for rank in range(2)])
    assert both == [alone, alone] == [{"bytes": 3}] * 2


def _check_as_rank(plan: TrainPlan, rank: int, store: str) -> dict[str, int]:
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        return check(plan, Place(rank=rank, world_size=2))
    finally:
        distributed.destroy_process_group()
