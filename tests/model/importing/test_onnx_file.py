"""ONNX files come in: answers equal ONNX Runtime's; what is not a classifier is refused by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from imgcls.config.models import ImportConfig
from imgcls.errors import ConfigError
from imgcls.image.crops import decode_one
from imgcls.image.preprocess import normalize
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.importing.driver import import_model
from tests.model.importing.makers import (
    CLASS_NAMES,
    SmallNet,
    onnx_file,
    pil_pictures,
    spread_head,
)

_FLAGS = {"fit": "stretch", "input_range": "0:1", "mean": "0.5,0.4,0.3", "std": "0.2"}


def _import(path: Path, tmp_path: Path, **flags: Any) -> tuple[Bundle, dict[str, Any]]:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASS_NAMES))
    given = {"classes": str(names)} | _FLAGS | flags
    result = import_model(ImportConfig(str(path), str(tmp_path / "registry"), "m", **given))
    return read_bundle(result["uri"]), result


def _net(wrap: nn.Module | None = None, channels: int = 3, classes: int = 8) -> nn.Module:
    torch.manual_seed(4)
    net = SmallNet(channels, classes)
    spread_head(net, torch.randn(16, channels, 64, 64), net.head)
    return nn.Sequential(net, wrap) if wrap is not None else net


@pytest.mark.parametrize(
    ("wrap", "said", "multi_label"),
    [(None, "logits", False), (nn.Softmax(1), "softmax", False), (nn.Sigmoid(), "sigmoid", True)],
)
@pytest.mark.parametrize("is_dynamic", [True, False])
def test_logits_probabilities_and_sigmoids_are_told_apart(
    wrap: nn.Module | None, said: str, multi_label: bool, is_dynamic: bool, tmp_path: Path
) -> None:
    net = _net(wrap)
    path = onnx_file(tmp_path / "net.onnx", net, is_dynamic=is_dynamic)
    bundle, _ = _import(path, tmp_path)
    assert bundle.multi_label is multi_label
    assert said in bundle.origin["notes"][0]
    assert bundle.arch_options["batch_size"] == (0 if is_dynamic else 2)
    x_BCHW = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        logits_BK = (net[0] if isinstance(net, nn.Sequential) else net)(x_BCHW)
    torch.testing.assert_close(bundle.to_model()(x_BCHW), logits_BK, rtol=1e-3, atol=1e-3)


class _Bgr255(nn.Module):
    """NHWC, BGR, 0..255: as networks of TensorFlow and Caffe come."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        return self.net(x_BHWC.permute(0, 3, 1, 2).flip(1) / 255)


def test_channels_last_bgr_and_255_give_what_rgb_gives(tmp_path: Path) -> None:
    plain, _ = _import(onnx_file(tmp_path / "a.onnx", _net()), tmp_path, mean="0", std="1")
    odd, _ = _import(
        onnx_file(tmp_path / "b.onnx", _Bgr255(_net()), (2, 64, 64, 3)),
        tmp_path,
        input_range="0:255",
        mean="0",
        std="1",
        channel_order="bgr",
    )
    assert odd.arch_options["layout"] == "NHWC"
    torch.testing.assert_close(odd.golden_x_BCHW, plain.golden_x_BCHW)
    torch.testing.assert_close(odd.golden_probs_BK, plain.golden_probs_BK, rtol=1e-3, atol=1e-4)


def test_one_channel_of_a_wide_range_with_eighteen_sigmoids(tmp_path: Path) -> None:
    """As torchxrayvision's DenseNet-121 has it: 1 channel, -1024..1024."""
    names = tmp_path / "findings.txt"
    names.write_text("\n".join(f"finding {number}" for number in range(18)))
    path = onnx_file(tmp_path / "x.onnx", _net(nn.Sigmoid(), 1, 18), (2, 1, 64, 64))
    bundle, _ = _import(
        path, tmp_path, classes=str(names), input_range="-1024:1024", mean="0", std="1", fit="crop"
    )
    assert bundle.multi_label
    assert bundle.preprocess_spec.shape_CHW == (1, 64, 64)
    assert bundle.decode_spec.color == "gray"
    x_BCHW = normalize(
        torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2), bundle.preprocess_spec
    )
    assert x_BCHW.flatten().tolist() == [-1024.0, 1024.0]


def test_network_without_a_head_is_a_backbone(tmp_path: Path) -> None:
    net = _net()
    assert isinstance(net, SmallNet)
    bundle, result = _import(
        onnx_file(tmp_path / "f.onnx", net.features), tmp_path, classes="", backbone=True
    )
    assert bundle.is_backbone
    assert result["is_backbone"]
    x_BCHW = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        bundle.to_model()(x_BCHW), net.features(x_BCHW), rtol=1e-3, atol=1e-3
    )


