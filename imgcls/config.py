"""One frozen dataclass per command: its fields are the flags, their docstrings the help.

In: nothing. Out: the config classes. Invariant: a flag, its default, its unit and its help exist
here only; `cli.py` builds the parsers from this file, so `imgcls X` and `python -m jobs.X` cannot
differ. A field without a default is a required flag. No torch, no ray, no storage: `imgcls --help`
reads this file and little else.
"""

import re
from dataclasses import dataclass
from typing import Literal

from imgcls.errors import ConfigError

Executor = Literal["auto", "local", "ray"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, flag: str) -> None:
    """Refuse a name that cannot stand in a path on every store, in every reader."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{flag} {name!r}: use 1 to 100 letters, digits, dots, dashes or underscores, "
            "beginning with a letter or digit"
        )


@dataclass(frozen=True)
class TrainConfig:
    """Train a classifier on labelled images and register it as the next version of its name."""

    data: str
    """Folder tree (one folder per class, optionally under train/ val/ test/) or a manifest (.csv
    .parquet .jsonl) with uri,label[,split,group]. Local or s3:// gs:// az://.
    """
    registry: str
    """Prefix that holds all models; the bundle goes to REGISTRY/NAME/v<N>."""
    name: str
    """Name of the model in the registry."""
    arch: str = "resnet18"
    """simple_cnn, or any torchvision classification architecture by name."""
    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 32
    """Images per forward pass and worker; the global batch, that of one optimizer step, is this
    times max(1, num_workers) times accumulate.
    """
    accumulate: int = 1
    """Forward passes whose gradients are added up for one optimizer step."""
    num_workers: int = 0
    """0 trains in this process, N > 0 starts N Ray Train workers."""
    checkpoint_every: str = "10m"
    """How often to write a checkpoint: 500 for every 500 steps, 10m for every 10 minutes, or never.
    The same command goes on from the last one.
    """
    min_workers: int = 0
    """Elastic: go on with at least so many workers where nodes are lost or not there yet, with the
    same global batch; 0 always waits for all.
    """
    max_failures: int = 3
    """How often the Ray Train workers are started again after one of them died."""
    image_px: int = 224
    """Side of the square the model sees, in pixels."""
    color: Literal["rgb", "gray"] = "rgb"
    """rgb decodes to three channels, gray to one, which is enough for X-rays and many sensors."""
    gray_range: Literal["declared", "bits", "min_max"] = "declared"
    """Which values of a grey deeper than 8 bits become black and white: those that the file
    declares or its type allows; 0 to 2^--gray-bits - 1; or each image's own extremes."""
    gray_bits: int = 16
    """Significant bits of a deep grey, for --gray-range bits: 12 for a 12-bit camera."""
    frames: Literal["first", "middle", "all"] = "first"
    """Frames of a multi-frame file to score; training takes the first of them."""
    dicom_window: Literal[
        "file", "none", "lung", "soft_tissue", "bone", "brain", "mediastinum", "lung_soft_bone"
    ] = "file"
    """VOI window of DICOM images: the file's own, none, or a named CT window."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate, after warm-up."""
    weight_decay: float = 0.01
    """Weight decay, applied to weights of two dimensions or more."""
    warmup_fraction: float = 0.05
    """Share of all steps in which the learning rate rises from zero to its peak, lr."""
    schedule: Literal["cosine", "step", "onecycle"] = "cosine"
    """After the rise: a cosine to zero, or a tenth after 1/2 and again after 3/4 of the steps;
    onecycle rises for 30 percent of the steps and falls to zero, both as a cosine.
    """
    layer_decay: float = 1.0
    """Learning rate of each stage of the network as a share of that of the stage after it."""
    freeze_stages: int = 0
    """Stages of the network, from the image on, whose weights and batch statistics stay."""
    weights: str = ""
    """Weights to start from: a name of torchvision's, such as DEFAULT, or a .safetensors or .pt
    file; the last layer is always new.
    """
    max_grad_norm: float = 0.0
    """Longest gradient vector of a step; longer ones are scaled down. 0 for no limit."""
    ema_decay: float = 0.0
    """Keep a moving average of the weights with this decay, such as 0.999, and validate and
    register that; 0 for none.
    """
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs forward and backward passes in bfloat16 where that is safe; weights stay fp32."""
    channels_last: bool = True
    """Lay images out pixel by pixel, not channel by channel: faster convolutions, mostly."""
    compile: bool = False
    """Compile the model with torch.compile: half a minute at the start, faster steps after it."""
    val_fraction: float = 0.15
    """Share of each class held out for validation, where DATA names no split."""
    test_fraction: float = 0.15
    """Share of each class held out for testing, where DATA names no split."""
    max_bad_fraction: float = 0.01
    """Share of a split's images that may give no pixels; each is named, none is replaced."""
    augment: Literal["none", "light", "standard", "strong"] = "light"
    """Random changes of training images: light (small turns, shifts, zoom, exposure) to strong. No
    preset flips: left and right differ in an X-ray; see --flip.
    """
    policy: Literal["none", "randaugment", "trivialaugment", "augmix"] = "none"
    """A published augmentation policy, on top of --augment; they invert and posterise: for
    photographs.
    """
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    """Also mirror half of the training images."""
    mixup: float = 0.0
    """Mix pairs of images and their labels, by shares from Beta(mixup, mixup); 0 for none."""
    cutmix: float = 0.0
    """Paste a part of one image into another, by areas from Beta(cutmix, cutmix); 0 for none."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """focal lets images that are right already weigh less."""
    balance: Literal["none", "weights", "sampling"] = "none"
    """For classes of unlike size: weigh images by class in the loss, or show each class equally
    often.
    """
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes."""
    best_by: Literal["loss", "accuracy"] = "loss"
    """Which validation number decides the epoch whose weights are kept."""
    patience_epochs: int = 0
    """Stop after so many epochs without a better validation; 0 trains all epochs."""
    seed: int = 0
    """Seed of initial weights, order of samples and augmentation."""
    work_dir: str = ""
    """Where checkpoints and logs go; default REGISTRY/_training/NAME."""
    device: Device = "auto"
    """Where the model runs; auto takes a CUDA device where there is one."""
    cache: Literal["auto", "none", "ram", "disk"] = "auto"
    """Where decoded images stay for the next epoch; auto takes ram where all of them fit into a
    quarter of the free memory, else none.
    """
    num_decoders: int = 0
    """Decoder processes per worker; 0 takes the cores this worker owns."""


