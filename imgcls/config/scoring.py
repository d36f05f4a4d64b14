"""The flags of `score` and of everything that looks after published predictions."""

from dataclasses import dataclass

from imgcls.config.choices import (
    CpuHelpers,
    CsvSeparator,
    Device,
    Drift,
    Executor,
    GpuDecode,
    Heatmaps,
    PageNames,
    Precision,
    ResultForm,
    UnitPooling,
)
from imgcls.config.paths import Config, DataUri, OutputFile, OutputUri, Uri
from imgcls.config.source_options import SourceOptions


@dataclass(frozen=True)
class ScoreConfig(SourceOptions):
    """Score every image of a source with a model and publish the predictions as Parquet."""

    model: Uri
    """Bundle URI, or REGISTRY/NAME@v3, or REGISTRY/NAME@production."""
    output: OutputUri
    """Prefix for runs and published predictions."""
    run_id: str = ""
    """Name of the run; the same id again resumes it. Default: a new one from date and time."""
    date: str = ""
    """Partition date=YYYY-MM-DD to publish under; default today in UTC."""
    executor: Executor = "auto"
    """local runs in this process, ray on a cluster; auto takes ray inside a Ray job, when
    RAY_ADDRESS is set, or where this machine has several GPUs.
    """
    top_k: int = 5
    """Classes per row in topk_label and topk_prob; at most the number of classes."""
    batch_size: int = 0
    """Images per forward pass; 0 takes 16 on a CPU and 128 on a GPU."""
    shard_size: int = 0
    """Images per shard (64 to 8192), the unit of retry, resume and commit; 0 derives it from the
    number of images.
    """
    num_actors: int = 0
    """Ray actors; 0 takes one per GPU, or where there are none, one per node. Of a cluster that
    starts nodes by itself (ray up), also one per 10,000 images, as far as it may grow; more than
    are there now are waited for.
    """
    cpus_per_actor: int = 0
    """CPUs of one actor; 0 shares those of its node out, all but one where it has several."""
    gpus_per_actor: float = 0.0
    """GPUs of one actor: 1, or a share such as 0.5 for two actors on one; 0 takes one where the
    cluster has GPUs and --device is not cpu.
    """
    device: Device = "auto"
    """Where the model runs; auto takes a CUDA device where there is one."""
    precision: Precision = "auto"
    """Arithmetic of the model; auto takes less than fp32 where that is faster and the bundle's
    golden images keep their label, their decision and, within 0.01, their probabilities; others are
    refused without that. fp32 is IEEE; tf32 (CUDA) rounds products as NVIDIA GPUs do by default.
    Where OpenVINO is installed ("imgcls[openvino]"), it runs long runs on
    CPUs. int8 (CPU, needs "imgcls[int8]") runs the int8 network of a model that `imgcls quantize`
    made.
    """
    num_decoders: int = 0
    """Decoder processes per actor; 0 takes the cores it owns."""
    cpu_helpers: CpuHelpers = "auto"
    """auto has the nodes without a GPU read and decode for actors whose GPU waits more than 20 % of
    its time because reading or decoding is too slow; off leaves those nodes alone.
    """
    gpu_decode: GpuDecode = "off"
    """on has the GPU decode JPEGs beside the decoder processes, each side as many as it can:
    baseline ones of up to 4 megapixels that would be decoded at full size. Its pixels differ a
    little: refused unless 0.99 of a sample of the run get the same answer; gpu_decode.json beside
    the plan tells how much changes. Damage in mid-file can go unseen there, and a hostile file
    could end the worker. Needs "imgcls[gpu-decode]".
    """
    write_probs: bool = False
    """Add the column probs: the probability of every class."""
    write_embedding: bool = False
    """Add the column embedding: the input of the last layer."""
    carry: tuple[str, ...] = ()
    """Add a column of the source to the rows, by a key as for train's --group: scanner, camera (of
    camera=3/), dicom:Modality, lot=name:LOT([0-9]+); may be given several times. Ids of DICOM are
    written as hashes. All columns of a manifest come along by themselves, but for label, split,
    group and weight; none leaves them out.
    """
    write_tiles: bool = False
    """Of a model of tiles (train --fit tiles), also write a table of all tiles, each with its place
    and its probabilities, under OUTPUT/_tiles/date=D/run=R/; the manifest of the run names it.
    """
    unit: str = ""
    """Also give one answer per unit, such as a study or a part: a key as for train's --group that
    tells which images are of one, such as dicom:StudyInstanceUID, folder:1, part=name:PART([0-9]+)
    or a column. Ids of DICOM are written as hashes. Rows get the columns unit and probs; the table
    of units lies under OUTPUT/_groups/date=D/run=R/, and the manifest of the run names it.
    """
    unit_rule: UnitPooling = "auto"
    """How the answers of its images become that of a unit; auto is the rule that the model's
    thresholds per unit were fitted for, else max, the image that shows most.
    """
    heatmaps: Heatmaps = "none"
    """Show on the page which places of a picture its answer rests on, and add the columns peak_x_px
    and peak_y_px: flagged makes them of the flagged images, the least sure ones and a sample; all
    of every image; each costs a further pass of the model in fp32, or of models that do not end in
    a mean and one linear layer (log: "by occlusion") 50 to 100 passes.
    """
    delta: bool = False
    """Also register what is published as a Delta Lake table at OUTPUT, by metadata alone (needs
    "imgcls[delta]"); once it is there, later runs keep it up without the flag.
    """
    drift: Drift = "warn"
    """What to do where the pictures have changed against those that the model was made with, or
    those of the nights before: warn says so, in the log and on the page; hold does not publish the
    run (exit code 6) until `imgcls release` or `imgcls rollback`; off does not look.
    """
    review_unfamiliar: bool = False
    """Decide `review` on images that are unlike anything that the model knows (column unfamiliar),
    whatever their probability.
    """
    max_failed_fraction: float = 0.05
    """Share of images that may fail to give a prediction before the run ends with exit code 3,
    judged after 100; of fewer images more than half, and three, must have failed. Files that are
    not images do not count, nor does what failed in an earlier night and fails again.
    """


