"""The flags of `train`."""

from dataclasses import dataclass
from typing import Literal

from imgcls.config.choices import (
    BestBy,
    Device,
    Loss,
    Optimizer,
    Schedule,
    TrainPrecision,
    WorkerRange,
    parse_image_px,
)
from imgcls.config.paths import DataUri, OutputUri, TrackingUri, Uri, WeightsUri
from imgcls.config.source_options import ListingOptions


@dataclass(frozen=True)
class TrainConfig(ListingOptions):
    """Train a model on labelled images: the next version of its name."""

    data: DataUri
    """Folder tree (one folder per class, optionally under train/ val/ test/) or a manifest (.csv
    .tsv .txt .json .jsonl .ndjson, also .gz, or .parquet) with uri,label[,split,group]; or one
    container, or a folder of them (.tar, also compressed, .zip, .parquet with images), with labels
    in folders inside, beside the images (a.cls a.json a.txt) or in a column label. Local or s3://
    gs:// az://.
    """
    registry: OutputUri
    """Prefix that holds all models; the bundle goes to REGISTRY/NAME/v<N>."""
    name: str
    """Name of the model in the registry."""
    arch: str = "resnet18"
    """simple_cnn, spot_cnn (for defects of a few pixels, from few examples), any torchvision
    classification architecture by name, or timm:NAME for one of timm's.
    """
    head: Literal["full", "linear"] = "full"
    """What is trained: full trains the whole network; linear keeps a trained backbone as it is and
    fits its last layer in seconds, for few images or little time. Needs --backbone or --weights.
    """
    backbone: Uri = ""
    """Model whose backbone, input size and decoding --head linear takes over: a bundle, as
    REGISTRY/NAME@v1. Its classes may be others.
    """
    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 32
    """Images per forward pass and worker; the global batch, that of one optimizer step, is this
    times the most workers (at least 1) times accumulate.
    """
    accumulate: int = 1
    """Forward passes whose gradients are added up for one optimizer step."""
    num_workers: str = "0"
    """0 trains in this process; 4 starts four Ray Train workers; 1:4 is elastic: it continues with
    one to four as nodes come and go, with the same global batch.
    """
    checkpoint_every: str = "10m"
    """How often to write a checkpoint: 500 for every 500 steps, 10m for every 10 minutes, or never.
    The same command continues from the last one.
    """
    keep_checkpoints: int = 2
    """Checkpoints that stay, the last ones, until the model is registered; each holds the best
    weights so far, too. One that is damaged is passed over for the one before.
    """
    max_failures: int = 3
    """How often the Ray Train workers are started again after one of them died. Nodes that were
    taken away after a notice (preemption) are not counted.
    """
    image_px: str = "auto"
    """Size of the model's input in pixels: 224 for a square, 400x1600 for height x width; of --fit
    tiles that of a tile. auto: what one of timm's architectures was made for, else 224."""
    fit: Literal["auto", "pad", "stretch", "crop", "tiles"] = "auto"
    """How a picture becomes the model's input. pad: all of it, its shape kept, the rest filled;
    stretch: all of it, squeezed into the shape of the input; crop: its centre, the edges cut off;
    tiles: parts that cover it in its full size, for what is small in large pictures, and one answer
    per picture. auto is pad; a training that an earlier imgcls began continues as it began.
    """
    overlap: int = 32
    """Pixels that neighbouring tiles share at least: as large as what is looked for."""
    pooling: Literal["auto", "max", "mean", "top3_mean", "noisy_or"] = "auto"
    """How the answers of tiles or frames become that of their picture, or those of the images of a
    --unit that of the unit; auto is max, the worst.
    """
    min_seen_fraction: float = 0.6
    """Share of a picture's area that must reach the model, of half the pictures: training refuses
    to cut off more. 0 allows any cut.
    """
    max_pixels: int = 50_000_000
    """Width times height of the largest image that is decoded, in training and by the model that it
    gives; 32 bytes of memory per pixel, by one decoder at a time. Larger ones are too_large, but a
    TIFF in strips or tiles is read piece by piece in the same memory: up to 8 times as many grey
    pixels, 2.6 times as many in colour.
    """
    color: Literal["rgb", "gray"] = "rgb"
    """rgb decodes to three channels, gray to one, which is enough for X-rays and many sensors."""
    gray_range: Literal["measured", "declared", "bits", "min_max"] = "measured"
    """Which values of a grey deeper than 8 bits, without a window in its file, become black and
    white: those that the training images use, measured once for each modality and kept in the
    model; those that the file declares or its type allows; 0 to 2^--gray-bits - 1; or each image's
    own extremes."""
    gray_window: str = ""
    """LOW:HIGH, such as -200:1200: these values become black and white, in place of --gray-range.
    """
    gray_bits: int = 16
    """Significant bits of a deep grey, for --gray-range bits: 12 for a 12-bit camera."""
    depth: int = 8
    """8 gives the network 256 levels of each pixel; 16 gives it numbers with a fraction, so that
    every level of a deep grey reaches it. That takes 4 times the memory for batches and caches, and
    half as much time again to decode a picture; a GPU then decodes no JPEGs.
    """
    frames: Literal["first", "middle", "all", "pool"] = "first"
    """Frames of a multi-frame file: first, middle, all (a row each; training takes one of them by
    chance in each epoch, so a long file counts as much as a short one), or
    pool: all frames are one sample, in training as in scoring, by --pooling; its row names the
    frame that decided."""
    dicom_window: Literal[
        "file", "none", "lung", "soft_tissue", "bone", "brain", "mediastinum", "lung_soft_bone"
    ] = "file"
    """VOI window of DICOM images: the file's own, none, or a named CT window."""
    optimizer: Optimizer = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate, after warm-up."""
    weight_decay: float = 0.01
    """Weight decay, applied to weights of two dimensions or more."""
    warmup_fraction: float = 0.05
    """Share of all steps in which the learning rate rises from zero to its peak, lr."""
    schedule: Schedule = "cosine"
    """After the rise: a cosine to zero, or a tenth after 1/2 and again after 3/4 of the steps;
    onecycle rises for 30 percent of the steps and falls to zero, both as a cosine.
    """
    layer_decay: float = 1.0
    """Learning rate of each stage of the network as a share of that of the stage after it."""
    freeze_stages: int = 0
    """Stages of the network, from the image on, whose weights and batch statistics stay."""
    weights: WeightsUri = ""
    """Weights to start from: a name of torchvision's or a tag of timm's, such as DEFAULT; a folder
    of timm's (config.json and weights); a bundle, as REGISTRY/NAME@v1; or a .safetensors or .pt
    file. The last layer is always new. All but the last bring the mean and spread they were trained
    with; else those of DATA are measured.
    """
    max_grad_norm: float = 0.0
    """Longest gradient vector of a step; longer ones are scaled down. 0 for no limit."""
    ema_decay: float = 0.0
    """Keep a moving average of the weights with this decay, such as 0.999, and validate and
    register that; 0 for none.
    """
    precision: TrainPrecision = "fp32"
    """bf16 runs forward and backward passes in bfloat16 where that is safe; weights stay fp32. fp16
    is for GPUs without bf16: the loss is scaled, so that small gradients are not lost. auto takes
    the one that the hardware has where a measurement of a few steps says that it is faster here and
    agrees with fp32; a run that continues keeps what its first start chose.
    """
    channels_last: bool = True
    """Lay images out pixel by pixel, not channel by channel: faster convolutions, mostly."""
    compile: bool = False
    """Compile the model with torch.compile: half a minute at the start, faster steps after it."""
    sync_bn: Literal["auto", "on", "off"] = "auto"
    """Let batch normalisation see the passes of all GPU workers together, not each its own: slower,
    and steadier where a worker has few images; auto where it has fewer than 16 in a pass.
    """
    val_fraction: float = 0.15
    """Share of each class held out for validation, where DATA names no split."""
    test_fraction: float = 0.15
    """Share of each class held out for testing, where DATA names no split."""
    folds: int = 0
    """For small sets: train so many times on all but one part of the images, a group in one part,
    and measure that part; thresholds and numbers come from there. Then the model is trained on all
    images, which no number measures. Nothing is held out by --val-fraction and --test-fraction; a
    test split that DATA names stays. 0 for none, mostly 5.
    """
    group_by: Literal["none", "folder"] = "none"
    """folder: in a folder tree, the first folder below a class is the group (a patient, a part):
    all its images stay on one side of the split. A manifest has a column group instead.
    """
    group: str = ""
    """What must not lie on two sides of the split, a patient or a lot, by a key: COLUMN of the
    manifest (or of a path, as in camera=3), dicom:TAG, folder:N (1 is the first below DATA, -1 the
    one that holds the image), or name:REGEX, searched in the name of the file.
    """
    unit: str = ""
    """What gets one answer, a study or a part of several images, by a key as for --group: one label
    is learnt for all of its images together, by --pooling; no split cuts it, and numbers and
    thresholds are of units.
    """
    label: str = ""
    """Where the class of an image is, by a key as for --group, such as name:_(ok|nok)_; default the
    column label of the manifest, or the class folder.
    """
    max_bad_fraction: float = 0.01
    """Share of a split's images that may give no pixels; each is named, none is replaced."""
    allow_leaks: bool = False
    """Train although splits share a group, an image, or nearly the same image; they are counted in
    the model card and listed in leaks.csv of the run.
    """
    slice_by: str = ""
    """What to report the metrics by, by a key as for --group, such as the column scanner."""
    allow_unlabelled: bool = False
    """Leave out images without a label; they are counted. By default they are refused."""
    positive_class: str = ""
    """Class to find, or several joined by "|": the model gets thresholds for each, chosen on
    validation, and scoring writes positive, negative or review by the first. Needs
    --target-recall or --target-specificity, or both; but with --unit, --fit tiles or --frames pool
    it may stand alone, to say that the one class not named is what nothing shows.
    """
    target_recall: float = 0.0
    """Share of the positive images that a threshold must find, such as 0.95; 0 for no such
    threshold. Thresholds are chosen after the last epoch: a run that continues may be given others.
    """
    target_specificity: float = 0.0
    """Share of the other images that a threshold must call negative; 0 for no such threshold."""
    augment: Literal["none", "light", "standard", "strong"] = "light"
    """Random changes of training images: light (small turns, shifts, zoom, exposure) to strong. No
    preset flips: left and right differ in an X-ray; see --flip.
    """
    augment_from: Literal["input", "source"] = "input"
    """What --augment zooms and turns. input: the picture as the model gets it, which may be kept
    from epoch to epoch (--cache), but has no more detail than that; source: the file's own pixels,
    read and decoded again in every epoch.
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
    multi_label: bool = False
    """An image may show any number of classes, none included: the manifest's label joins their
    names by "|". Each class is trained by binary cross-entropy and gets a probability of its own.
    """
    loss: Loss = "cross_entropy"
    """focal lets images that are right already weigh less."""
    balance: Literal["none", "weights", "sampling"] = "none"
    """For classes of unlike size: weigh images by class in the loss, or show each class equally
    often. Multi-label: presence and absence of a class weigh the same; or an image counts as its
    rarest class, and those without any as a class of their own.
    """
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes; multi-label, over yes and no."""
    best_by: BestBy = "loss"
    """Which validation number decides the epoch whose weights are kept; of a multi-label model
    accuracy stands for the AUROC, averaged over the classes.
    """
    patience_epochs: int = 0
    """Stop after so many epochs without a better validation; 0 trains all epochs."""
    seed: int = 0
    """Seed of initial weights, order of samples and augmentation."""
    work_dir: OutputUri = ""
    """Where checkpoints and logs go; default REGISTRY/_training/NAME."""
    pictures_in_bundle: bool = False
    """Also put the pictures that show images of DATA (inputs.png, errors.png) into the bundle,
    which travels; by default they lie in the run's folder alone.
    """
    tensorboard: bool = False
    """Also write TensorBoard event files, to tensorboard/ in the run's folder."""
    mlflow_uri: TrackingUri = ""
    """Also log to MLflow: the URI of its tracking server; pip install 'imgcls[mlflow]'."""
    mlflow_experiment: str = ""
    """MLflow experiment; default NAME."""
    device: Device = "auto"
    """Where the model runs; auto takes a CUDA device where there is one."""
    cache: Literal["auto", "none", "ram", "disk"] = "auto"
    """Where decoded images stay for the next epoch; auto takes ram where all of them fit into a
    quarter of the free memory, else none.
    """
    num_decoders: int = 0
    """Decoder processes per worker; 0 takes the cores this worker owns."""

    @property
    def input_px(self) -> tuple[int, int]:
        """The parsed --image-px: height and width."""
        return parse_image_px("224" if self.image_px == "auto" else self.image_px)

    @property
    def is_pooled(self) -> bool:
        """Whether a sample has several instances: tiles, frames, or the images of a unit."""
        return self.fit == "tiles" or self.frames == "pool" or bool(self.unit)

    @property
    def workers(self) -> WorkerRange:
        """The parsed --num-workers."""
        return WorkerRange.parse(self.num_workers)
