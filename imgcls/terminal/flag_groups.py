"""In which group of `--help` a flag stands, and examples to begin with.

In: nothing. Out: tables by the names of flags and commands. Invariant: a flag of one name stands in
one group in every command, unless a group names it as COMMAND.NAME; only commands with many flags
have groups.
"""

from typing import Final

REQUIRED: Final = "required"
OTHERS: Final = "other flags"
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    REQUIRED: (),  # those without a default, of any name
    "what is measured": ("model", "data", "split", "predictions", "labels", "match_by", "over"),
    "which images": (
        *("also", "include", "exclude", "ignore_case", "where", "since", "columns", "root"),
        *("image_column", "max_compressed_gib", "retry_failed"),
    ),
    "labels, groups and slices": (
        *(
            "label",
            "group",
            "group_by",
            "slice_by",
            "unit",
            "unit_rule",
            "allow_unlabelled",
            "multi_label",
        ),
    ),
    "splits": ("val_fraction", "test_fraction", "folds", "allow_leaks", "max_bad_fraction"),
    "the network": (
        *("arch", "head", "backbone", "weights", "classes", "license", "layout", "outputs"),
        *("output_name", "channel_order"),
    ),
    "proof": ("check", "max_check"),
    "what it sees of a picture": (
        *("image_px", "fit", "overlap", "pooling", "min_seen_fraction", "max_pixels", "color"),
        *("gray_range", "gray_window", "gray_bits", "depth", "frames", "dicom_window"),
        *("preprocess", "resize_px", "filter", "input_range", "mean", "std"),
    ),
    "thresholds": ("positive_class", "target_recall", "target_specificity"),
    "where the model goes": ("registry", "name", "work_dir", "pictures_in_bundle"),
    "training": (
        *("epochs", "train.batch_size", "accumulate", "patience_epochs", "best_by", "seed"),
        *("checkpoint_every", "keep_checkpoints"),
    ),
    "augmentation": ("augment", "augment_from", "policy", "flip", "mixup", "cutmix"),
    "loss and optimizer": (
        *("loss", "balance", "label_smoothing", "optimizer", "lr", "weight_decay"),
        *("warmup_fraction", "schedule", "layer_decay", "freeze_stages", "max_grad_norm"),
        "ema_decay",
    ),
    "the run and its rows": (
        *(
            "run_id",
            "date",
            "top_k",
            "carry",
            "write_probs",
            "write_embedding",
            "write_tiles",
            "heatmaps",
            "delta",
            "drift",
            "review_unfamiliar",
        ),
        "max_failed_fraction",
    ),
    "machines and speed": (
        *(
            "executor",
            "device",
            "precision",
            "batch_size",
            "shard_size",
            "num_workers",
            "max_failures",
        ),
        *("num_actors", "cpus_per_actor", "gpus_per_actor", "num_decoders", "cache"),
        *("cpu_helpers", "gpu_decode", "channels_last", "compile", "sync_bn"),
    ),
    "following a training": ("tensorboard", "mlflow_uri", "mlflow_experiment"),
}
GROUPED: Final = ("train", "score", "nightly", "plan", "evaluate", "calibrate", "import")

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "train": (
        ("a folder per class", "imgcls train --data DATA --registry REG --name parts"),
        (
            "a threshold that finds 95 of 100 scratched parts",
            "imgcls train --data DATA --registry REG --name parts --positive-class scratch "
            "--target-recall 0.95",
        ),
        (
            "few images: only the last layer, on a trained backbone",
            "imgcls train --data DATA --registry REG --name parts --head linear "
            "--backbone REG/backbone@v1",
        ),
        (
            "small defects in large pictures",
            "imgcls train --data boxes.csv --registry REG --name parts --fit tiles --arch spot_cnn",
        ),
    ),
    "score": (
        ("a folder or a bucket", "imgcls score --source SRC --model REG/parts@v1 --output OUT"),
        (
            "only JPEGs of line 3, with the camera of each",
            "imgcls score --source SRC --model REG/parts@v1 --output OUT --include '*.jpg' "
            "--where line=3 --carry camera",
        ),
    ),
    "nightly": (
        (
            "what is new since the last night",
            "imgcls nightly --source SRC --model REG/parts@production --output OUT",
        ),
        (
            "in a crontab, at three",
            "0 3 * * * imgcls nightly --source SRC --model REG/parts@production --output OUT",
        ),
    ),
    "evaluate": (
        ("a model on labelled images", "imgcls evaluate --model REG/parts@v1 --data DATA"),
        (
            "the rows of last night, once their labels are known",
            "imgcls evaluate --predictions OUT --labels labels.csv",
        ),
    ),
    "diff": (
        (
            "a new version beside the one in use, on labelled images",
            "imgcls diff REG/parts@production REG/parts@v2 --output TRIALS --data DATA",
        ),
        ("two published runs", "imgcls diff --output OUT RUN_A RUN_B"),
    ),
    "calibrate": (
        (
            "thresholds for your own site",
            "imgcls calibrate --model REG/parts@v1 --data DATA --positive-class scratch "
            "--target-recall 0.95",
        ),
    ),
    "report": (
        ("the page of the latest night", "imgcls report --output OUT"),
        ("the last 30 nights on one page", "imgcls report --output OUT --last 30"),
    ),
}