def test_labelled_images_tell_a_wrong_range(tmp_path: Path) -> None:
    net = _net()
    path = onnx_file(tmp_path / "net.onnx", net)
    bundle, _ = _import(path, tmp_path)
    pictures = [picture.resize((90, 90)) for picture in pil_pictures()]
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        crop = decode_one(buffer.getvalue(), bundle.decode_spec, bundle.preprocess_spec)[0]
        with torch.inference_mode():
            logits = net(
                normalize(torch.from_numpy(crop.x_CHW.copy())[None], bundle.preprocess_spec)
            )
        folder = tmp_path / "check" / CLASS_NAMES[int(logits.argmax())]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{len(list(folder.iterdir()))}.png").write_bytes(buffer.getvalue())
    check = str(tmp_path / "check")
    _, result = _import(path, tmp_path, check=check)
    assert result["check"]["num_right"] == result["check"]["num_images"] == len(pictures)
    with pytest.raises(ConfigError, match=r"it was not imported\. Look at the order of --classes"):
        _import(path, tmp_path, check=check, input_range="0:255", channel_order="bgr", mean="-300")


def test_silent_file_asks_for_all_that_it_does_not_say_at_once(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", _net())
    empty = dict.fromkeys(_FLAGS, "")
    with pytest.raises(ConfigError, match=r"--input-range.*--mean.*--std.*--fit.*--classes FILE"):
        _import(path, tmp_path, classes="", **empty)
    with pytest.raises(ConfigError, match="flags say 32 x 32"):
        _import(path, tmp_path, image_px="32")
    with pytest.raises(ConfigError, match="the network itself ends with softmax"):
        _import(onnx_file(tmp_path / "s.onnx", _net(nn.Softmax(1))), tmp_path, outputs="logits")
    assert not (tmp_path / "registry").exists()


def test_external_data_inside_the_folder_is_taken_in(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = onnx_file(folder / "net.onnx", _net(), external_data=True)
    assert (folder / "net.onnx.data").is_file()
    bundle, _ = _import(path, tmp_path)
    assert set(bundle.origin["files"]) == {"net.onnx", "net.onnx.data"}
    assert bundle.to_model()(torch.zeros(1, 3, 64, 64)).shape == (1, 8)


@pytest.mark.parametrize("way", ["above", "absolute", "link"])
def test_external_data_elsewhere_is_refused(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = onnx_file(folder / "net.onnx", _net(), external_data=True)
    secret = tmp_path / "secret"
    (folder / "net.onnx.data").rename(secret)
    if way == "link":
        (folder / "net.onnx.data").symlink_to(secret)
    else:
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../secret" if way == "above" else str(secret)
        path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"outside of its folder|which is a link"):
        _import(path, tmp_path)


def _graph(nodes: list[Any], outputs: list[Any], opsets: list[Any] | None = None) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    graph = helper.make_graph(nodes, "g", [x], outputs)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), *(opsets or [])], ir_version=9
    )
    data: bytes = model.SerializeToString()
    return data


def _value(name: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            _graph(
                [helper.make_node("Magic", ["x"], ["y"], domain="com.acme")],
                [_value("y", ["batch", 8])],
                [helper.make_opsetid("com.acme", 1)],
            ),
            "operators that are not of the ONNX standard: com.acme.Magic",
        ),
        (
            _graph(
                [helper.make_node("Identity", ["x"], ["boxes"])],
                [_value("boxes", ["batch", 100, 4, 1])],
            ),
            "boxes .*not one row of classes per picture: boxes, masks and maps",
        ),
        (
            _graph(
                [helper.make_node("Flatten", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
                [_value("a", ["batch", 192]), _value("b", ["batch", 192])],
            ),
            "it has 2 outputs .*--output-name",
        ),
        (b"\x08\x09 this is no network at all", "cannot be read as ONNX|holds no network"),
        (b"\x08\x09", "holds no network"),
    ],
)
def test_what_is_no_classifier_is_refused_by_name(
    data: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        _import(path, tmp_path)


def test_hostile_file_ends_the_child_and_not_the_import(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", _net())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for number in range(6):
        damaged = bytearray(whole[: len(whole) - 7 * number])
        for place in rng.integers(0, min(400, len(damaged)), 12):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(bytes(damaged))
        with pytest.raises(ConfigError):
            _import(path, tmp_path)
    assert not (tmp_path / "registry").exists()


def test_ledger_tells_two_onnx_networks_of_the_same_classes_apart(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "a.onnx", _net())
    first, _ = _import(path, tmp_path)
    again, _ = _import(path, tmp_path)
    torch.manual_seed(5)
    other, _ = _import(onnx_file(tmp_path / "b.onnx", SmallNet()), tmp_path)
    turned, _ = _import(path, tmp_path, channel_order="bgr")
    assert first.network_digest == again.network_digest, "nothing is scored again"
    assert len({one.network_digest for one in (first, other, turned)}) == 3
