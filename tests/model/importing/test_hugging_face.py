"""Folders of Hugging Face come in: inputs, logits and labels equal those of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from imgcls.config.models import ImportConfig
from imgcls.image.crops import decode_one
from imgcls.image.png import encode_png
from imgcls.image.preprocess import normalize
from imgcls.model.bundle import read_bundle
from imgcls.model.importing.driver import import_model
from imgcls.model.importing.prove import input_difference
from tests.model.importing.makers import CLASS_NAMES, pil_pictures

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64}
# Class, processor, what makes it small, the processor's sizes.
_CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViTForImageClassification": (
        "ViTImageProcessor", _SMALL | {"intermediate_size": 64},
        {"size": {"height": 64, "width": 64}},
    ),
    "ResNetForImageClassification": (
        "ConvNextImageProcessor",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 16},
        {"size": {"shortest_edge": 64}, "crop_pct": 0.875},
    ),
    "ConvNextForImageClassification": (
        "ConvNextImageProcessor", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        {"size": {"shortest_edge": 384}},
    ),
    "SwinForImageClassification": (
        "ViTImageProcessor",
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 64,
         "window_size": 4},
        {"size": {"height": 64, "width": 64}, "resample": 3},
    ),
    "Dinov2ForImageClassification": (
        "BitImageProcessor", _SMALL | {"patch_size": 16},
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "resample": 3},
    ),
    "DeiTForImageClassification": (
        "DeiTImageProcessor", _SMALL | {"intermediate_size": 64},
        {"size": {"height": 64, "width": 64}, "do_center_crop": False},
    ),
    "BeitForImageClassification": (
        "BeitImageProcessor", _SMALL | {"intermediate_size": 64, "patch_size": 16},
        {"size": {"height": 64, "width": 64}, "do_center_crop": False},
    ),
    "SiglipForImageClassification": (
        "SiglipImageProcessor",
        {"vision_config": _SMALL | {"intermediate_size": 64, "patch_size": 16}},
        {"size": {"height": 64, "width": 64}},
    ),
}  # fmt: skip
_BY_DEFAULT = ("ViTForImageClassification", "Dinov2ForImageClassification")


def _save(folder: Path, name: str) -> tuple[Any, Any]:
    kind, small, sizes = _CLASSES[name]
    torch.manual_seed(3)
    found = getattr(transformers, name)
    labels = dict(enumerate(CLASS_NAMES))
    config = found.config_class(
        **small, id2label=labels, label2id={one: key for key, one in labels.items()}
    )
    model, processor = found(config).eval(), getattr(transformers, kind)(**sizes)
    x_BCHW = torch.cat(
        [torch.from_numpy(np.asarray(processor(one, return_tensors="np")["pixel_values"]))
         for one in pil_pictures()]
    )  # fmt: skip
    head = [one for one in model.modules() if isinstance(one, torch.nn.Linear)][-1]
    with torch.no_grad():
        logits_BK = model(pixel_values=x_BCHW).logits
        scale_K = 3.0 / logits_BK.std(dim=0).clamp_min(1e-6)
        head.weight.mul_(scale_K[:, None])
        head.bias.sub_(logits_BK.mean(dim=0)).mul_(scale_K)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize(
    "name",
    [one if one in _BY_DEFAULT else pytest.param(one, marks=pytest.mark.slow) for one in _CLASSES],
)
def test_folder_gives_what_transformers_gives(name: str, tmp_path: Path) -> None:
    model, processor = _save(tmp_path / "folder", name)
    result = import_model(ImportConfig(str(tmp_path / "folder"), str(tmp_path / "registry"), "m"))
    bundle = read_bundle(result["uri"])
    assert bundle.class_names.names == CLASS_NAMES
    assert result["nights_need"] == "imgcls[transformers]"
    pictures: list[Image.Image] = [one.rotate(180) for one in pil_pictures()]
    theirs_BCHW = torch.cat(
        [torch.from_numpy(np.asarray(processor(one, return_tensors="np")["pixel_values"]))
         for one in pictures]
    )  # fmt: skip
    specs = bundle.decode_spec, bundle.preprocess_spec
    ours_BCHW = torch.from_numpy(
        np.stack([decode_one(encode_png(np.asarray(one)), *specs)[0].x_CHW for one in pictures])
    )
    assert input_difference(ours_BCHW, bundle.preprocess_spec, theirs_BCHW) <= 1.01
    with torch.inference_mode():
        theirs_BK = model(pixel_values=theirs_BCHW).logits
        ours_BK = bundle.to_model()(normalize(ours_BCHW, bundle.preprocess_spec))
        same_BK = bundle.to_model()(theirs_BCHW)
    assert len(set(theirs_BK.argmax(1).tolist())) >= 4
    torch.testing.assert_close(same_BK, theirs_BK, rtol=1e-4, atol=1e-4)
    # The processors resize by torchvision, within 1 of 255 of Pillow.
    apart = float((ours_BK - theirs_BK).abs().max())
    top_B2 = theirs_BK.topk(2).values
    sure_B = top_B2[:, 0] - top_B2[:, 1] > 2 * apart
    assert ours_BK.argmax(1)[sure_B].equal(theirs_BK.argmax(1)[sure_B])
    assert sure_B.float().mean() >= 0.5
