"""The flags of `train`."""

from dataclasses import dataclass
from typing import Literal

from imgcls.config.values import Device


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
