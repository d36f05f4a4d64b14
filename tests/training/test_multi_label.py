"""Any number of classes per image, from a manifest to published rows."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from imgcls.cli import main
from imgcls.config.training import TrainConfig
from imgcls.data.dataset import read_dataset
from imgcls.errors import ConfigError
from imgcls.metrics.bootstrap import wilson
from imgcls.model.bundle import read_bundle
from imgcls.storage.objects import read
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.driver import train
from imgcls.training.optim.loop import is_better
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.ranks.rank import Place
from tests.training.optim.test_loop import run_ranks
from tests.training.rank_main import run_rank

SIDE_PX = 16
MARKS = ("bar", "cross", "dot")


def draw(marks: set[str], rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [H,W,3] noise with any of three marks, each of its own colour and place."""
    image_HWC = rng.integers(0, 80, (SIDE_PX, SIDE_PX, 3))
    if "bar" in marks:
        row = rng.integers(0, 4)
        image_HWC[row : row + 2, :, 0] += 150
    if "cross" in marks:
        row, column = rng.integers(6, 10, 2)
        image_HWC[row - 2 : row + 3, column, 1] += 150
        image_HWC[row, column - 2 : column + 3, 1] += 150
    if "dot" in marks:
        column = rng.integers(0, 13)
        image_HWC[12:15, column : column + 3, 2] += 150
    return image_HWC.astype(np.uint8)


def write_marks(folder: Path, num_images: int) -> str:
    """Write images that show each mark with a chance of 0.4, 0.3 or 0.2, and their manifest."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label"])
        for number in range(num_images):
            marks = {
                m for m, chance in zip(MARKS, (0.4, 0.3, 0.2), strict=True) if rng.random() < chance
            }
            Image.fromarray(draw(marks, rng)).save(folder / f"{number:03d}.png")
            writer.writerow([f"{number:03d}.png", "|".join(sorted(marks))])
    return str(folder / "labels.csv")


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_marks(tmp_path_factory.mktemp("marks") / "data", 240)


def make_config(marks: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": marks,
        "registry": str(Path(marks).parent.parent / "registry"),
        "name": "marks",
        "arch": "simple_cnn",
        "image_px": SIDE_PX,
        "batch_size": 16,
        "epochs": 8,
        "lr": 1e-2,
        "augment": "none",
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        "multi_label": True,
        "best_by": "accuracy",
        "device": "cpu",
        "num_decoders": 1,
    }
    return TrainConfig(**values | changes)


def flags_of(config: TrainConfig) -> list[str]:
    default = asdict(TrainConfig("", "", ""))
    given = {name: value for name, value in asdict(config).items() if value != default[name]}
    flags = []
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def run(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Run the command line; return the JSON of its last line."""
    assert main(list(args)) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_trained_scored_and_evaluated_by_the_command_line(
    marks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(marks, positive_class="dot", target_recall=0.7)
    result = run(capsys, "train", *flags_of(config))
    bundle = read_bundle(result["uri"])
    assert bundle.multi_label
    assert bundle.class_names.names == MARKS
    assert bundle.metrics["test"]["auroc_macro"] > 0.97
    # Faultless on so few images of the rarest mark: Wilson's interval of that many, not [1, 1].
    num_dots = bundle.metrics["test"]["per_class"]["dot"]["support"]
    bounds = bundle.metrics["test"]["intervals"]["auroc_macro"]
    assert bounds[0] >= wilson(1.0, num_dots)[0] > 0.75
    assert bundle.training["history"][-1]["val_auroc"] > 0.95
    assert bundle.calibration is not None
    [point] = bundle.calibration["operating_points"]
    assert point["recall"] >= 0.7

    direct = run(capsys, "evaluate", "--model", result["model"], "--data", marks)
    assert direct["same_split_as_training"]
    assert direct["auroc_macro"] == pytest.approx(bundle.metrics["test"]["auroc_macro"])
    assert direct["accuracy"] == direct["subset_accuracy"] == result["test_accuracy"]
    of_point = direct["calibrated"]["operating_points"][point["threshold_id"]]
    # Predicted are the classes that scoring names: of the dot, those that reach its threshold.
    assert direct["per_class"]["dot"]["recall"] == of_point["recall"]

    output = str(tmp_path / "out")
    scored = run(
        capsys,
        *("score", "--source", str(Path(marks).parent / "*.png"), "--model", result["model"]),
        *("--output", output, "--executor", "local", "--device", "cpu", "--write-probs"),
        *("--num-decoders", "1", "--precision", "fp32"),
    )
    [part] = scored["parts"]
    rows = {row["uri"]: row for row in pq.read_table(io.BytesIO(read(part))).to_pylist()}
    dataset = read_dataset(
        marks, val_fraction=0.25, test_fraction=0.25, seed=0, multi_label=True, is_balanced=True
    )
    test = dataset.of_split("test")
    target_BK = np.array([[k in sample.labels for k in range(3)] for sample in test])
    probs_BK = np.array([rows[sample.uri]["probs"] for sample in test])
    # The oracle: scikit-learn on the published probabilities of the images of the test split.
    auroc = roc_auc_score(target_BK, probs_BK, average="macro")
    assert auroc == pytest.approx(direct["auroc_macro"], abs=1e-4)
    right = [rows[s.uri]["labels"] == [MARKS[k] for k in s.labels] for s in test]
    assert np.mean(right) == pytest.approx(direct["accuracy"])
    assert any(row["labels"] == [] for row in rows.values())

    published = run(capsys, "evaluate", "--predictions", output, "--labels", marks)
    whole = run(capsys, "evaluate", "--model", result["model"], "--data", marks, "--split", "all")
    for name in ("accuracy", "accuracy_all", "hamming_loss", "macro_f1", "per_class", "num_rows"):
        assert published[name] == whole[name], name
    [decided] = published["decisions"]
    assert decided["recall"] == whole["per_class"]["dot"]["recall"]
    assert decided["num_rows"] == published["num_rows"] == len(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal", "label_smoothing": 0.1, "balance": "sampling"},
        {"mixup": 0.2, "cutmix": 1.0, "balance": "weights", "pos_weight": (1.5, 2.3, 4.0)},
    ],
)
def test_each_option_trains(changes: dict[str, Any], marks: str) -> None:
    fixed = {"epochs": 10, "lr": 1e-2, "augment": build_recipe("none"), "best_by": "accuracy"}
    state = run_rank(marks, "plain", Place(), multi_label=True, **fixed | changes)
    assert state.best_metrics["val_auroc"] > 0.85
    assert state.best_metrics["val_auroc"] == max(n["val_auroc"] for n in state.history)


