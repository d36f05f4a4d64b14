"""The flags of the commands about labels: what to ask people, what they said, what looks wrong."""

from dataclasses import dataclass, field

from imgcls.config.paths import Config, DataUri, OutputUri, SourceUris, Uri


@dataclass(frozen=True)
class QueueConfig(Config):
    """Choose the images that a person should label next, and write them as tasks."""

    output: OutputUri
    """Output prefix of `score` or `nightly`; the queue is kept there too, so that labels find their
    way back.
    """
    to: OutputUri
    """Folder for the tasks: queue.csv for a spreadsheet, tasks for Label Studio and for CVAT."""
    most: int = 50
    """How many images a person has time for."""
    run_id: str = ""
    """The run to ask about; default the latest."""
    random_share: float = 0.2
    """Share of the queue that is drawn at random: only from these can be told how good the model
    is on all images. 0 for none.
    """
    group: str = ""
    """Carried column that tells what belongs together, such as patient_id_hash: intervals of the
    estimates are over these.
    """
    links: bool = False
    """Put a link to each image into the tasks, signed: whoever has it sees the picture until it
    expires. They stand in the task files alone. Needs images in s3://, gs:// or az://.
    """
    expires: str = "4h"
    """How long signed links work: a number and m or h, at most 24h."""


@dataclass(frozen=True)
class LabelsConfig(Config):
    """Take back the labels that people gave to a queue, for training and for measuring."""

    output: OutputUri
    """Output prefix whose queues the labels answer; the answers are kept there."""
    from_: Uri
    """What came back: queue.csv with its column label filled in, an export of Label Studio (JSON)
    or of CVAT (CVAT for images 1.1, .xml or .zip), or a folder with a folder for each class.
    """
    to: OutputUri
    """Manifest to write for training, such as labels.csv: all answers so far whose images are still
    what they were. Give it to train beside the first data: --also labels.csv.
    """
    all_seen: bool = False
    """A person has seen every image of the export: what the model had filled in and nobody changed
    is an answer, too. Of exports of CVAT; in the others only what a person said is one.
    """


@dataclass(frozen=True)
class LabelDoctorOptions(Config):
    """How labelled data are looked through."""

    data: DataUri = field(default="", kw_only=True)
    """Labelled images, as for train, to look through for wrong labels, duplicates and bad pictures;
    a page and a manifest of the suspects are written, and nothing is changed.
    """
    model: Uri = field(default="", kw_only=True)
    """A model whose features tell images apart; default the pixels of a small picture."""
    to: OutputUri = field(default="imgcls-doctor", kw_only=True)
    """Folder for the page and the manifest."""
    also: SourceUris = field(default=(), kw_only=True)
    """A further place of labelled images; may be given several times."""
    group: str = field(default="", kw_only=True)
    """What belongs together, a patient or a lot, by a key as for train: a fold never cuts it."""
    label: str = field(default="", kw_only=True)
    """Where the class of an image is, by a key as for train; default the column label."""
    num_decoders: int = field(default=0, kw_only=True)
    """Decoder processes; 0 takes the cores of this machine."""
