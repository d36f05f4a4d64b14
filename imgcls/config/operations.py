"""The flags of the commands about a machine or a cluster."""

from dataclasses import dataclass, field
from typing import Literal

from imgcls.config.choices import Device, Executor, GpuDecode, Precision
from imgcls.config.labelling import LabelDoctorOptions
from imgcls.config.models import CalibrateConfig, EvaluateConfig, PromoteConfig
from imgcls.config.paths import Config, LocalPath, OutputPath, SourceUri, Uri
from imgcls.config.scoring import NightlyConfig, QuantizeConfig, ScoreConfig
from imgcls.config.training import TrainConfig

Job = Literal["train", "score", "nightly", "evaluate", "calibrate", "quantize", "promote", "bench"]


@dataclass(frozen=True)
class DoctorConfig(LabelDoctorOptions):
    """Show what this machine can read; or look through labelled images, or check a cluster.yaml."""

    cluster_file: LocalPath = field(default="", metadata={"positional": True})
    """A cluster.yaml to check instead of this machine: by Ray's own schema, and for what an
    operator would regret. Nothing is started.
    """


@dataclass(frozen=True)
class SubmitConfig(Config):
    """Run a job on a Ray cluster, follow its log to the end, and return its own exit code."""

    job: Job = field(metadata={"positional": True})
    """The job to run; flags of submit itself go before it."""
    arguments: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """The job's flags, checked here before anything is uploaded."""
    address: str = ""
    """Dashboard of the cluster; default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or
    http://127.0.0.1:8265, where `ray dashboard cluster.yaml` puts it.
    """
    submission_id: str = ""
    """Name of the job on the cluster; default nightly-DATE for nightly, else JOB-DATE-TIME, both
    in UTC.
    """
    working_dir: LocalPath = ""
    """Folder to upload, with packages imgcls and jobs in it; default only these two, as they are
    installed here.
    """
    wait: bool = True
    """Follow the job to its end; --no-wait returns as soon as the cluster took it."""


@dataclass(frozen=True)
class KubernetesConfig(Config):
    """Print a Kubernetes manifest for a job: a CronJob, or KubeRay's RayJob or RayCronJob."""

    kind: Literal["rayjob", "cronjob", "raycronjob"] = field(metadata={"positional": True})
    """rayjob: once, on a Ray cluster of its own; raycronjob: that by schedule; cronjob: by schedule
    in one pod, or submitted from it to the cluster at --address.
    """
    job: Job = field(metadata={"positional": True})
    """The job to run; flags of kubernetes itself go before it."""
    name: str
    """Name of the object in Kubernetes."""
    image: str
    """Container image with imgcls in it, by a fixed tag or digest."""
    service_account: str
    """Service account whose role may read the input and write the output."""
    arguments: tuple[str, ...] = field(default=(), metadata={"positional": True})
    """The job's flags, checked here."""
    namespace: str = ""
    """Namespace; default that of kubectl."""
    schedule: str = ""
    """When to start: five cron fields, as in "0 2 * * *"; for cronjob and raycronjob."""
    time_zone: str = "Etc/UTC"
    """Time zone of the schedule, by its IANA name."""
    deadline: str = "12h"
    """How long the job may take: a number and s, m, h or d. What is not done by then, the next
    start does.
    """
    retries: int = 2
    """How often a failed job is started again; it continues where it stopped."""
    keep: str = "1h"
    """How long a finished job stays for its log: a number and s, m, h or d."""
    cpus: int = 8
    """CPUs of a worker (of the one pod, for cronjob)."""
    gpus: int = 0
    """GPUs of a worker (of the one pod, for cronjob)."""
    memory: str = "16Gi"
    """Memory of a worker (of the one pod, for cronjob), as Kubernetes writes it."""
    max_workers: int = 4
    """Most worker pods at a time; they come and go with the work."""
    address: str = ""
    """For cronjob: dashboard of a standing Ray cluster, to submit to instead of working in the
    pod.
    """
    token_secret: str = ""
    """For cronjob with --address: Secret that holds Ray's token under auth_token. Its name goes
    into the manifest, never the token.
    """


@dataclass(frozen=True)
class DemoConfig(Config):
    """Train on real handwritten digits, score a bucket of them, and explain what happened."""

    output: OutputPath = "imgcls-demo"
    """Folder for the demo's images, registry and predictions; made again, refused when it holds
    anything else.
    """
    s3: bool = False
    """Keep everything in an embedded S3 server (SeaweedFS) instead of a folder."""
    executor: Executor = "local"
    """How to score: local, or ray."""


@dataclass(frozen=True)
class BenchConfig(Config):
    """Measure how fast this machine decodes, runs a model, scores or trains, beside its limits."""

    what: Literal["score", "decode", "predict", "train"] = field(
        default="score", metadata={"positional": True}
    )
    """decode: decoder processes alone; predict: the model alone; score: both, and a whole run;
    train: the training loop beside the bare step, two ranks beside one, and a worker's memory.
    """
    source: SourceUri = ""
    """Folder or prefix of images to take; default makes photograph-like JPEGs of its own."""
    model: Uri = ""
    """Bundle URI or registry reference, as for score; default an untrained --arch."""
    arch: str = "resnet18"
    """Architecture of the untrained model; its golden check passes, so that speed is measured."""
    image_px: int = 224
    """Image side of the untrained model."""
    num_images: int = 512
    """Images per measurement; those of the source are repeated until there are so many."""
    repeats: int = 3
    """Measurements of each side, taken in turn; the table shows medians."""
    batch_size: int = 0
    """Images per forward pass; 0 takes what score takes, and 32 to train."""
    device: Device = "auto"
    """Where the model runs, as for score."""
    precision: Precision = "auto"
    """Arithmetic of the model, as for score."""
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""
    gpu_decode: GpuDecode = "off"
    """on has the GPU decode too, as for score; decoding alone is then what both do together."""


JOB_CONFIGS: dict[str, type] = {
    "train": TrainConfig,
    "score": ScoreConfig,
    "nightly": NightlyConfig,
    "evaluate": EvaluateConfig,
    "calibrate": CalibrateConfig,
    "quantize": QuantizeConfig,
    "promote": PromoteConfig,
    "bench": BenchConfig,
}
