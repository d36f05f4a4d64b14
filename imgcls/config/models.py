"""The flags of the commands on trained models."""

from dataclasses import dataclass
from typing import Literal

from imgcls.config.choices import Device, MatchBy, Precision
from imgcls.config.paths import Config, DataUri, OutputFile, OutputUri, Uri
from imgcls.config.source_options import ListingOptions


@dataclass(frozen=True)
class EvaluateConfig(ListingOptions):
    """Measure a model on labelled images, or published predictions against labels."""

    model: Uri = ""
    """Bundle URI or registry reference to run on DATA."""
    data: DataUri = ""
    """Labelled images, as for train."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """Which split of DATA to measure; auto takes all of it where it names no splits and is not what
    the model was trained on, else its test split.
    """
    predictions: Uri = ""
    """Output prefix of `score`; every published run is read, or the one of --run-id."""
    labels: DataUri = ""
    """Manifest with uri,label for the predictions."""
    match_by: MatchBy = "uri"
    """How a label finds its row: by the whole uri; by suffix, the most folders that both uris end
    with, where the images lie elsewhere; or by name, that of the file alone.
    """
    run_id: str = ""
    """Only this run's predictions."""
    slice_by: str = ""
    """What to report the metrics by, by a key as for train, such as the column scanner."""
    group: str = ""
    """What belongs together, a patient or a lot, by a key as for train: intervals are drawn over
    these. Default that of the training, or the column group of the labels.
    """
    label: str = ""
    """Where the class of an image is, by a key as for train; default that of the training, or the
    column label.
    """
    batch_size: int = 0
    """Images per forward pass; 0 takes what suits the device."""
    device: Device = "auto"
    """Where the model runs."""
    precision: Precision = "auto"
    """Arithmetic of the network, as for score; the result says which one it was."""
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""


@dataclass(frozen=True)
class CalibrateConfig(ListingOptions):
    """Fit the thresholds and the temperature of a model on labelled data of your own site."""

    model: Uri
    """Bundle URI or registry reference; its weights stay as they are."""
    data: DataUri
    """Labelled images, as for train, that the model was not trained on."""
    positive_class: str = ""
    """Class to find, or several joined by "|": each gets thresholds. Needs --target-recall or
    --target-specificity, or both. Without them only the temperature is fitted.
    """
    target_recall: float = 0.0
    """Share of the positive images that a threshold must find, such as 0.95; 0 for none."""
    target_specificity: float = 0.0
    """Share of the other images that a threshold must call negative; 0 for none."""
    registry: OutputUri = ""
    """Where the new version goes; default that of --model."""
    name: str = ""
    """Name of the model that gets the new version; default that of --model."""
    slice_by: str = ""
    """What to report the metrics by, by a key as for train, such as the column scanner."""
    group: str = ""
    """What belongs together, a patient or a lot, by a key as for train: intervals are drawn over
    these. Default that of the training, or the column group of DATA.
    """
    label: str = ""
    """Where the class of an image is, by a key as for train; default that of the training, or the
    column label.
    """
    batch_size: int = 0
    """Images per forward pass; 0 takes what suits the device."""
    device: Device = "auto"
    """Where the model runs."""
    precision: Precision = "auto"
    """Arithmetic of the network, as for score."""
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""


@dataclass(frozen=True)
class ExportConfig(Config):
    """Write a model as one ONNX file, checked against its golden outputs."""

    model: Uri
    """Bundle URI or registry reference."""
    output: OutputFile
    """The file to write, such as model.onnx; local or s3:// gs:// az://. One that is there is
    replaced.
    """


@dataclass(frozen=True)
class PromoteConfig(Config):
    """Point an alias at a registered version."""

    model: OutputUri
    """REGISTRY/NAME@v3, the version to promote (or REGISTRY/NAME@alias, to copy an alias)."""
    alias: str = "production"
    """The alias to move."""
    force: bool = False
    """Promote a version although its verdict is that it is not better than guessing."""
    previous: bool = False
    """Undo the last promotion of the alias that --model names (REGISTRY/NAME@production): it stands
    again for what it stood for before. Given again, it goes back one further.
    """


@dataclass(frozen=True)
class ModelsConfig(Config):
    """List the models of a registry: versions, aliases, numbers, and where each came from."""

    registry: Uri
    """Prefix that holds all models."""
    name: str = ""
    """Only this model."""
