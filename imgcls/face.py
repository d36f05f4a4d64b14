"""imgcls from Python: what `import imgcls` offers, each name brought when it is first used.

In: plain values: URIs, paths, arrays. Out: what the commands give, as objects. Invariant: a command
and its function here are one: the same config, the same code, the same result; `predict` decodes,
prepares and decides as a night does, in this process.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgcls.closing import Closing
from imgcls.config.choices import Device, Precision
from imgcls.config.models import EvaluateConfig, ImportConfig
from imgcls.config.paths import canonical_uri
from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.drift.imported import import_model as _import_model
from imgcls.errors import ConfigError, DecodeError, ImgclsError
from imgcls.evaluation.evaluate import evaluate as _evaluate
from imgcls.image.crops import Crop, decode_one
from imgcls.image.decoders.pool import Decoded
from imgcls.image.fit.tiles import cut_tiles
from imgcls.image.formats.sniff import sniff
from imgcls.image.outcome import outcome_of
from imgcls.image.preprocess import preprocess
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.predictor import make_predictor
from imgcls.inference.stream import Predicted, predict_stream
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.bundle_files import refuse_backbone
from imgcls.model.registry import resolve
from imgcls.runs.latest import read_latest
from imgcls.scoring.driver import score as _score
from imgcls.storage.objects import read as _read
from imgcls.training.driver import train as _train

_MAX_TILES: Final = 1 << 14
# A path or URI, the bytes of a file, or pixels: uint8 [H,W] grey, or [H,W,3] RGB 0..255.
Image = str | Path | bytes | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one image, or of one frame of it.

    `status` and `error` are those of a published row: "ok", or why there is no answer; then all
    else is empty.
    """

    status: str
    error: str
    class_name: str
    """The class with the highest probability."""
    confidence: float
    """Its probability; nan where there is no answer."""
    probs: Mapping[str, float]
    """Of every class."""
    class_names: tuple[str, ...]
    """Of a multi-label model all classes that are present; else the one, as a row's decision has
    it.
    """
    image: int
    """Which of the images given it is of."""
    frame: int | None = None
    """Which frame; None for the only one."""


class Model(Closing):
    """A bundle, ready to predict in this process.

    Use it as a context manager, or call `close`. Thread-safe.
    """

    def __init__(
        self, bundle: Bundle, *, device: Device, precision: Precision, batch_size: int
    ) -> None:
        self.bundle = bundle
        """Everything that decides: specs, classes, thresholds, origin."""
        demand = demand_of_run(
            device=device,
            precision=precision,
            batch_size=batch_size,
            num_images=batch_size,
            num_cores=_num_cores(),
        )
        self._predictor = make_predictor(bundle, demand)
        self._rule = DecisionRule.of(bundle)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        return self.bundle.class_names.names

    def predict(self, images: Image | Iterable[Image]) -> list[Prediction]:
        """Predict images, in their order; a bad image is a Prediction with its status.

        Args:
            images: One or many: paths or URIs, bytes of files, or arrays.

        Raises:
            ConfigError: an array that is no picture.
            DeviceFailedError: the model does not run here any more, whatever the image.
        """
        many = [images] if isinstance(images, str | Path | bytes | np.ndarray) else list(images)
        found: list[Prediction] = []
        decoded = (self._decode(index, image) for index, image in enumerate(many))
        for done in predict_stream(decoded, self._predictor):
            found += self._answers(done, many)
        return sorted(found, key=lambda one: (one.image, one.frame or 0))

    def close(self) -> None:
        """Let go of its threads."""
        self._predictor.close()

    def _decode(self, index: int, image: Image) -> Decoded:
        if isinstance(image, np.ndarray):
            return Decoded(index, None, self._crops(image))
        try:
            data = image if isinstance(image, bytes) else _read(_uri(image))
        except ImgclsError as error:
            return Decoded(index, error, [])
        try:
            crops = decode_one(data, self.bundle.decode_spec, self.bundle.preprocess_spec)
        except DecodeError as error:
            return Decoded(index, error, [], sniff(data))
        return Decoded(index, None, crops)

    def _crops(self, image: npt.NDArray[np.uint8]) -> list[Crop]:
        """Prepare pixels as a decoded file is."""
        spec = self.bundle.preprocess_spec
        pixels = image[..., None] if image.ndim == 2 else image
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            raise ConfigError(
                f"an array of {image.dtype} {list(image.shape)} is no picture: give uint8 [H,W] or "
                "[H,W,3] RGB, 0..255; deeper greys as a file, which says its range"
            )
        if pixels.shape[2] != spec.channels:
            pixels = np.repeat(pixels, 3, axis=2) if spec.channels == 3 else _luma(pixels)
        pixels = pixels.astype(self.bundle.decode_spec.pixel_type, copy=False)
        height, width, _ = pixels.shape
        if spec.fit == "tiles":
            tiles = cut_tiles(pixels, spec, most=_MAX_TILES)
            return [Crop(x.copy(), width, height, None, place=place) for x, place in tiles]
        return [Crop(preprocess(pixels, spec), width, height, None)]

    def _answers(self, done: Decoded | Predicted, images: Sequence[Image]) -> Iterator[Prediction]:
        if isinstance(done, Decoded):
            assert done.error is not None, "what has no error has crops"
            image = images[done.index]
            uri = str(image) if isinstance(image, str | Path) else ""
            status, reason = outcome_of(done.error, uri, done.format)
            yield _failed(done.index, status, reason)
            return
        names, given = self.class_names, done.predictions
        labels_B = self._rule.labels(given.probs_BK, given.label_B)
        for row, sample in enumerate(done.samples):
            if row in given.error_by_row:
                yield _failed(
                    sample.index, "model_error", given.error_by_row[row], sample.crop.frame
                )
                continue
            yield Prediction(
                status="ok",
                error="",
                class_name=names[int(given.label_B[row])],
                confidence=float(given.confidence_B[row]),
                probs=dict(zip(names, map(float, given.probs_BK[row]), strict=True)),
                class_names=tuple(names[label] for label in labels_B[row]),
                image=sample.index,
                frame=sample.crop.frame,
            )


