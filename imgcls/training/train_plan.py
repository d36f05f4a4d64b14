"""What a training is, as plain values that travel to every rank.

In: a TrainConfig. Out: Recipe, how to train; TrainPlan, on what and where. Invariant: the same
recipe on the same samples gives the same weights; what is not in it (devices, workers, caches,
paths) decides only where and how fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from imgcls.config.choices import BestBy, Loss, Optimizer, Schedule, TrainPrecision
from imgcls.config.training import TrainConfig
from imgcls.data.class_names import ClassNames
from imgcls.data.dataset import Sample
from imgcls.image.fit.seen import NOTHING_SEEN, Seen
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.metrics.pooling import Pooling
from imgcls.storage.uri import join
from imgcls.training.augment.geometric import AugmentRecipe
from imgcls.training.augment.policies import Policy
from imgcls.training.units import LearntUnit, as_units

OUT_OF_FOLD: Final = "out of fold"  # the split of which the models of the folds were measured
RUN_RECORD: Final = "run.json"  # the flags of a run, in its folder


@dataclass(frozen=True, slots=True)
class Recipe:
    """The values that decide the weights; units and meaning are those of the flags.

    `global_batch_size` images make one optimizer step, over all ranks; a rank passes at most
    `batch_size` of its share through the model at a time and adds up the gradients. `pos_weight`
    has an entry per class where multi-label classes are weighed, else none.
    """

    preprocess: PreprocessSpec
    augment: AugmentRecipe
    epochs: int
    global_batch_size: int
    batch_size: int
    seed: int
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    freeze_stages: int = 0
    max_grad_norm: float = 0.0
    ema_decay: float = 0.0
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    policy: Policy = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    precision: TrainPrecision = "fp32"
    channels_last: bool = False
    best_by: BestBy = "loss"
    patience_epochs: int = 0
    multi_label: bool = False
    pos_weight: tuple[float, ...] = ()
    pooling: Pooling | Literal[""] = ""
    background: int | None = None


@dataclass(frozen=True, slots=True)
class Adopted:
    """What a bundle keeps of the model whose backbone or weights it began with."""

    arch_options: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """The network, of one that came as a file."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """Everything the ranks need to know."""

    config: TrainConfig
    recipe: Recipe
    decode_spec: DecodeSpec
    preprocess_spec: PreprocessSpec
    class_names: ClassNames
    splits: dict[str, list[Sample]]
    split_digest: str
    fingerprint: str
    split_moved: dict[str, str] = field(default_factory=dict)
    """Sides that no hash gives, see data/splits/draw.py."""
    image_versions: str = ""
    """Digest of the versions of all images, see fingerprint.py."""
    fold: str = ""
    """Which fold this is, such as "1 of 5"; "" for a training of its own."""
    seen: Seen = NOTHING_SEEN
    """What the model sees of some training images."""
    greys: dict[str, Any] = field(default_factory=dict)
    """What was seen of the images' greys, see planning/greys.py."""
    adopted: Adopted = field(default_factory=Adopted)
    """Of the backbone of `--head linear`, see planning/backbone.py; else of --weights."""

    @property
    def run_uri(self) -> str:
        """Folder of this run's checkpoints and logs."""
        return run_uri(self.config, self.fingerprint)

    @property
    def answered(self) -> Literal["images", "units"]:
        """What gets an answer, in a word."""
        return "units" if self.config.unit else "images"

    @property
    def samples(self) -> list[Sample]:
        """Samples of all splits, one split after the other."""
        return [sample for samples in self.splits.values() for sample in samples]

    def learnt(self, split: str) -> Sequence[Sample | LearntUnit]:
        """Return what gets an answer in a split: its images; with --unit, their units."""
        samples = self.splits[split]
        if not self.config.unit:
            return samples
        return as_units(samples, self.recipe.background, multi_label=self.recipe.multi_label)

    @property
    def shape_CHW(self) -> tuple[int, int, int]:
        """Shape of a preprocessed image."""
        return self.preprocess_spec.shape_CHW


def run_uri(config: TrainConfig, fingerprint: str) -> str:
    """Return the folder of a run's checkpoints and logs."""
    return join(work_dir(config), f"run-{fingerprint}")


def work_dir(config: TrainConfig) -> str:
    """Return the folder of all runs of a name."""
    return config.work_dir or join(config.registry, "_training", config.name)
