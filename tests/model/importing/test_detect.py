"""What cannot be imported is refused by name, with the lines that convert it; nothing is run."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from imgcls.config.models import ImportConfig
from imgcls.errors import ConfigError
from imgcls.model.bundle import read_bundle
from imgcls.model.importing.driver import import_model
from imgcls.model.importing.preprocessing import processor_spec
from tests.model.importing.makers import CLASS_NAMES, SmallNet

_SPEC = {"fit": "crop", "input_range": "0:1", "mean": "0.4", "std": "0.2", "image_px": "32"}


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("/tmp/imgcls-was-here", "w"))  # noqa: S108


def _refused(path: Path, tmp_path: Path, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        import_model(ImportConfig(str(path), str(tmp_path / "registry"), "m", **flags))
    assert not (tmp_path / "registry").exists()
    return str(caught.value)


def test_torchscript_is_refused_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.trace(SmallNet().eval(), torch.zeros(1, 3, 32, 32)).save(str(path))
    told = _refused(path, tmp_path)
    assert "a TorchScript archive" in told
    assert f"torch.jit.load('{path}')" in told
    assert "torch.onnx.export" in told


def test_pt2_is_refused_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(SmallNet().eval(), (torch.zeros(1, 3, 32, 32),)), path)
    told = _refused(path, tmp_path)
    assert ".pt2 archive of torch.export, which falls back to pickle" in told
    assert f"torch.export.load('{path}').module()" in told


def test_pickle_is_refused_and_never_loaded(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pkl", Path("/tmp/imgcls-was-here")  # noqa: S108
    path.write_bytes(pickle.dumps(_Bomb()))
    assert "is a pickle: it can run code" in _refused(path, tmp_path)
    torch.save(_Bomb(), path)
    told = _refused(path, tmp_path, arch="resnet18", classes=str(_names(tmp_path)), **_SPEC)
    assert "holds no weights that can be read safely" in told
    assert not trace.exists()


def test_mlflow_tensorflow_and_keras_are_refused_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "MLmodel").touch()
    assert "mlflow.pytorch.load_model" in _refused(tmp_path / "mlflow", tmp_path)
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "saved_model.pb").touch()
    assert "tf2onnx.convert --saved-model" in _refused(tmp_path / "tf", tmp_path)
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
    assert "tf2onnx.convert --keras" in _refused(tmp_path / "m.h5", tmp_path)


def test_other_things_are_told_what_they_are(tmp_path: Path) -> None:
    assert "nothing of that name" in _refused(tmp_path / "nowhere", tmp_path)
    assert "no config.json" in _refused(tmp_path, tmp_path)
    (tmp_path / "a.txt").write_text("hello, this is a text of some length")
    assert "none of what imgcls imports" in _refused(tmp_path / "a.txt", tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/readme", "x")
    assert "none that torch.save writes" in _refused(tmp_path / "a.zip", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    assert "is a link" in _refused(tmp_path / "link", tmp_path)


def _names(tmp_path: Path, names: tuple[str, ...] = CLASS_NAMES) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names))
    return path


@pytest.mark.parametrize("arch", ["simple_cnn", "timm:resnet10t"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_of_their_owner_come_in(arch: str, suffix: str, tmp_path: Path) -> None:
    from imgcls.model.architectures import build_model

    torch.manual_seed(0)
    model = build_model(arch, len(CLASS_NAMES), image_px=32).eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    flags = {"arch": arch, "classes": str(_names(tmp_path)), **_SPEC}
    result = import_model(ImportConfig(str(path), str(tmp_path / "registry"), "m", **flags))
    bundle = read_bundle(result["uri"])
    x_BCHW = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(bundle.to_model()(x_BCHW), model(x_BCHW))
    assert bundle.class_names.names == CLASS_NAMES


def test_densenet_in_the_shape_of_torchxrayvision_comes_in(tmp_path: Path) -> None:
    """One channel, -1024..1024, scikit-image's resize, 18 sigmoids of which some have no name."""
    from torchvision.models import densenet121

    from imgcls.image.preprocess import normalize
    from imgcls.image.spec import PreprocessSpec

    torch.manual_seed(2)
    model = densenet121(num_classes=18).eval()
    model.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    save_file(model.state_dict(), tmp_path / "xrv.safetensors")
    spec = PreprocessSpec(
        64, 64, fit="crop", resize="exact", filter="gaussian", crop_place="center_halves",
        input_range=(-1024.0, 1024.0), mean=(0.0,), std=(1.0,), channels=1,
    )  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    names = tmp_path / "pathologies.json"
    names.write_text(json.dumps(["Atelectasis", "", "Effusion", *(f"f{n}" for n in range(15))]))
    flags: dict[str, Any] = {
        "arch": "densenet121", "color": "gray", "multi_label": True,
        "preprocess": str(tmp_path / "spec.json"), "classes": str(names),
    }  # fmt: skip
    told = _refused(tmp_path / "xrv.safetensors", tmp_path, **flags)
    assert "output 1 has no class name" in told
    assert "such as 'not trained 0'" in told
    names.write_text(names.read_text().replace('""', '"not trained 0"'))
    result = import_model(
        ImportConfig(str(tmp_path / "xrv.safetensors"), str(tmp_path / "registry"), "m", **flags)
    )
    bundle = read_bundle(result["uri"])
    assert bundle.multi_label
    assert bundle.preprocess_spec == spec
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    assert normalize(pixels, spec).flatten().tolist() == [-1024.0, 1024.0]
    with torch.inference_mode():
        x_BCHW = normalize(bundle.golden_x_BCHW, spec)
        theirs_BK, ours_BK = (one(x_BCHW).sigmoid() for one in (model, bundle.to_model()))
    torch.testing.assert_close(bundle.golden_probs_BK, theirs_BK, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours_BK, theirs_BK, rtol=0, atol=1e-4)


def test_weights_that_say_nothing_ask_for_all_at_once_and_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    told = _refused(path, tmp_path)
    assert "--arch" in told
    assert "--classes" in told
    names = str(_names(tmp_path))
    assert "--input-range" in _refused(path, tmp_path, arch="resnet18", classes=names)
    told = _refused(path, tmp_path, arch="simple_cnn", classes=names, **_SPEC)
    assert "does not fit simple_cnn: it lacks" in told


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "prepared by DonutImageProcessor"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": 224, "do_pad": True},
            "do_pad=True cannot be expressed",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 224}},
            "longest_edge",
        ),
        (
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}},
            "every picture has another size",
        ),
    ],
)
def test_preprocessing_that_no_spec_can_express_is_refused(
    config: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        processor_spec(config)


def test_folder_that_wants_its_own_code_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "odd", "architectures": ["OddModel"], "auto_map": {"AutoModel": "m.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "trust_remote_code" in _refused(folder, tmp_path)
