import json
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from imgcls.errors import BundleError, ConfigError
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.artifact import Bundle, make_golden
from imgcls.model.build import build_model
from imgcls.model.export import check_onnx, to_onnx

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def onnx() -> Any:
    """The packages of the extra `export`; without them only the refusal can be tested."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def _bundle_of(bundle: Bundle, arch: str, image_px: int, color: str = "rgb") -> Bundle:
    torch.manual_seed(0)
    decode = DecodeSpec(color=color)  # type: ignore[arg-type]  (parametrized)
    mean = (0.5,) if color == "gray" else (0.5, 0.4, 0.3)
    spec = PreprocessSpec.for_image_px(image_px, mean=mean, std=mean)
    model = build_model(arch, 3, in_channels=decode.num_channels, image_px=image_px)
    x_BCHW = torch.randint(0, 256, (3, decode.num_channels, image_px, image_px)).to(torch.uint8)
    return replace(
        bundle,
        arch=arch,
        decode_spec=decode,
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        golden_x_BCHW=x_BCHW,
        golden_probs_BK=make_golden(model, x_BCHW, spec),
    )


@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize(
    ("arch", "image_px", "color"),
    [("simple_cnn", 16, "rgb"), ("simple_cnn", 16, "gray"), ("mobilenet_v3_small", 32, "rgb")],
)
def test_export_gives_the_golden_probabilities_at_any_batch_size(
    make_bundle: MakeBundle, arch: str, image_px: int, color: str
) -> None:
    bundle = _bundle_of(make_bundle(), arch, image_px, color)
    data = to_onnx(bundle)
    assert check_onnx(data, bundle) < 1e-5
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch_size in (1, 5):
        x_BCHW = bundle.golden_x_BCHW[:1].repeat(batch_size, 1, 1, 1).numpy()
        [probs_BK] = session.run(["probs"], {"image": x_BCHW})
        assert probs_BK.shape == (batch_size, 3)


def test_file_says_how_to_feed_it(make_bundle: MakeBundle, onnx: Any) -> None:
    bundle = make_bundle()
    props = {p.key: p.value for p in onnx.load_from_string(to_onnx(bundle)).metadata_props}
    assert json.loads(props["imgcls.class_names"]) == ["bad", "good", "unsure"]
    assert PreprocessSpec.from_dict(json.loads(props["imgcls.preprocess_spec"])) == (
        bundle.preprocess_spec
    )


@pytest.mark.usefixtures("onnx")
def test_export_of_other_weights_is_refused(make_bundle: MakeBundle) -> None:
    data = to_onnx(make_bundle(1))
    with pytest.raises(BundleError, match="does not reproduce"):
        check_onnx(data, make_bundle(2))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_named_with_the_extra(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("onnx", "onnxscript"):
        # None in sys.modules makes an import fail, as if the package were not installed.
        monkeypatch.setitem(sys.modules, name, None if name == package else ModuleType(name))
    with pytest.raises(ConfigError, match=rf"package {package}: pip install 'imgcls\[export\]'"):
        to_onnx(make_bundle())
