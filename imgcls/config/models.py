"""The flags of the commands on trained models."""

from dataclasses import dataclass, field
from typing import Literal

from imgcls.config.choices import Device, Heatmaps, MatchBy, Precision, UnitPooling
from imgcls.config.paths import Config, DataUri, ImportUri, OutputFile, OutputUri, SourceUri, Uri
from imgcls.config.source_options import ListingOptions


@dataclass(frozen=True)
class MeasureOptions(ListingOptions):
    """How a model is run on labelled images, and by what its numbers are told apart.

    Keywords only, so that required flags may follow them.
    """

    slice_by: str = field(default="", kw_only=True)
    """What to report the metrics by, by a key as for train, such as the column scanner."""
    group: str = field(default="", kw_only=True)
    """What belongs together, a patient or a lot, by a key as for train: intervals are drawn over
    these. Default that of the training, or the column group of the labels.
    """
    label: str = field(default="", kw_only=True)
    """Where the class of an image is, by a key as for train; default that of the training, or the
    column label.
    """
    unit: str = field(default="", kw_only=True)
    """What one answer is for, a study or a part, by a key as for score: also measured, or with
    calibrate also given thresholds, per unit. A unit shows what some image of it shows. Of
    --predictions, units that were scored are measured by themselves; name their key where runs have
    several.
    """
    unit_rule: UnitPooling = field(default="auto", kw_only=True)
    """How the answers of its images become that of a unit, as for score."""
    batch_size: int = field(default=0, kw_only=True)
    """Images per forward pass; 0 takes what suits the device."""
    device: Device = field(default="auto", kw_only=True)
    """Where the model runs."""
    precision: Precision = field(default="auto", kw_only=True)
    """Arithmetic of the network, as for score; the result says which one it was."""
    num_decoders: int = field(default=0, kw_only=True)
    """Decoder processes; 0 takes the cores of this machine."""


@dataclass(frozen=True)
class EvaluateConfig(MeasureOptions):
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
    over: Literal["none", "day", "week", "month"] = "none"
    """Measure PREDICTIONS period by period, by the labels that came back from queues (see `imgcls
    labels`): sensitivity and specificity on all images of a period, whatever the queue picked.
    """
    positive_class: str = ""
    """For --over: the class to find; default the one that the model's thresholds are for."""


@dataclass(frozen=True)
class DiffConfig(MeasureOptions):
    """Compare two models, or two runs: which answers change, and who is right more often."""

    first: str = field(metadata={"positional": True})
    """A published run of OUTPUT by its id (or of another output, as OUTPUT/date=D/run=R); or a
    model, as REGISTRY/NAME@production, to be run now.
    """
    second: str = field(metadata={"positional": True})
    """What may take its place: a run or a model likewise."""
    output: OutputUri
    """Output prefix of `score` that has the runs, or that gets them."""
    source: SourceUri = ""
    """Of two models: what to score with both, as for score; default DATA."""
    data: DataUri = ""
    """Labelled images, as for train, for the paired test."""
    heatmaps: Heatmaps = "all"
    """Of two models: which images get heatmaps, as for score; all has both of every image that gets
    another answer.
    """


@dataclass(frozen=True)
class CalibrateConfig(MeasureOptions):
    """Fit the thresholds of a model on labelled images of your own site: the next version."""

    model: Uri
    """Bundle URI or registry reference; its weights stay as they are."""
    data: DataUri
    """Labelled images, as for train, that the model was not trained on."""
    positive_class: str = ""
    """Class to find, or several joined by "|": each gets thresholds. Needs --target-recall or
    --target-specificity, or both; but with --unit it may stand alone, to say that the one class
    not named is what nothing shows. Without them only the temperature is fitted.
    """
    target_recall: float = 0.0
    """Share of the positive images that a threshold must find, such as 0.95; 0 for none."""
    target_specificity: float = 0.0
    """Share of the other images that a threshold must call negative; 0 for none."""
    registry: OutputUri = ""
    """Where the new version goes; default that of --model."""
    name: str = ""
    """Name of the model that gets the new version; default that of --model."""

    @property
    def is_pooled(self) -> bool:
        """Whether what gets an answer has several images."""
        return bool(self.unit)


