"""Fourteen ways in which pictures change, each observed once, and nights drawn of what was seen."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageFilter

from imgcls.data.class_names import ClassNames
from imgcls.data.dataset import Sample
from imgcls.drift.observed import CARRIED, Observed
from imgcls.drift.reference import observe as see
from imgcls.evaluation.embed_samples import embed_samples
from imgcls.image.png import encode_png
from imgcls.model.architectures import find_head
from imgcls.model.bundle import Bundle, make_golden, write_bundle
from imgcls.storage.bulk_get import GetRequest
from imgcls.training.head.solver import fit_linear_head
from tests.scoring.tiny import make_bundle

Grey = npt.NDArray[np.uint8]
NUM_CAMERAS = 8


def part(number: int, *, is_bar: bool | None = None) -> Grey:
    """A round part, or in three of ten cases a bar, on a grey belt: uint8 [72,96]."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:72, :96]
    x0, y0 = rng.normal(48, 5), rng.normal(36, 4)
    bar = rng.random() < 0.3 if is_bar is None else is_bar
    if bar:
        inside = (np.abs(x - x0) < 34) & (np.abs(y - y0) < 7)
    else:
        inside = ((x - x0) / 24) ** 2 + ((y - y0) / 20) ** 2 < 1
    grey = 90 + 9 * rng.normal() + inside * (70 + 9 * rng.normal()) + rng.normal(0, 7, x.shape)
    return np.clip(grey, 0, 255).astype(np.uint8)


def _blurred(grey: Grey) -> Grey:
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(1.5)))


def _as_jpeg(grey: Grey) -> Grey:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="JPEG", quality=20)
    return np.asarray(Image.open(buffer))


def _gamma(grey: Grey) -> Grey:
    return (255 * (grey / 255) ** 1.5).astype(np.uint8)


def _window(grey: Grey) -> Grey:
    return np.clip((grey.astype(float) - 100) * 2.5, 0, 255).astype(np.uint8)


def _scanner(grey: Grey) -> Grey:
    return np.clip(grey.astype(float) * 1.08 + 14, 0, 255).astype(np.uint8)


def _stripes(grey: Grey) -> Grey:
    stripes = (np.mgrid[: grey.shape[0], : grey.shape[1]].sum(axis=0) // 6 % 2) * 70
    return np.clip(grey * 0.5 + 45 + stripes, 0, 255).astype(np.uint8)


def _darker(grey: Grey) -> Grey:
    return np.clip(grey.astype(int) - 41, 0, 255).astype(np.uint8)


LOOKS = ("contrast", "sharpness", "levels")
# What is done to the pixels, and the axes that name it rightly.
PIXELS: dict[str, tuple[Callable[[Grey], Grey], set[str]]] = {
    "inverted": (lambda grey: 255 - grey, {"brightness"}),
    "gamma": (_gamma, {"brightness"}),
    "wrong window": (_window, {"contrast", "brightness", "sharpness", "levels"}),
    "blur": (_blurred, {"sharpness"}),
    "jpeg quality 20": (_as_jpeg, {"sharpness", "levels"}),
    "a new class": (_stripes, {"unfamiliar", "embedding", "class", "confidence", *LOOKS}),
    "another scanner": (_scanner, {"brightness", "scanner", "contrast", "sharpness"}),
    "crop": (lambda grey: grey[12:60, 16:80].copy(), {"size"}),
    "rotation": (lambda grey: np.rot90(grey).copy(), {"shape"}),
    "empty frames": (lambda grey: np.full_like(grey, 90), {"empty", *LOOKS}),
    "one camera of eight": (_darker, {"brightness"}),
}  # fmt: skip
NAMES = (*PIXELS, "another class mix", "12 to 16 bits", "duplicates")
AXES = {name: axes for name, (_, axes) in PIXELS.items()} | {
    "another class mix": {"class"},
    "12 to 16 bits": {"bits"},
    "duplicates": {"repeated"},
}


def draw_file(change: str, number: int) -> bytes:
    """Return the PNG of a picture, changed or ("") as ever."""
    if change == "another class mix":
        return _rgb(part(number, is_bar=True))
    if change == "duplicates":
        return _rgb(part(7_000_000 + number % 5))
    if change == "12 to 16 bits":
        buffer = io.BytesIO()
        Image.fromarray(part(number).astype(np.uint16) << 8).save(buffer, format="PNG")
        return buffer.getvalue()
    grey = part(number)
    return _rgb(PIXELS[change][0](grey) if change else grey)


def _rgb(grey: Grey) -> bytes:
    return encode_png(np.repeat(grey[:, :, None], 3, axis=2))


def knowing_bundle(folder: Path, count: int = 200) -> Bundle:
    """A small network that tells bars from round parts, and nothing else: its head was fitted."""
    bundle = make_bundle(num_classes=2)
    write_bundle(bundle, str(folder / "model"))
    is_bar_N = np.arange(count) % 2 == 1
    samples = []
    for number, is_bar in enumerate(is_bar_N):
        path = folder / f"{number:05d}.png"
        path.write_bytes(_rgb(part(9_000_000 + number, is_bar=bool(is_bar))))
        samples.append(Sample(str(path), (int(is_bar),), "", "train", path.stem, path.stem, 1.0))
    head = fit_linear_head(
        embed_samples(str(folder / "model"), samples, 1),
        np.eye(2, dtype=bool)[is_bar_N.astype(int)],
        weight_N=np.ones(count, np.float32),
        group_N=np.arange(count),
        multi_label=False,
        seed=0,
    )
    model = bundle.to_model()
    _, last = find_head(model)
    last.weight.data, last.bias.data = map(torch.from_numpy, (head.weight_KE, head.bias_K))
    return replace(
        bundle,
        class_names=ClassNames(("round", "bar")),
        state_dict=model.state_dict(),
        golden_probs_BK=make_golden(model, bundle.golden_x_BCHW, bundle.preprocess_spec),
    )


def observe(bundle: Bundle, folder: Path, change: str, count: int, start: int) -> Observed:
    """Write pictures, and see them as a night does."""
    there = folder / (change or "as ever").replace(" ", "-")
    there.mkdir(parents=True)
    requests = []
    for number in range(count):
        path = there / f"{number:05d}.png"
        path.write_bytes(draw_file(change, start + number))
        requests.append(GetRequest(number, str(path)))
    columns = {
        "camera": [str(number % NUM_CAMERAS) for number in range(count)],
        "scanner": ["B" if change == "another scanner" else "A"] * count,
    }
    return see(bundle, requests, 1, "cpu", 1, columns)


def night_of(
    ever: Observed, changed: Observed | None, share: float, count: int, seed: int
) -> Observed:
    """Draw a night: `count` images, a share of them changed (of one camera: all of its images)."""
    rng = np.random.default_rng(seed)
    num_changed = round(share * count) if changed is not None else 0
    tables = [ever.table.take(rng.choice(len(ever.table), count - num_changed, replace=False))]
    if changed is not None and num_changed:
        drawn = rng.choice(
            len(changed.table), num_changed, replace=num_changed > len(changed.table)
        )
        tables.append(changed.table.take(drawn))
    table = pa.concat_tables(tables)
    return Observed(table, count)


def of_camera(one: Observed, camera: str, *, is_it: bool = True) -> Observed:
    """Return the images of one camera, or of all others."""
    has = one.texts(f"{CARRIED}camera") == camera
    return one.where(has if is_it else ~has)
