import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from imgcls.errors import ConfigError
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle
from imgcls.model.pretrained import load_weights, normalization_of
from imgcls.model.registry import register


def _model(num_classes: int = 3, arch: str = "simple_cnn", in_channels: int = 3) -> Any:
    return build_model(arch, num_classes, in_channels=in_channels)


def _save_safetensors(state: dict[str, torch.Tensor], path: Path) -> str:
    path = path.with_suffix(".safetensors")
    path.write_bytes(safetensors.torch.save(state))
    return str(path)


def _save_nested(state: dict[str, torch.Tensor], path: Path) -> str:
    path = path.with_suffix(".pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, path)
    return str(path)


@pytest.mark.parametrize("save", [_save_safetensors, _save_nested])
@pytest.mark.parametrize("num_classes", [3, 5])
def test_all_but_the_head_is_loaded(
    tmp_path: Path, save: Callable[..., str], num_classes: int
) -> None:
    old, new = _model(num_classes), _model(3)
    head_before = new.classifier[4].weight.clone()
    result = load_weights(new, "simple_cnn", save(old.state_dict(), tmp_path / "w"))
    assert new.features[0].weight.equal(old.features[0].weight)
    assert new.classifier[1].weight.equal(old.classifier[1].weight)
    assert new.classifier[4].weight.equal(head_before)
    assert result.num_loaded == len(new.state_dict()) - 2
    assert result.new_head == ("classifier.4.weight", "classifier.4.bias")
    assert "classifier.4.bias" in result.summary()


def test_head_is_loaded_on_request_if_it_fits(tmp_path: Path) -> None:
    old = _model(3)
    path = _save_safetensors(old.state_dict(), tmp_path / "w")
    new = _model(3)
    load_weights(new, "simple_cnn", path, keep_head=True)
    assert new.classifier[4].weight.equal(old.classifier[4].weight)
    with pytest.raises(ConfigError, match=r"classifier\.4\.weight is \[3, 128\]"):
        load_weights(_model(4), "simple_cnn", path, keep_head=True)


def test_three_channel_stem_is_summed_for_one_channel(tmp_path: Path) -> None:
    old, new = _model(arch="resnet18"), _model(arch="resnet18", in_channels=1)
    load_weights(new, "resnet18", _save_safetensors(old.state_dict(), tmp_path / "w"))
    x_B1HW = torch.randn(2, 1, 32, 32)
    new.fc, old = old.fc, old.eval()
    torch.testing.assert_close(new.eval()(x_B1HW), old(x_B1HW.expand(-1, 3, -1, -1)))


def test_auxiliary_heads_of_a_file_are_not_used(tmp_path: Path) -> None:
    model = _model(arch="googlenet")
    state = model.state_dict() | {"aux1.fc2.bias": torch.zeros(1000)}
    result = load_weights(model, "googlenet", _save_safetensors(state, tmp_path / "w"))
    assert "aux1.fc2.bias" in result.not_used


def test_old_names_and_missing_counters_of_published_files_are_understood(tmp_path: Path) -> None:
    old, new = _model(arch="densenet121"), _model(arch="densenet121")
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in old.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    load_weights(new, "densenet121", _save_safetensors(state, tmp_path / "w"))
    layer = "features.denseblock1.denselayer1.conv2.weight"
    assert new.state_dict()[layer].equal(old.state_dict()[layer])


def test_positions_of_another_image_size_are_interpolated(tmp_path: Path) -> None:
    path = _save_safetensors(build_model("vit_b_32", 3, image_px=96).state_dict(), tmp_path / "w")
    model = build_model("vit_b_32", 3, image_px=64)
    load_weights(model, "vit_b_32", path)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_weights_of_another_architecture_are_refused_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = _save_safetensors(_model(arch="resnet18").state_dict(), tmp_path / "w")
    model = _model(arch="resnet50")
    before = model.conv1.weight.clone()
    with pytest.raises(ConfigError, match="does not fit resnet50"):
        load_weights(model, "resnet50", path)
    assert model.conv1.weight.equal(before)
    with pytest.raises(ConfigError, match="does not fit simple_cnn: it lacks"):
        load_weights(_model(), "simple_cnn", path)
    deeper = _save_safetensors(_model(arch="resnet34").state_dict(), tmp_path / "deeper")
    with pytest.raises(ConfigError, match=r"does not fit resnet18: it has .*layer"):
        load_weights(_model(arch="resnet18"), "resnet18", deeper)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_file_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"w": _Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt holds no weights that can be read safely"):
        load_weights(_model(), "simple_cnn", str(tmp_path / "w.pt"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "suffix"),
    [(b"", ".pt"), (b"garbage", ".pth"), (b"garbage!garbage!", ".safetensors"), (b"", ".bin")],
)
def test_file_that_is_none_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="read safely"):
        load_weights(_model(), "simple_cnn", str(path))


def test_missing_file_and_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file of weights"):
        load_weights(_model(), "simple_cnn", str(tmp_path / "w.pt"))
    with pytest.raises(ConfigError, match=r"no weights 'IMAGENET'.*IMAGENET1K_V1.*DEFAULT"):
        load_weights(_model(arch="resnet50"), "resnet50", "IMAGENET")
    with pytest.raises(ConfigError, match="no published weights"):
        load_weights(_model(), "simple_cnn", "DEFAULT")


def test_unreachable_download_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigError, match=r"could not be downloaded.*give the file"):
        load_weights(_model(arch="squeezenet1_1"), "squeezenet1_1", "DEFAULT")


def test_published_weights_bring_their_own_normalization() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert normalization_of("resnet18", "DEFAULT", 3) == (mean, std)
    grey = normalization_of("resnet18", "DEFAULT", 1)
    assert grey == (pytest.approx((0.449,), abs=1e-4), pytest.approx((0.226,), abs=1e-4))
    assert normalization_of("resnet18", "s3://somewhere/weights.pt", 3) is None


def test_a_bundle_brings_its_weights_and_its_normalization(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    register(str(tmp_path), "chest", bundle)
    reference = f"{tmp_path}/chest@v1"
    spec = bundle.preprocess_spec
    assert normalization_of(bundle.arch, reference, 3) == (spec.mean, spec.std)
    new = build_model(bundle.arch, 7)
    load_weights(new, bundle.arch, reference)
    stem = "features.0.weight"
    assert new.state_dict()[stem].equal(bundle.state_dict[stem])
    with pytest.raises(ConfigError, match="is a simple_cnn, --arch is resnet18"):
        load_weights(_model(arch="resnet18"), "resnet18", reference)
    with pytest.raises(ConfigError, match="v9"):
        normalization_of(bundle.arch, f"{tmp_path}/chest@v9", 3)
