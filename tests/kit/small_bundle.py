"""A small real bundle: an untrained simple_cnn."""

import torch

from imgcls.data.class_names import ClassNames
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden

CLASS_NAMES = ClassNames(("bad", "good", "unsure"))


def make_small_bundle(seed: int = 0, image_px: int = 8) -> Bundle:
    """Build an untrained simple_cnn bundle of 3 classes at 8 px; another seed, other weights."""
    torch.manual_seed(seed)
    model = build_model("simple_cnn", len(CLASS_NAMES), image_px=image_px)
    spec = PreprocessSpec.for_image_px(image_px)
    x_BCHW = torch.randint(0, 256, (2, 3, image_px, image_px), dtype=torch.uint8)
    return Bundle(
        arch="simple_cnn",
        class_names=CLASS_NAMES,
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={
            "test": {
                "accuracy": 0.5,
                "num_images": 4,
                "intervals": {"accuracy": [0.25, 0.75]},
            }
        },
        split_digest="0" * 64,
        training={"seed": seed, "counts": {"train": {"bad": 2}}, "versions": {"torch": "x"}},
        golden_x_BCHW=x_BCHW,
        golden_probs_BK=make_golden(model, x_BCHW, spec),
    )
