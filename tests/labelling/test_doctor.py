"""Labelled data looked through: planted wrong labels, copies, poor pictures, odd sizes."""

import csv
import io
import shutil
import tarfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cleanlab.rank import get_label_quality_scores  # type: ignore[import-untyped]
from PIL import Image
from sklearn.datasets import load_digits

from imgcls import logs
from imgcls.config.operations import DoctorConfig
from imgcls.data.dataset import read_dataset
from imgcls.errors import ConfigError
from imgcls.labelling.doctor.look import look_at
from imgcls.labelling.doctor.suspects import find_label_issues
from imgcls.operations.doctor import doctor
from imgcls.training.head.solver import out_of_fold_probs
from tests.report.browser import opened

_NUM_PLANTED = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """480 digits of five classes, 24 of them under another name, and what else goes wrong."""
    folder = tmp_path_factory.mktemp("data")
    digits = load_digits(n_class=5)
    rng = np.random.default_rng(0)
    wrong = set(rng.choice(480, _NUM_PLANTED, replace=False).tolist())
    for i in range(480):
        label = int(digits.target[i])
        label = (label + int(rng.integers(1, 5))) % 5 if i in wrong else label
        file = folder / str(label) / f"scan {i:03d}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = (digits.images[i] * 15).astype(np.uint8)
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(file)
    Image.new("L", (160, 120)).save(folder / "3" / "black.png")
    noise = rng.integers(0, 255, (300, 90)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "3" / "tall.png")
    one = next(i for i in range(480) if i not in wrong and digits.target[i] == 1)
    shutil.copy(folder / "1" / f"scan {one:03d}.png", folder / "2" / "=copy().png")
    (folder / "3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder, {f"scan {i:03d}.png" for i in wrong}


@pytest.fixture(scope="module")
def found(
    data: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, str]:
    """The result, where its files are, and the log that stands above it on a terminal."""
    out, log = tmp_path_factory.mktemp("out"), io.StringIO()
    logs.configure(result_is_shown=True)
    with redirect_stderr(log):
        return doctor(DoctorConfig(data=str(data[0]), to=str(out))), out, log.getvalue()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_planted_labels_come_first_and_all_else_is_named(
    data: tuple[Path, set[str]], found: tuple[dict[str, Any], Path, str]
) -> None:
    result, out, log = found
    rows = rows_of(out)
    assert len(rows) == 483  # all but the broken one, so that one may train from it
    labels = [Path(row["uri"]).name for row in rows if "label" in row["suspect"].split(", ")]
    planted = data[1] | {"=copy().png", "tall.png"}
    assert len(set(labels) & data[1]) >= 0.8 * _NUM_PLANTED
    assert len(set(labels) & planted) >= 0.9 * len(labels)
    kinds = {Path(row["uri"]).name: row["suspect"] for row in rows}
    assert "flat" in kinds["black.png"]
    assert "size" in kinds["tall.png"]
    conflicts = [row for row in rows if "conflict" in row["suspect"]]
    assert len(conflicts) == 1
    assert "which is labelled" in conflicts[0]["reason"]
    assert result["num_unreadable"] == 1
    assert any("broken.png" in line for line in result["lines"])
    assert result["out_of_fold_accuracy"] > 0.8
    assert "no --model" in log
    assert not [line for line in result["lines"] if line in log], "a terminal shows it once"


def test_the_page_shows_the_suspects_and_nothing_runs_on_it(
    data: tuple[Path, set[str]], found: tuple[dict[str, Any], Path, str]
) -> None:
    with opened(str(found[1] / "doctor.html")) as shown:
        assert "labels to check" in shown.page.inner_text("h1")
        [copy] = shown.page.locator("#conflicts .card").all_inner_texts()
        assert "=copy().png" in copy
        assert "which is labelled" in copy
        labels = shown.page.locator("#labels .card")
        cards = labels.all_inner_texts()
        assert sum(any(name in card for name in data[1]) for card in cards) >= 0.8 * _NUM_PLANTED
        assert all("→" in card for card in cards), "another class is suggested"
        assert shown.page.locator("#labels img").count() == len(cards)
        assert not shown.complaints
    with opened(str(found[1] / "doctor.html"), bypass_csp=True) as shown:
        assert not shown.serious_findings()


def test_a_corrected_manifest_goes_straight_into_training(
    data: tuple[Path, set[str]], found: tuple[dict[str, Any], Path, str]
) -> None:
    from imgcls.data.label_manifest import read_manifest

    rows = read_manifest(str(found[1] / "labels.csv"))
    assert {Path(row.uri).parent.name for row in rows} == {row.label for row in rows}
    assert len(rows) == 483


@pytest.mark.parametrize("kind", ["digits", "overlapping clouds"])
def test_as_precise_as_cleanlab_on_the_same_probabilities(kind: str) -> None:
    rng = np.random.default_rng(3)
    if kind == "digits":
        digits = load_digits(n_class=6)
        x_NE, truth_N = digits.data.astype(np.float32), digits.target.astype(np.int64)
    else:
        truth_N = rng.integers(0, 4, 1000)
        x_NE = (rng.normal(size=(4, 8))[truth_N] * 1.6 + rng.normal(size=(1000, 8))).astype("f4")
    num_classes = int(truth_N.max()) + 1
    is_wrong_N = rng.random(len(truth_N)) < 0.05
    moved_N = (truth_N + rng.integers(1, num_classes, len(truth_N))) % num_classes
    label_N = np.where(is_wrong_N, moved_N, truth_N)
    target_NK = np.eye(num_classes, dtype=bool)[label_N]
    probs_NK = out_of_fold_probs(x_NE, target_NK, np.arange(len(truth_N)), 0)
    k = int(is_wrong_N.sum())
    theirs = np.argsort(get_label_quality_scores(label_N, probs_NK))[:k]
    names = [str(number) for number in range(num_classes)]
    ours = [suspect.index for suspect in find_label_issues(label_N, probs_NK, names)][:k]
    assert len(ours) > 0.7 * k
    assert is_wrong_N[ours].sum() >= is_wrong_N[theirs[: len(ours)]].sum()
    assert is_wrong_N[ours].mean() > 0.6


def test_no_image_of_a_group_helps_to_judge_another_of_it() -> None:
    # Each group has a mark of its own; labels are random: whoever saw the group knows the label.
    rng = np.random.default_rng(0)
    group_N = np.repeat(np.arange(40), 10)
    label_N = rng.integers(0, 2, 40)[group_N]
    x_NE = np.eye(40, dtype=np.float32)[group_N] + 0.01 * rng.normal(size=(400, 40))
    target_NK = np.eye(2, dtype=bool)[label_N]
    whole = out_of_fold_probs(x_NE.astype("f4"), target_NK, group_N, 0)
    cut = out_of_fold_probs(x_NE.astype("f4"), target_NK, np.arange(400), 0)
    right = {name: (p.argmax(1) == label_N).mean() for name, p in (("whole", whole), ("cut", cut))}
    assert right["cut"] > 0.95
    assert right["whole"] < 0.7


def test_few_images_and_two_questions_are_refused(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            file = tmp_path / label / f"{label}{i}.png"
            Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(file)
    with pytest.raises(ConfigError, match=r"a \(3\), b \(3\); needed are 5"):
        doctor(DoctorConfig(data=str(tmp_path), to=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="not both"):
        doctor(DoctorConfig(data=str(tmp_path), cluster_file=str(tmp_path / "cluster.yaml")))


def test_pictures_in_a_tar_are_looked_at_like_files(
    data: tuple[Path, set[str]], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(data[0], arcname=".")
    files, packed = (
        look_at(
            read_dataset(str(place), val_fraction=0.0, test_fraction=0.0, seed=0).samples,
            num_decoders=1,
        )
        for place in (data[0], tmp_path / "data.tar")
    )
    assert len(packed.digests) > 400
    assert sorted(packed.digests) == sorted(files.digests)
    assert [reason for _, reason in packed.unreadable] == [reason for _, reason in files.unreadable]
