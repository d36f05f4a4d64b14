"""The reference that a training makes, and an import of its weights: of pictures out of a tar."""

import tarfile
from collections.abc import Callable
from pathlib import Path

from imgcls.config.models import ImportConfig
from imgcls.drift.imported import import_model
from imgcls.drift.observed import Observed
from imgcls.drift.reference import read_reference
from imgcls.training.driver import train
from tests.training.bars import bars_config


def reference_of(uri: str) -> Observed:
    found = read_reference(uri, None)
    assert found is not None
    return found


def check_of_bars(found: Observed, made_by: str, num_images: int) -> None:
    """Every picture was read and answered for, wherever it lies."""
    assert found.about["made_by"] == made_by
    assert len(found.table) == found.num_images == num_images
    assert set(found.texts("status")) == {"ok"}
    assert set(found.texts("class_name")) == {"class0", "class1"}
    assert set(found.table["width_px"].to_pylist()) == {12}
    assert found.table["sketch"].null_count == 0
    assert found.table["uri"].null_count == num_images


def test_train_and_import_leave_a_reference_of_their_pictures(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data.tar"
    with tarfile.open(data, "w") as archive:
        archive.add(make_tree(60), arcname=".")
    trained = train(bars_config(data, epochs=4, val_fraction=0.4, test_fraction=0.1))
    check_of_bars(reference_of(trained["uri"]), "imgcls train", trained["num_val"])

    (tmp_path / "names.txt").write_text("class0\nclass1\n")
    imported = import_model(
        ImportConfig(
            str(Path(trained["uri"]) / "model.safetensors"),
            str(tmp_path / "imports"),
            "bars",
            arch="simple_cnn",
            classes=str(tmp_path / "names.txt"),
            fit="stretch",
            input_range="0:1",
            mean="0.5",
            std="0.25",
            image_px="12",
            check=str(data),
            max_check=20,
        )
    )
    # Of both classes, though the first one alone has more than --max-check.
    assert imported["check"]["num_images"] == 20
    assert imported["check"]["num_majority"] < 20
    check_of_bars(reference_of(imported["uri"]), "imgcls import --check", 120)
