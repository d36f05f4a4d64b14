"""Every architecture of timm: built, sized, grouped and started from published weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from imgcls.config.training import TrainConfig
from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import (
    build_model,
    check_input_size,
    default_size,
    find_head,
    register_embedding_hook,
)
from imgcls.model.bundle import Bundle, make_golden, read_bundle
from imgcls.model.pretrained import load_weights, normalization_of, options_of
from imgcls.model.registry import register
from imgcls.training.optim.layer_groups import find_stages, freeze
from imgcls.training.planning.fit import with_own_size

_ARCHS = [
    "timm:resnet18",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_atto",
    "timm:mobilenetv4_conv_small",
    "timm:densenet121",
    "timm:swin_tiny_patch4_window7_224",
    "timm:dpn48b",
]


def _folder(tmp_path: Path, name: str, num_classes: int = 4, **config: Any) -> Path:
    torch.manual_seed(11)
    model = timm.create_model(name, num_classes=num_classes)
    save_for_hf(model, str(tmp_path), model_config=config, safe_serialization=True)
    return tmp_path


@pytest.mark.parametrize("arch", _ARCHS)
def test_stages_hold_every_parameter_once_and_end_with_the_head(arch: str) -> None:
    model = build_model(arch, 5)
    stages = find_stages(model)
    held = [id(parameter) for stage in stages for parameter in stage.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert len(stages) >= 5
    _, head = find_head(model)
    assert {id(p) for p in head.parameters()} <= {id(p) for p in stages[-1].parameters}
    freeze(model, len(stages) - 1)
    assert all(p.requires_grad for p in head.parameters())
    assert not next(iter(model.parameters())).requires_grad


@pytest.mark.parametrize("arch", _ARCHS)
def test_embedding_is_what_the_head_turns_into_logits(arch: str) -> None:
    torch.manual_seed(2)
    model = build_model(arch, 5).eval()
    embedding = register_embedding_hook(model, arch)
    with torch.inference_mode():
        logits_BK = model(torch.randn(2, 3, 224, 224))
        name, head = find_head(model)
        found = embedding()
        shaped = found if isinstance(head, torch.nn.Linear) else found[..., None, None]
        torch.testing.assert_close(head(shaped).flatten(1), logits_BK)
    assert name in dict(model.named_modules())


@pytest.mark.parametrize(
    ("arch", "size_px", "message"),
    [
        ("timm:vit_tiny_patch16_224", (250, 250), "drops the rest.*256 or 240"),
        ("timm:maxvit_rmlp_pico_rw_256", (240, 240), "divisible by window.*take 224 or 256"),
        ("timm:vgg11", (20, 20), "too small.*take 32"),
    ],
)
def test_input_that_it_cannot_take_is_refused_with_the_next_ones(
    arch: str, size_px: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_input_size(arch, size_px)


@pytest.mark.parametrize("arch", ["timm:vit_tiny_patch16_224", "timm:resnet18"])
def test_input_that_is_not_square_is_taken(arch: str) -> None:
    check_input_size(arch, (96, 320))
    logits_BK = build_model(arch, 3, in_channels=1, image_px=(96, 320))(torch.randn(2, 1, 96, 320))
    assert logits_BK.shape == (2, 3)


def test_default_size_is_that_of_timm() -> None:
    assert default_size("timm:inception_v3") == (299, 299)
    assert default_size("timm:maxvit_rmlp_pico_rw_256") == (256, 256)
    assert default_size("resnet18") == (224, 224)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm:resnet19", "timm:resnet18"),
        ("timm:resnet18.nobody_in1k", "timm:resnet18.a1_in1k"),
        ("timm:deit_tiny_distilled_patch16_224", "2 heads"),
    ],
)
def test_unknown_or_unfit_architecture_is_refused_by_name(arch: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_input_size(arch, 224)


@pytest.mark.parametrize(
    ("name", "channels", "image_px"),
    [("resnet18", 3, 224), ("resnet18", 1, 64), ("vit_tiny_patch16_224", 3, 96)],
)
def test_local_folder_gives_all_but_the_head_fitted_by_timm(
    tmp_path: Path, name: str, channels: int, image_px: int
) -> None:
    folder = _folder(tmp_path, name)
    arch = f"timm:{name}"
    torch.manual_seed(3)
    model = build_model(arch, 3, in_channels=channels, image_px=image_px)
    head_before = find_head(model)[1].weight.clone()
    loaded = load_weights(model, arch, str(folder), image_px=image_px)
    head_name, head = find_head(model)
    assert head.weight.equal(head_before)
    assert loaded.new_head == (f"{head_name}.weight", f"{head_name}.bias")
    donor = timm.create_model(
        name, pretrained=True, num_classes=4, in_chans=channels,
        pretrained_cfg_overlay={"file": str(folder / "model.safetensors"), "num_classes": 4},
        **({"img_size": image_px} if name.startswith("vit") else {}),
    )  # fmt: skip
    for stated, tensor in donor.state_dict().items():
        if not stated.startswith(head_name):
            assert model.state_dict()[stated].equal(tensor), stated


def test_normalization_comes_from_the_folder(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "resnet18")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    (folder / "config.json").write_text(json.dumps(config))
    found = normalization_of("timm:resnet18", str(folder), 3)
    assert found == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert normalization_of("timm:resnet18", "DEFAULT", 3) == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )


def test_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "resnet18")
    with pytest.raises(ConfigError, match="holds a 'resnet18', --arch is timm:resnet34"):
        load_weights(build_model("timm:resnet34", 3), "timm:resnet34", str(folder))
    # Said before a network is built with options that it does not have.
    with pytest.raises(ConfigError, match="holds a 'resnet18', --arch is timm:vit_tiny"):
        options_of("timm:vit_tiny_patch16_224", str(folder))


def test_folder_with_tensors_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "resnet18")
    state = timm.create_model("resnet26", num_classes=4).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="resnet18 cannot be had from"):
        load_weights(build_model("timm:resnet18", 3), "timm:resnet18", str(folder))


@pytest.mark.parametrize("arch", ["timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"])
def test_bundle_of_it_is_read_again(tmp_path: Path, arch: str) -> None:
    torch.manual_seed(4)
    model, spec = build_model(arch, 3).eval(), PreprocessSpec.for_image_px(224)
    x_BCHW = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    bundle = Bundle(
        arch=arch, class_names=ClassNames(("a", "b", "c")), decode_spec=DecodeSpec(),
        preprocess_spec=spec, state_dict=model.state_dict(), metrics={}, split_digest="",
        training={}, golden_x_BCHW=x_BCHW, golden_probs_BK=make_golden(model, x_BCHW, spec),
    )  # fmt: skip
    again = read_bundle(register(str(tmp_path), "m", bundle).uri).to_model()
    x_BCHW = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert again(x_BCHW).equal(model(x_BCHW))


def test_timm_is_not_imported_before_one_of_its_names_is_met() -> None:
    code = (
        "import sys; import imgcls.cli, imgcls.scoring.driver, imgcls.training.driver; "
        "from imgcls.model.architectures import build_model; build_model('resnet18', 3); "
        "assert 'timm' not in sys.modules, 'timm'; "
        "build_model('timm:resnet18', 3); assert 'timm' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_size_that_nobody_said_is_that_of_the_architecture() -> None:
    def size(arch: str, **flags: str) -> str:
        return with_own_size(TrainConfig("d", "r", "n", arch=arch, **flags)).image_px

    assert size("timm:maxvit_rmlp_pico_rw_256") == "256"
    assert size("timm:inception_v3") == "299"
    assert size("timm:inception_v3", image_px="96x320") == "96x320"
    assert size("resnet18") == "224"
