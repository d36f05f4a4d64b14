"""How to train, as plain values.

In: a TrainConfig's numbers. Out: Recipe. Invariant: the same recipe on the same samples gives the
same weights; what is not in it (devices, workers, caches, paths) decides only where and how fast.
"""

from dataclasses import dataclass
from typing import Literal

from imgcls.image.spec import PreprocessSpec
from imgcls.training.augment.geometric import AugmentRecipe
from imgcls.training.augment.policies import Policy
from imgcls.training.optim.losses import LossName
from imgcls.training.optim.optimizer import OptimizerName, ScheduleName

BestBy = Literal["loss", "accuracy"]
Precision = Literal["fp32", "bf16"]


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
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3
    schedule: ScheduleName = "cosine"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    freeze_stages: int = 0
    max_grad_norm: float = 0.0
    ema_decay: float = 0.0
    loss: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    policy: Policy = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    precision: Precision = "fp32"
    channels_last: bool = False
    best_by: BestBy = "loss"
    patience_epochs: int = 0
    multi_label: bool = False
    pos_weight: tuple[float, ...] = ()
