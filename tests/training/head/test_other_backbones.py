"""A head on the backbone of a model that was made elsewhere: ONNX, transformers, timm."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from imgcls.config.models import ImportConfig
from imgcls.config.scoring import QuantizeConfig, ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.image.crops import decode_one
from imgcls.image.preprocess import normalize
from imgcls.inference.backends.demand import Demand
from imgcls.inference.predictor import make_predictor
from imgcls.model.architectures import find_head
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.importing.driver import import_model
from imgcls.scoring.driver import score
from imgcls.scoring.quantize import quantize
from imgcls.training.driver import train
from tests.model.importing.makers import SmallNet, onnx_file, timm_folder
from tests.training.head.test_linear_head import NUM_CLASSES, write_data

_PER_CLASS = 60
_SAID = {"fit": "stretch", "input_range": "0:1", "mean": "0.5,0.4,0.3", "std": "0.2"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _net() -> SmallNet:
    torch.manual_seed(4)
    return SmallNet().eval()


# The features of images as the maker's own library gives them: files, bundle -> float32 [N,E].
Features = Callable[[Sequence[Path], Bundle], Tensor]
Made = tuple[Path, dict[str, Any], Features]


def _by_torch(paths: Sequence[Path], bundle: Bundle) -> Tensor:
    """The network that was exported, on our pixels: no library says how those are made."""
    specs = bundle.decode_spec, bundle.preprocess_spec
    x_NCHW = np.stack([decode_one(path.read_bytes(), *specs)[0].x_CHW for path in paths])
    return _net().features(normalize(torch.from_numpy(x_NCHW), bundle.preprocess_spec))


def _headless_onnx(folder: Path) -> Made:
    path = onnx_file(folder / "features.onnx", _net().features)
    return path, {"backbone": True, **_SAID}, _by_torch


def _onnx_with_its_head(folder: Path) -> Made:
    names = folder / "names.txt"
    names.write_text("\n".join(f"other {number}" for number in range(8)))
    return onnx_file(folder / "whole.onnx", _net()), {"classes": str(names), **_SAID}, _by_torch


def _fixed_batch_of_probabilities(folder: Path) -> Made:
    _, flags, features = _onnx_with_its_head(folder)
    net = nn.Sequential(_net(), nn.Softmax(1))
    return onnx_file(folder / "fixed.onnx", net, is_dynamic=False), flags, features


def _headless_timm(folder: Path) -> Made:
    made = timm_folder(folder / "timm", "resnet10t", input_size=(3, 64, 64), license="mit")

    def features(paths: Sequence[Path], _bundle: Bundle) -> Tensor:
        model = timm.create_model(f"local-dir:{made}", pretrained=True).eval()
        data = timm.data.resolve_data_config({}, model=model)
        transform = timm.data.create_transform(**data, is_training=False)
        x_NCHW = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        found: Tensor = model.forward_head(model.forward_features(x_NCHW), pre_logits=True)
        return found

    return made, {"backbone": True}, features


def _headless_transformers(folder: Path) -> Made:
    torch.manual_seed(3)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16
    )
    transformers.Dinov2Model(config).save_pretrained(folder / "hf")
    sizes = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
    transformers.BitImageProcessor(**sizes, resample=3).save_pretrained(folder / "hf")

    def features(paths: Sequence[Path], _bundle: Bundle) -> Tensor:
        model = transformers.AutoModel.from_pretrained(folder / "hf").eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder / "hf")
        images = [Image.open(path).convert("RGB") for path in paths]
        found: Tensor = model(**processor(images, return_tensors="pt")).pooler_output
        return found

    return folder / "hf", {"backbone": True}, features


@pytest.mark.parametrize(
    "make",
    [
        _headless_onnx,
        pytest.param(_onnx_with_its_head, marks=pytest.mark.slow),
        _fixed_batch_of_probabilities,
        pytest.param(_headless_timm, marks=pytest.mark.slow),
        _headless_transformers,
    ],
)
def test_head_is_fitted_on_a_backbone_made_elsewhere_and_scores(
    make: Callable[[Path], Made], tmp_path: Path
) -> None:
    registry, data = str(tmp_path / "registry"), write_data(tmp_path / "data", _PER_CLASS)
    path, flags, features = make(tmp_path)
    backbone = import_model(ImportConfig(str(path), registry, "other", **flags))
    result = train(_config(registry, data))
    bundle, before = read_bundle(result["uri"]), read_bundle(backbone["uri"])
    assert not bundle.is_backbone
    assert bundle.training["head"]["num_computed"] == result["num_train"]
    assert bundle.preprocess_spec == before.preprocess_spec
    assert bundle.origin["license"] == before.origin["license"]
    assert "last layer was fitted here, on the features of other@v1" in bundle.origin["notes"][-1]
    night = score(
        ScoreConfig(str(tmp_path / "data/*.png"), result["model"], str(tmp_path / "out"),
                    device="cpu", write_embedding=True)
    )  # fmt: skip
    assert night["status_counts"]["ok"] == NUM_CLASSES * _PER_CLASS
    rows = pq.read_table(night["parts"][0]).to_pylist()
    _check_against(features, rows, bundle)
    assert result["test_accuracy"] > 0.8, "random features tell stripes apart; a guess is 1/3"


def _check_against(features: Features, rows: list[dict[str, Any]], bundle: Bundle) -> None:
    """Embeddings and labels are those that the maker's own library leads to."""
    found_NE = np.array([row["embedding"] for row in rows])
    with torch.inference_mode():
        theirs_NE = features([Path(row["uri"]) for row in rows], bundle).numpy()
    np.testing.assert_allclose(found_NE, theirs_NE, atol=1e-3 * theirs_NE.std(axis=0).mean())
    _, layer = find_head(bundle.to_model())
    logits_NK = theirs_NE @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    labels = [bundle.class_names.names[label] for label in logits_NK.argmax(axis=1)]
    assert [row["class_name"] for row in rows] == labels
    assert len(set(labels)) == NUM_CLASSES


