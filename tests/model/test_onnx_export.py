import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from imgcls.config.models import ExportConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden
from imgcls.model.onnx_export import check_onnx, export, to_onnx
from imgcls.model.registry import register
from imgcls.storage.objects import read

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


@pytest.mark.usefixtures("onnx")
def test_an_input_that_is_no_square_is_exported_in_its_shape_and_range(
    make_bundle: MakeBundle,
) -> None:
    """A strip, padded, its values -1 to 1: another shape is refused, another range would move."""
    bundle = _bundle_of(make_bundle(), "spot_cnn", 64, "gray")
    spec = PreprocessSpec(
        32,
        128,
        fit="pad",
        resize="longest",
        input_range=(-1.0, 1.0),
        mean=(0.1,),
        std=(0.4,),
        channels=1,
    )
    x_BCHW = torch.randint(0, 256, (3, 1, 32, 128)).to(torch.uint8)
    model = bundle.to_model()
    bundle = replace(
        bundle,
        preprocess_spec=spec,
        golden_x_BCHW=x_BCHW,
        golden_probs_BK=make_golden(model, x_BCHW, spec),
    )
    data = to_onnx(bundle)
    assert check_onnx(data, bundle) < 1e-5
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 32, 128]
    plain = replace(
        bundle, golden_probs_BK=make_golden(model, x_BCHW, replace(spec, input_range=(0, 1)))
    )
    with pytest.raises(BundleError):
        check_onnx(data, plain)


@pytest.mark.usefixtures("onnx")
def test_multi_label_export_gives_a_probability_of_each_class(make_bundle: MakeBundle) -> None:
    single = make_bundle()
    golden_BK = make_golden(
        single.to_model(), single.golden_x_BCHW, single.preprocess_spec, multi_label=True
    )
    bundle = replace(single, multi_label=True, golden_probs_BK=golden_BK)
    assert check_onnx(to_onnx(bundle), bundle) < 1e-5


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


@pytest.mark.s3
@pytest.mark.usefixtures("onnx")
def test_command_writes_a_checked_file_to_a_bucket(make_bundle: MakeBundle, s3_bucket: str) -> None:
    bundle = make_bundle()
    version = register(f"{s3_bucket}/reg", "m", bundle)
    output = f"{s3_bucket}/out/model.onnx"
    result = export(ExportConfig(model=f"{s3_bucket}/reg/m@v1", output=output))
    data = read(output)
    assert result["sha256"] == hashlib.sha256(data).hexdigest()
    assert (result["size_bytes"], result["model_digest"]) == (len(data), version.digest)
    assert result["checked"]
    assert result["largest_difference"] < 1e-5
    assert check_onnx(data, bundle) == result["largest_difference"]


@pytest.mark.usefixtures("onnx")
def test_without_onnx_runtime_the_result_says_that_nothing_was_checked(
    make_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(str(tmp_path / "reg"), "m", make_bundle())
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == "onnxruntime" else found(n, *a)
    )
    config = ExportConfig(model=f"{tmp_path}/reg/m@v1", output=str(tmp_path / "m.onnx"))
    result = export(config)
    assert (result["checked"], result["largest_difference"]) == (False, None)
    assert "not checked" in caplog.text
    assert (tmp_path / "m.onnx").stat().st_size == result["size_bytes"]


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    for output in (str(tmp_path), "s3://bucket/folder/"):
        with pytest.raises(ConfigError, match=r"is a folder: name a file"):
            export(ExportConfig(model=str(tmp_path / "m"), output=output))
