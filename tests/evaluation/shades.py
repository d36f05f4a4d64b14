"""A model that tells dark images from light ones, and its data."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from imgcls.config.models import EvaluateConfig
from imgcls.data.class_names import ClassNames
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.png import encode_png
from imgcls.image.preprocess import normalize
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden
from imgcls.schema import PREDICTION_SCHEMA

IMAGE_PX = 8


NAMES = ("dark", "light")


def shade(light: bool, number: int) -> bytes:
    """A noisy grey image that is dark or light."""
    rng = np.random.default_rng(number)
    level = 180 if light else 20
    return encode_png((level + rng.integers(0, 50, (9, 11, 3))).astype(np.uint8))


def trained_bundle() -> Bundle:
    """A model that tells dark from light, by construction: its head reads the mean of the image."""
    torch.manual_seed(0)
    model = build_model("simple_cnn", 2, image_px=IMAGE_PX)
    spec = PreprocessSpec.for_image_px(IMAGE_PX)
    x_BCHW = torch.stack([torch.full((3, IMAGE_PX, IMAGE_PX), v) for v in (30, 200)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(30):
        noise = torch.randint(0, 30, (32, *x_BCHW.shape[1:]))
        light_B = torch.arange(32) % 2
        batch = normalize((x_BCHW[light_B] + noise).to(torch.uint8), spec)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), light_B).backward()
        optimizer.step()
    golden_x_BCHW = x_BCHW.to(torch.uint8)
    return Bundle(
        arch="simple_cnn",
        class_names=ClassNames(NAMES),
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="",
        training={"config": {"val_fraction": 0.2, "test_fraction": 0.4, "seed": 7}},
        golden_x_BCHW=golden_x_BCHW,
        golden_probs_BK=make_golden(model, golden_x_BCHW, spec),
    )


def run_evaluate(**flags: Any) -> dict[str, Any]:
    result = evaluate(EvaluateConfig(**flags, device="cpu", num_decoders=1))
    json.dumps(result, allow_nan=False)
    return result


NIGHT = datetime(2026, 3, 1, tzinfo=UTC)


def row_of(uri: str, class_name: str | None, **changes: Any) -> dict[str, Any]:
    ok = class_name is not None
    row: dict[str, Any] = dict.fromkeys(PREDICTION_SCHEMA.names)
    return row | {
        "uri": uri,
        "etag": "e",
        "size_bytes": 1,
        "last_modified": NIGHT,
        "status": "ok" if ok else "corrupt",
        "error": None if ok else "broken",
        "label": NAMES.index(class_name) if class_name else None,
        "class_name": class_name,
        "model": "m",
        "model_digest": "d",
        "spec_digest": "s",
        **changes,
    }