def _config(registry: str, data: Path) -> TrainConfig:
    return TrainConfig(
        data=str(data), registry=registry, name="stripes", head="linear",
        backbone=f"{registry}/other@v1", val_fraction=0.25, test_fraction=0.25, device="cpu",
        num_decoders=1,
    )  # fmt: skip


def test_head_on_an_onnx_file_is_what_torch_says_of_its_features_in_every_precision(
    tmp_path: Path,
) -> None:
    registry, data = str(tmp_path / "registry"), write_data(tmp_path / "data", 22)
    path, flags, _ = _headless_onnx(tmp_path)
    import_model(ImportConfig(str(path), registry, "other", **flags))
    result = train(_config(registry, data))
    bundle = read_bundle(result["uri"])
    x_BCHW = bundle.golden_x_BCHW
    with torch.inference_mode():
        features_BE = _net().features(normalize(x_BCHW, bundle.preprocess_spec))
        head = bundle.state_dict["head.weight"], bundle.state_dict["head.bias"]
        expected_BK = (features_BE @ head[0].T + head[1]).softmax(1).numpy()
    for precision in ("fp32", "auto"):
        demand = Demand(torch.device("cpu"), precision, batch_size=4, num_images=10_000)
        with make_predictor(bundle, demand) as predictor:
            found_BK = predictor.predict_all(x_BCHW).probs_BK
        np.testing.assert_allclose(found_BK, expected_BK, atol=0.01)
    assert _again(registry, data, bundle) == 0, "the features are kept"
    made = quantize(QuantizeConfig(model=result["model"], data=str(tmp_path / "data/*.png")))
    assert made["agreement"] >= 0.99


def _again(registry: str, data: Path, before: Bundle) -> int:
    from dataclasses import replace

    config = replace(_config(registry, data), backbone=f"{registry}/stripes@v1", name="again",
                     work_dir=f"{registry}/_training/stripes")  # fmt: skip
    bundle = read_bundle(train(config)["uri"])
    assert bundle.class_names == before.class_names
    return int(bundle.training["head"]["num_computed"])


def test_onnx_file_whose_last_layer_cannot_be_told_is_refused(tmp_path: Path) -> None:
    registry, data = str(tmp_path / "registry"), write_data(tmp_path / "data")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ConstantPad1d((0, 1), 0.5))
    path = onnx_file(tmp_path / "odd.onnx", net)
    flags = {"classes": str(names), **_SAID}
    import_model(ImportConfig(str(path), registry, "other", **flags))
    with pytest.raises(ConfigError, match=r"cut the file before that layer.*by --backbone"):
        train(_config(registry, data))