@dataclass(frozen=True)
class ScoreConfig:
    """Score every image of a source with a model and publish the predictions as Parquet."""

    source: str
    """Prefix, glob (* within a folder, ** across folders), or manifest (.csv .parquet .jsonl) with
    a column uri.
    """
    model: str
    """Bundle URI, or REGISTRY/NAME@v3, or REGISTRY/NAME@production."""
    output: str
    """Prefix for runs and published predictions."""
    run_id: str = ""
    """Name of the run; the same id again resumes it. Default: a new one from date and time."""
    date: str = ""
    """Partition date=YYYY-MM-DD to publish under; default today in UTC."""
    executor: Executor = "auto"
    """local runs in this process, ray on a cluster; auto takes ray inside a Ray job or when
    RAY_ADDRESS is set.
    """
    top_k: int = 5
    """Classes per row in topk_label and topk_prob; at most the number of classes."""
    batch_size: int = 32
    """Images per forward pass."""
    shard_size: int = 0
    """Images per shard (64 to 8192), the unit of retry, resume and commit; 0 derives it from the
    number of images.
    """
    num_actors: int = 0
    """Ray actors; 0 derives one per GPU, or from the cluster's CPUs."""
    cpus_per_actor: int = 0
    """CPUs of one actor; 0 derives it from the cluster."""
    device: Device = "auto"
    """Where the model runs; auto takes a CUDA device where there is one."""
    precision: Precision = "auto"
    """Arithmetic of the model; auto takes less than fp32 where that is faster and the bundle's
    golden images keep their label and, within 0.01, their probabilities; others are refused
    without that.
    """
    num_decoders: int = 0
    """Decoder processes per actor; 0 takes the cores it owns."""
    write_probs: bool = False
    """Add the column probs: the probability of every class."""
    write_embedding: bool = False
    """Add the column embedding: the input of the last layer."""
    max_failed_fraction: float = 0.05
    """Share of images that may fail to give a prediction before the run ends with exit code 3,
    judged after 100.
    """


