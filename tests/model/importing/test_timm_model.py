"""timm's folders come in: inputs, logits and labels equal timm's, or nothing is registered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from imgcls.config.models import ImportConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.image.crops import decode_one
from imgcls.image.preprocess import normalize
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.importing.driver import import_model
from imgcls.model.importing.prove import input_difference
from tests.image.fit.photographs import photographs
from tests.model.importing.makers import CLASS_NAMES, timm_folder

_SAMPLE = ["resnet18", "vit_tiny_patch16_224", "mobilenetv4_conv_small"]
# At least 40 architectures of 20 families, the smallest of each; three more are in the sample.
_CAMPAIGN = [
    "resnet26d", "resnext26ts", "legacy_seresnet18", "convnext_atto", "convnextv2_atto",
    "efficientnet_b0", "efficientnetv2_rw_t", "tf_efficientnet_b0",
    "mobilenetv2_050", "mobilenetv3_small_050", "mnasnet_small", "fbnetc_100", "ghostnet_050",
    "regnetx_002", "regnety_002", "densenet121", "dpn48b", "vgg11", "inception_v3", "xception41",
    "hrnet_w18_small", "dla34", "res2net50_14w_8s", "cspresnet50", "darknet53", "repvgg_a0",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224", "deit_tiny_patch16_224",
    "deit3_small_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "levit_256d", "pvt_v2_b0",
    "poolformer_s12", "mixer_s32_224", "gmlp_s16_224", "resmlp_12_224", "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224", "edgenext_xx_small", "mobilevit_xxs", "fastvit_t8", "hiera_tiny_224",
    "beit_base_patch16_224", "vit_small_patch32_224", "tinynet_e", "lcnet_050",
]  # fmt: skip


def _import(folder: Path, registry: Path, **flags: Any) -> tuple[Bundle, dict[str, Any]]:
    result = import_model(ImportConfig(str(folder), str(registry), "m", **flags))
    return read_bundle(result["uri"]), result


def _check_against_timm(name: str, tmp_path: Path, number: int) -> None:
    pictures = [Image.fromarray(one) for one in photographs(number)]
    folder = timm_folder(tmp_path / "folder", name, pictures)
    bundle, result = _import(folder, tmp_path / "registry")
    assert result["input_difference_of_255"] <= 1.01
    assert bundle.class_names.names == CLASS_NAMES
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_data_config({}, model=reference)
    transform = timm.data.create_transform(**data, is_training=False)
    theirs_BCHW = torch.stack([transform(picture) for picture in pictures])
    spec = bundle.preprocess_spec
    ours_BCHW = torch.from_numpy(
        np.stack([_decoded(picture, bundle, tmp_path) for picture in pictures])
    )
    assert input_difference(ours_BCHW, spec, theirs_BCHW) <= 1.01
    with torch.inference_mode():
        theirs_BK = reference(theirs_BCHW)
        ours_BK = bundle.to_model()(normalize(ours_BCHW, spec))
    assert len(set(theirs_BK.argmax(1).tolist())) >= 5, "one class wins everywhere: nothing proven"
    spread = float(theirs_BK.std())
    apart = float((ours_BK - theirs_BK).abs().max())
    assert apart <= 1e-3 * spread, f"{apart} of a spread of {spread}"
    top_B2 = theirs_BK.topk(2).values
    sure_B = top_B2[:, 0] - top_B2[:, 1] > 2 * apart
    assert ours_BK.argmax(1)[sure_B].equal(theirs_BK.argmax(1)[sure_B])


def _decoded(picture: Image.Image, bundle: Bundle, tmp_path: Path) -> np.ndarray:
    path = tmp_path / "picture.png"
    picture.save(path)
    return decode_one(path.read_bytes(), bundle.decode_spec, bundle.preprocess_spec)[0].x_CHW


@pytest.mark.parametrize("name", _SAMPLE)
def test_folder_gives_what_timm_gives(name: str, tmp_path: Path) -> None:
    _check_against_timm(name, tmp_path, number=10)


def test_what_timm_builds_otherwise_for_weights_is_taken_over(tmp_path: Path) -> None:
    small = {"input_size": (3, 64, 64)}
    folder = timm_folder(tmp_path / "folder", "fbnetc_100", **small)
    bundle, result = _import(folder, tmp_path / "registry")
    assert bundle.arch_options["bn_eps"] == 0.001
    assert result["input_difference_of_255"] < 0.01, "bilinear, by Pillow itself"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", _CAMPAIGN)
def test_campaign_of_forty_architectures_gives_what_timm_gives(name: str, tmp_path: Path) -> None:
    _check_against_timm(name, tmp_path, number=50)


@pytest.mark.parametrize(
    "planted", [{"resize_px": 224}, {"filter": "bilinear"}, {"mean": (0.5, 0.456, 0.406)}]
)
def test_planted_wrong_crop_filter_or_mean_is_refused(
    planted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from imgcls.model.importing import timm_model

    folder = timm_folder(tmp_path / "folder", "resnet18")
    right = timm_model.timm_spec
    monkeypatch.setattr(timm_model, "timm_spec", lambda data: replace(right(data), **planted))
    with pytest.raises(ConfigError, match=r"differs from the model's own preprocessing by"):
        _import(folder, tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "border", "crop_pct": 1.0},
        {"input_size": (3, 64, 96), "crop_pct": 0.9},
        {"interpolation": "lanczos", "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.3, 0.4)},
    ],
)
def test_every_way_that_timm_prepares_pictures_is_taken_over(
    given: dict[str, Any], tmp_path: Path
) -> None:
    small = {"input_size": (3, 64, 64)}
    folder = timm_folder(tmp_path / "folder", "resnet10t", **(small | given))
    _, result = _import(folder, tmp_path / "registry")
    assert result["input_difference_of_255"] <= 1.01


def test_card_and_bundle_say_where_it_came_from(tmp_path: Path) -> None:
    folder = timm_folder(
        tmp_path / "folder", "resnet10t", input_size=(3, 64, 64), license="cc-by-nc-4.0"
    )
    bundle, result = _import(folder, tmp_path / "registry")
    assert result["license"] == bundle.origin["license"] == "cc-by-nc-4.0"
    assert set(bundle.origin["files"]) == {"config.json", "model.safetensors"}
    assert not bundle.decode_spec.dct_scaling
    card = Path(result["uri"], "MODEL_CARD.md").read_text()
    assert "Licence of the weights: **cc-by-nc-4.0**" in card
    assert "timm 1." in card


def test_unknown_licence_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = timm_folder(tmp_path / "folder", "resnet10t", input_size=(3, 64, 64), license=None)
    _, result = _import(folder, tmp_path / "registry")
    assert result["license"] == "unknown"
    assert "licence of these weights is unknown" in caplog.text


def _edit(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_missing_or_too_few_class_names_are_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "folder", "resnet10t", input_size=(3, 64, 64))
    _edit(folder, lambda config: config.pop("label_names"))
    with pytest.raises(ConfigError, match="does not name its 8 classes: give --classes"):
        _import(folder, tmp_path / "registry")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    with pytest.raises(ConfigError, match="8 outputs, there are 2 class names"):
        _import(folder, tmp_path / "registry", classes=str(names))
    names.write_text("\n".join([*CLASS_NAMES[:7], "", ""]))
    with pytest.raises(ConfigError, match="8 outputs, there are 7"):
        _import(folder, tmp_path / "registry", classes=str(names))
    names.write_text(json.dumps([*CLASS_NAMES[:7], ""]))
    with pytest.raises(ConfigError, match="output 7 has no class name"):
        _import(folder, tmp_path / "registry", classes=str(names))
    names.write_text("\n".join(reversed(CLASS_NAMES)))
    bundle, _ = _import(folder, tmp_path / "registry", classes=str(names))
    assert bundle.class_names.names == tuple(reversed(CLASS_NAMES))


def test_names_that_say_nothing_to_a_person_are_put_in_words_or_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "folder", "resnet10t", input_size=(3, 64, 64))
    ids = ["n01440764", "n02012849", "n03126707", "n00000000", *CLASS_NAMES[4:]]
    _edit(folder, lambda config: config.update(label_names=ids))
    bundle, _ = _import(folder, tmp_path / "registry")
    assert bundle.class_names.names == (
        "tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)", "n00000000",
        *CLASS_NAMES[4:],
    )  # fmt: skip
    own = {"n01440764": "Schleie", "n00000000": "unheard of"}
    _edit(folder, lambda config: config.update(label_descriptions=own))
    bundle, _ = _import(folder, tmp_path / "registry")
    assert bundle.class_names.names[0] == "Schleie"
    assert bundle.class_names.names[3] == "unheard of"
    _edit(folder, lambda config: config.update(label_names=[f"LABEL_{n}" for n in range(8)]))
    with pytest.raises(ConfigError, match="does not name its 8 classes"):
        _import(folder, tmp_path / "registry")


def test_wrong_number_of_classes_is_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "folder", "resnet10t", input_size=(3, 64, 64))
    _edit(folder, lambda config: config.update(num_classes=5))
    with pytest.raises(ConfigError, match="does not fit timm:resnet10t with 5 classes"):
        _import(folder, tmp_path / "registry")


def test_flipped_byte_is_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "folder", "resnet10t", input_size=(3, 64, 64))
    bundle, result = _import(folder, tmp_path / "registry")
    assert bundle.digest == result["digest"]
    weights = Path(result["uri"], "model.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        read_bundle(result["uri"])


def test_headless_folder_is_a_backbone_that_score_refuses(tmp_path: Path) -> None:
    from imgcls.scoring.driver import resolve_model

    folder = timm_folder(tmp_path / "folder", "resnet10t", input_size=(3, 64, 64))
    bundle, result = _import(folder, tmp_path / "registry", backbone=True)
    assert bundle.is_backbone
    assert result["num_classes"] == 0
    with torch.inference_mode():
        assert bundle.to_model()(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    with pytest.raises(ConfigError, match=r"is a backbone: it gives no classes.*train --head"):
        resolve_model(result["uri"])


def test_name_of_a_hub_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say which commit"):
        _import(Path("hf-hub:timm/resnet18"), tmp_path / "registry")