@dataclass(frozen=True)
class ExportConfig(Config):
    """Write a model as one ONNX file, and check that it gives the same answers."""

    model: Uri
    """Bundle URI or registry reference."""
    output: OutputFile
    """The file to write, such as model.onnx; local or s3:// gs:// az://. One that is there is
    replaced.
    """


@dataclass(frozen=True)
class PromoteConfig(Config):
    """Let a name such as production stand for a version of a model: nights then use that."""

    model: OutputUri
    """REGISTRY/NAME@v3, the version to promote (or REGISTRY/NAME@alias, to copy an alias)."""
    alias: str = "production"
    """The alias to move."""
    force: bool = False
    """Promote a version although its verdict is that it is not better than guessing."""
    require_diff: Uri = ""
    """Promote only if this comparison of the version that --alias stands for with the new one was
    made: the file that `imgcls diff` names, diff-....json.
    """
    max_flips: float = 1.0
    """With --require-diff: the share of images, 0 to 1, that may get another answer."""
    not_worse: bool = False
    """With --require-diff: refuse a version that is right less often on labelled images."""
    previous: bool = False
    """Undo the last promotion of the alias that --model names (REGISTRY/NAME@production): it stands
    again for what it stood for before. Given again, it goes back one further.
    """


@dataclass(frozen=True)
class ImportConfig(Config):
    """Take over a model made elsewhere, proven beside its own library."""

    from_: ImportUri
    """A folder of timm or Hugging Face (config.json and model.safetensors), an .onnx file, or a
    .safetensors or .pt file of weights; or, with a network, timm:NAME or hf-hub:OWNER/NAME@COMMIT.
    """
    registry: OutputUri
    """Prefix that holds all models; the bundle goes to REGISTRY/NAME/v<N>."""
    name: str
    """Name of the model in the registry."""
    classes: Uri = ""
    """File with the names of the classes in the order of the outputs: a name per line, or JSON."""
    arch: str = ""
    """Architecture of a file of weights: one of torchvision's names, or timm:NAME."""
    backbone: bool = False
    """It has no classes, or they shall be left away: a backbone for `train --head`."""
    license: str = ""
    """Licence of the weights, where no file of the model says it."""
    check: Uri = ""
    """A few labelled images, as for train: the model must name them better than by always saying
    the most frequent class, or it is not imported.
    """
    max_check: int = 200
    """Images of --check at most, drawn by their names."""
    preprocess: Uri = ""
    """File that says how pictures are prepared: preprocessor_config.json of Hugging Face, timm's
    config.json, or a preprocess spec. Of an ONNX file or weights; folders bring their own.
    """
    image_px: str = ""
    """Size of the input in pixels where the model leaves it open: 224, or 400x1600 for height by
    width.
    """
    fit: Literal["", "stretch", "crop", "pad"] = ""
    """stretch squeezes the picture into the input, crop cuts its middle, pad keeps it whole."""
    resize_px: int = 0
    """Short side before a crop, such as 256; of stretch both sides. 0: no more than the input."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """Filter of the resize."""
    input_range: str = ""
    """What black and white become before mean and std: 0:1, 0:255, -1:1, -1024:1024."""
    mean: str = ""
    """Mean per channel in that range, R,G,B: 0.485,0.456,0.406; 0 for none."""
    std: str = ""
    """Standard deviation per channel, R,G,B; 1 for none."""
    color: Literal["rgb", "gray"] = "rgb"
    """What a file of weights takes: three channels, or one; an ONNX file says it itself."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels that an ONNX network takes; --mean and --std are always R,G,B."""
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    """Where an ONNX network has its channels; auto reads it from the file."""
    outputs: Literal["auto", "logits", "probabilities", "sigmoids"] = "auto"
    """What an ONNX network gives; auto takes its last operation for it."""
    output_name: str = ""
    """Which output of an ONNX network holds the classes, where it has several."""
    multi_label: bool = False
    """Any number of classes per image, each with a probability of its own; where the model
    does not say so itself."""


@dataclass(frozen=True)
class ModelsConfig(Config):
    """List the models of a registry: versions, aliases, numbers, and where each came from."""

    registry: Uri
    """Prefix that holds all models."""
    name: str = ""
    """Only this model."""