@dataclass(frozen=True)
class NightlyConfig(ScoreConfig):
    """Score what is new or changed since the last published run, and verify it."""

    retry_failed: bool = False
    """Score again what was published with a status other than ok."""


@dataclass(frozen=True)
class PlanConfig:
    """Show what a nightly run would score: new, changed and failed images, bytes and shards."""

    source: str
    """Prefix, glob or manifest, as for score."""
    model: str
    """Bundle URI or registry reference, as for score."""
    output: str
    """Prefix with the published predictions to compare with."""
    retry_failed: bool = False
    """Count what failed before as to be scored."""
    shard_size: int = 0
    """Images per shard, as for score."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model on labelled images, or published predictions against labels."""

    model: str = ""
    """Bundle URI or registry reference to run on DATA."""
    data: str = ""
    """Labelled images, as for train."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which split of DATA to measure."""
    predictions: str = ""
    """Output prefix of `score`; every published run is read, or the one of --run-id."""
    labels: str = ""
    """Manifest with uri,label for the predictions."""
    run_id: str = ""
    """Only this run's predictions."""
    slice_by: str = ""
    """Column of the manifest to report the metrics by, such as scanner."""
    batch_size: int = 32
    """Images per forward pass."""
    device: Device = "auto"
    """Where the model runs."""
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""


@dataclass(frozen=True)
class PromoteConfig:
    """Point an alias at a registered version."""

    model: str
    """REGISTRY/NAME@v3, the version to promote (or REGISTRY/NAME@alias, to copy an alias)."""
    alias: str = "production"
    """The alias to move."""


@dataclass(frozen=True)
class VerifyConfig:
    """Read plan, commits and parts of published runs again and print any difference."""

    output: str
    """Output prefix of `score`."""
    run_id: str = ""
    """Only this run; default every run."""


@dataclass(frozen=True)
class GcConfig:
    """Remove what no run needs any more; never anything that a manifest names."""

    output: str
    """Output prefix of `score`."""
    older_than: str = "24h"
    """Only what was last written longer ago: a number and s, m, h or d."""
    abandoned: bool = False
    """Remove also runs that were never published."""
    dry_run: bool = False
    """Only say what would be removed."""


@dataclass(frozen=True)
class RollbackConfig:
    """Take a published run back: neither readers nor the next plan see it any more."""

    output: str
    """Output prefix of `score`."""
    run_id: str
    """The run to take back."""


@dataclass(frozen=True)
class DoctorConfig:
    """Show what this machine can decode, on what it computes, and the versions behind each."""


@dataclass(frozen=True)
class DemoConfig:
    """Train on real handwritten digits, score a bucket of them, and explain what happened."""

    output: str = "imgcls-demo"
    """Folder for the demo's images, registry and predictions; made anew, refused when it holds
    anything else.
    """
    s3: bool = False
    """Keep everything in an embedded S3 server (SeaweedFS) instead of a folder."""
    executor: Executor = "local"
    """How to score: local, or ray."""


@dataclass(frozen=True)
class BenchConfig:
    """Measure decoding, the model and both together on this machine, beside their own limits."""

    what: Literal["score", "decode", "predict"] = "score"
    """decode: decoder processes alone; predict: the model alone; score: both, and a whole run."""
    source: str = ""
    """Folder or prefix of images to take; default makes photograph-like JPEGs of its own."""
    model: str = ""
    """Bundle URI or registry reference, as for score; default an untrained --arch."""
    arch: str = "resnet18"
    """Architecture of the untrained model; its golden check passes, so that speed is measured."""
    image_px: int = 224
    """Image side of the untrained model."""
    num_images: int = 512
    """Images per measurement; those of the source are repeated until there are so many."""
    repeats: int = 3
    """Measurements of each side, taken in turn; the table shows medians."""
    batch_size: int = 32
    """Images per forward pass."""
    device: Device = "auto"
    """Where the model runs, as for score."""
    precision: Precision = "auto"
    """Arithmetic of the model, as for score."""
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""