def load(
    model: str,
    *,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: int = 32,
) -> Model:
    """Load a model into this process.

    Args:
        model: REGISTRY/NAME@v3, REGISTRY/NAME@production, or a bundle's folder.
        device: auto, cpu or cuda.
        precision: As for `imgcls score`.
        batch_size: Images per forward pass.

    Raises:
        ConfigError: no such model, or a backbone.
        BundleError: it is damaged, or does not give its golden answers here.
    """
    bundle = read_bundle(resolve(model))
    refuse_backbone(bundle.is_backbone, model, "load")
    return Model(bundle, device=device, precision=precision, batch_size=batch_size)


def train(data: str, registry: str, name: str, **flags: Any) -> dict[str, Any]:  # noqa: ANN401  (flags)
    """Train a model: `imgcls train`, its flags by their names with underscores."""
    return _train(TrainConfig(data=data, registry=registry, name=name, **flags))


def score(source: str, model: str, output: str, **flags: Any) -> dict[str, Any]:  # noqa: ANN401  (flags)
    """Score a source and publish the rows: `imgcls score`, its flags by their names."""
    return _score(ScoreConfig(source=source, model=model, output=output, **flags))


def evaluate(**flags: Any) -> dict[str, Any]:  # noqa: ANN401  (flags)
    """Measure a model on labelled images, or published rows against labels: `imgcls evaluate`."""
    return _evaluate(EvaluateConfig(**flags))


def import_model(source: str, registry: str, name: str, **flags: Any) -> dict[str, Any]:  # noqa: ANN401  (flags)
    """Take over a model made elsewhere: `imgcls import`, its flags by their names."""
    return _import_model(ImportConfig(from_=source, registry=registry, name=name, **flags))


def read(output: str) -> pa.Table:
    """Return the latest row of every image (and frame) that was published under an output.

    Raises:
        SourceError: nothing is published there.
    """
    return read_latest(canonical_uri(output, str(Path.cwd())))


def _failed(index: int, status: str, reason: str, frame: int | None = None) -> Prediction:
    return Prediction(str(status), reason, "", float("nan"), {}, (), index, frame)


def _uri(image: str | Path) -> str:
    return canonical_uri(str(image), str(Path.cwd()))


def _luma(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return ITU-R 601 luma, as a file's colours become grey."""
    red, green, blue = (image_HW3[..., channel].astype(np.uint32) for channel in range(3))
    # Pillow's own integers.
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return grey.astype(np.uint8)[..., None]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


__all__: Sequence[str] = (
    "Model", "Prediction", "evaluate", "import_model", "load", "read", "score", "train",
)  # fmt: skip
