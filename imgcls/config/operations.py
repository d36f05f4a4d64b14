"""The flags of the commands about a machine or a cluster."""

from dataclasses import dataclass
from typing import Literal

from imgcls.config.values import Device, Executor, Precision


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