@dataclass(frozen=True)
class NightlyConfig(ScoreConfig):
    """Score what is new or changed since the last published run, and verify it."""

    retry_failed: bool = False
    """Score again what was published with a status other than ok."""


@dataclass(frozen=True)
class PlanConfig(NightlyConfig):
    """Show what `nightly` with the same flags would score now, and write nothing."""

    output: Uri
    """Prefix with the published predictions to compare with."""


@dataclass(frozen=True)
class VerifyConfig(Config):
    """Read published runs again, all that they wrote, and name any difference."""

    output: Uri
    """Output prefix of `score`."""
    run_id: str = ""
    """Only this run; default every run."""


@dataclass(frozen=True)
class GcConfig(Config):
    """Remove working files that no run needs any more; on request, old pages and pictures."""

    output: OutputUri
    """Output prefix of `score`."""
    older_than: str = "24h"
    """Only what was last written longer ago: a number and s, m, h or d."""
    abandoned: bool = False
    """Remove also runs that were never published."""
    pictures_older_than: str = ""
    """Remove the pages and the pictures of images that are older than this, such as 90d, and
    nothing else of their runs: rows, numbers and logs stay.
    """
    dry_run: bool = False
    """Only say what would be removed."""


@dataclass(frozen=True)
class RollbackConfig(Config):
    """Take a published run back: neither readers nor the next night see it any more."""

    output: OutputUri
    """Output prefix of `score`."""
    run_id: str
    """The run to take back."""


@dataclass(frozen=True)
class ReleaseConfig(Config):
    """Publish a run that was held because its pictures had changed."""

    output: OutputUri
    """Output prefix of `score`."""
    run_id: str
    """The run to release."""


@dataclass(frozen=True)
class ReferenceConfig(SourceOptions):
    """Give a model images that are as they should be: nights are compared with these.

    The result is the next version of its name, of the same network: nothing is scored again.
    """

    model: OutputUri
    """The model, as REGISTRY/NAME@v3 or REGISTRY/NAME@production."""
    carry: tuple[str, ...] = ()
    """Columns of the source that nights carry too, as for score: scanner, camera."""
    device: Device = "auto"
    """Where the model runs."""
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""


@dataclass(frozen=True)
class ReportConfig(Config):
    """Make the page of a published night again, or one page of several nights."""

    output: OutputUri
    """Output prefix of `score`."""
    run_id: str = ""
    """The run; default the latest."""
    last: int = 0
    """One page of so many of the latest runs together, in OUTPUT/_pages; 0: of one run."""
    unit: bool = False
    """Show units (of runs with --unit): studies or parts, each by the image that decided."""
    names: PageNames = "plain"
    """hashed shows codes instead of names of objects and carried values, on the page and in its
    lists; equal names have equal codes on one page.
    """


@dataclass(frozen=True)
class ResultsConfig(Config):
    """Give published results as CSV for Excel, as a Delta Lake table, or as DICOM reports."""

    output: OutputUri
    """Output prefix of `score`."""
    to: ResultForm
    """csv: a file for Excel. delta: the published Parquet as a Delta Lake table at OUTPUT,
    registered by metadata alone (needs "imgcls[delta]"). dicom-sr: of each study of DICOM images a
    structured report of the latest rows, UNVERIFIED, into a folder; nothing is sent (needs
    "imgcls[dicom]").
    """
    latest: bool = False
    """Of each image, or unit, only the latest row."""
    unit: bool = False
    """The rows of units (score --unit) instead of those of images."""
    run_id: str = ""
    """Only this run."""
    into: OutputFile = ""
    """File of csv, or folder of dicom-sr; default OUTPUT/results.csv (of units results-units.csv),
    or OUTPUT/_reports.
    """
    separator: CsvSeparator = "comma"
    """Between the cells of csv; semicolon, with commas in numbers, is what Excel opens by itself in
    German, French and other languages.
    """


@dataclass(frozen=True)
class QuantizeConfig(Config):
    """Give a model an int8 network, up to three times as fast on CPUs: the next version.

    It is refused unless 0.99 of images that calibrated nothing keep their label and decision.
    """

    model: OutputUri
    """The model, as REGISTRY/NAME@v3 or REGISTRY/NAME@production; the result is the next version of
    that name, with the same weights, classes, thresholds and metrics.
    """
    data: DataUri
    """Images like those to come, without labels, 64 or more: a prefix, a glob or a manifest, as
    --source of score.
    """
    num_decoders: int = 0
    """Decoder processes; 0 takes the cores of this machine."""