def test_weights_of_presence_come_from_the_training_split_and_are_part_of_the_run(
    marks: str,
) -> None:
    plan = make_plan(make_config(marks, balance="weights"))
    labels_N = [sample.labels for sample in plan.splits["train"]]
    num_with = [sum(k in labels for labels in labels_N) for k in range(3)]
    expected = [(len(labels_N) - num) / num for num in num_with]
    assert plan.recipe.pos_weight == pytest.approx(expected)
    plain = make_plan(make_config(marks))
    assert plain.recipe.pos_weight == ()
    assert plain.fingerprint != plan.fingerprint


def test_multi_label_is_part_of_the_run(make_tree: Callable[..., Path], tmp_path: Path) -> None:
    data = make_tree(20)
    lines = [f"{path},{path.parent.name}" for path in sorted(data.rglob("*.png"))]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *lines]))
    plans = [make_plan(make_config(str(tmp_path / "m.csv"), multi_label=m)) for m in (True, False)]
    assert plans[0].split_digest == plans[1].split_digest
    assert plans[0].fingerprint != plans[1].fingerprint


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"val_loss": 0.9, "val_accuracy": 0.1, "val_auroc": 0.95}, True),
        ({"val_loss": 0.1, "val_accuracy": 0.9, "val_auroc": 0.85}, False),
        ({"val_loss": 0.4, "val_accuracy": 0.1, "val_auroc": 0.9}, True),
        ({"val_loss": 0.6, "val_accuracy": 0.8, "val_auroc": None}, True),
    ],
)
def test_best_by_accuracy_goes_by_auroc(numbers: dict[str, float], expected: bool) -> None:
    best = {"val_loss": 0.5, "val_accuracy": 0.5, "val_auroc": 0.9}
    assert is_better(numbers, best, "accuracy") is expected


def test_two_ranks_measure_the_auroc_of_all_images(marks: str, tmp_path: Path) -> None:
    alone = run_rank(marks, "plain", Place(), multi_label=True)
    histories = run_ranks(Path(marks), "plain", tmp_path / "out", multi_label=True)
    for history in histories:
        for ours, theirs in zip(alone.history, history, strict=True):
            for name in ("val_loss", "val_auroc", "train_loss"):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-3)


def test_data_and_model_of_unlike_kinds_are_refused(
    marks: str, make_tree: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"several classes, such as 'bar\|cross'.*--multi-label"):
        train(make_config(marks, multi_label=False))
    data = make_tree(10)
    with pytest.raises(ConfigError, match="several labels per image need a manifest"):
        train(make_config(str(data)))
