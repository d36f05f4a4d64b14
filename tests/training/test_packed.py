"""Training from containers: the weights of a training from the same images, loose."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imgcls.config.models import EvaluateConfig
from imgcls.errors import SourceError
from imgcls.evaluation.evaluate import evaluate
from imgcls.model.bundle import read_bundle
from imgcls.training.driver import train
from tests.sources.archives import tar_bytes, zip_bytes
from tests.training.bars import bars_config
from tests.training.conftest import draw

NUM_CLASSES = 2


@pytest.fixture
def files() -> dict[str, bytes]:
    """Images of two classes, two of them equal within their class, one damaged."""
    rng = np.random.default_rng(0)
    found = dict[str, bytes]()
    for label in range(NUM_CLASSES):
        for number in range(24):
            buffer = io.BytesIO()
            Image.fromarray(draw(label, rng)).save(buffer, "PNG")
            found[f"class{label}/{number:03}.png"] = buffer.getvalue()
    found["class1/020.png"] = b"damaged"
    return found


def config(data: Path, **changes: Any) -> Any:
    values = {
        "epochs": 2,
        "device": "cpu",
        "val_fraction": 0.2,
        "test_fraction": 0.2,
        "max_bad_fraction": 0.2,
    }
    return bars_config(data, **(values | {"num_decoders": 1, "device": "cpu"} | changes))


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(result["uri"]) / "model.safetensors")


def put_loose(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / "loose" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "loose"


def put_packed(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The same images: names inside tell classes, files beside them, or a column."""
    path = folder / kind
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "x.tar":
            path.write_bytes(tar_bytes(files))
        case "web.tar":  # what comes before and after an image is not its own label
            members = {f"{name.rpartition('.')[0]}.cls": name[:6].encode() for name in files}
            path.write_bytes(tar_bytes(dict(reversed([*members.items(), *files.items()]))))
        case "x.tgz":
            path.write_bytes(tar_bytes(files, "w:gz"))
        case "x.zip":
            path.write_bytes(zip_bytes(files))
        case "zips.zip":
            path.write_bytes(zip_bytes({"a.zip": zip_bytes(files)}))
        case "x.parquet":
            rows = [
                {"image": {"bytes": data, "path": name}, "label": int(name[5])}
                for name, data in reversed(files.items())
            ]
            names = [f"class{label}" for label in range(NUM_CLASSES)]
            features = {"label": {"names": names, "_type": "ClassLabel"}}
            table = pa.Table.from_pylist(rows).replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
            pq.write_table(table, path, row_group_size=7)
    return path


@pytest.mark.parametrize(
    "kinds",
    [
        # Of a zip in the cache, of the others read again in each epoch.
        {"web.tar": "none", "x.zip": "ram", "x.parquet": "none"},
        pytest.param(
            {"x.tar": "none", "x.tgz": "none", "zips.zip": "none"}, marks=pytest.mark.slow
        ),
    ],
)
def test_weights_are_those_of_the_loose_files(
    kinds: dict[str, str], files: dict[str, bytes], tmp_path: Path
) -> None:
    loose = train(config(put_loose(tmp_path / "a", files)))
    one = read_bundle(loose["uri"])
    for kind, cache in kinds.items():
        # Each in a registry of its own: none knows the split of another.
        data = put_packed(tmp_path / kind.replace(".", "-"), kind, files)
        packed = train(config(data, cache=cache))
        for name, tensor in weights(loose).items():
            assert torch.equal(weights(packed)[name], tensor)
        other = read_bundle(packed["uri"])
        assert one.split_digest == other.split_digest
        for split in ("val", "test"):
            assert one.metrics[split]["log_loss"] == other.metrics[split]["log_loss"]
            assert one.metrics[split]["num_rows"] == other.metrics[split]["num_rows"]
        bad = [uri for split in other.training["bad_images"].values() for uri in split]
        assert bad == [f"{data}/{'a.zip/' * (kind == 'zips.zip')}class1/020.png"]
        measured = evaluate(
            EvaluateConfig(model=loose["model"], data=str(data), device="cpu", num_decoders=1)
        )
        assert measured["accuracy"] == one.metrics["test"]["accuracy"]
        assert measured["num_rows"] == one.metrics["test"]["num_rows"]


def test_leaks_in_containers_are_found_and_named(files: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "data"
    twin = files["class0/000.png"]
    for split, part in (("train", files), ("test", {"class0/copy.png": twin, **dict(
            list(files.items())[:1]), "class1/x.png": files["class1/000.png"]})):  # fmt: skip
        path = root / f"{split}.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zip_bytes(part))
    with pytest.raises(SourceError, match="leak"):
        train(config(root))
    listed = next((tmp_path / "registry").rglob("leaks.csv")).read_text()
    assert f"{root}/train.zip/class0/000.png" in listed
    assert f"{root}/test.zip/class0/copy.png" in listed


def test_a_container_that_is_overwritten_is_another_training(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    data = put_packed(tmp_path, "x.tar", files)
    first = train(config(data))
    swapped = {f"class{1 - int(name[5])}{name[6:]}": each for name, each in files.items()}
    data.write_bytes(tar_bytes(swapped))
    second = train(config(data))
    assert second["version"] == first["version"] + 1
    assert any(
        not torch.equal(weights(second)[name], tensor) for name, tensor in weights(first).items()
    )
