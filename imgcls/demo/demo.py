"""The embedded default: real handwritten digits become a bucket, a model and two nights.

In: the 1,797 digits that scikit-learn ships (8x8 grey, UCI "Optical Recognition of Handwritten
Digits"). Out: DEMO/{digits,bucket,registry,predictions,labels.csv} and a small table. Invariant:
the model never sees a label of the bucket; the accuracy is that of published Parquet rows against
labels held back. The second night shows what happens when the pictures change.
"""

import csv
import io
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from imgcls.config.choices import Executor as ExecutorName
from imgcls.config.models import EvaluateConfig, PromoteConfig
from imgcls.config.operations import DemoConfig
from imgcls.config.scoring import NightlyConfig, ReleaseConfig, ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.demo.embedded_s3 import embedded_s3
from imgcls.errors import ConfigError, NightHeldError
from imgcls.evaluation import evaluate
from imgcls.image.png import encode_png
from imgcls.inference.device import set_num_threads
from imgcls.model import registry
from imgcls.nightly import nightly
from imgcls.runs.held import HELD_PAGE, list_held
from imgcls.schema import Status
from imgcls.scoring import driver as scoring
from imgcls.scoring.publishing.hold import release
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join
from imgcls.training import driver as training

log = logging.getLogger(__name__)

NUM_BUCKET = 597
NUM_SECOND = 180
MODEL_NAME = "digits"
_MARKER = ".imgcls-demo"
_PUTS_IN_FLIGHT = 16


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run both flows on the digits and explain where everything lies.

    Raises:
        ConfigError: the output folder holds something that no demo wrote.
    """
    start_s = time.monotonic()
    folder = _fresh_folder(Path(config.output))
    with _storage(config.s3, folder) as root:
        images, labels = _load_digits()
        log.info("writing %d digits as PNG files under %s", len(images), root)
        _write_images(root, images, labels)
        with _one_thread():
            trained = training.train(
                TrainConfig(
                    data=join(root, "digits"),
                    registry=join(root, "registry"),
                    name=MODEL_NAME,
                    arch="simple_cnn",
                    image_px="32",
                )
            )
        reference = f"{join(root, 'registry')}/{MODEL_NAME}"
        registry.promote_version(PromoteConfig(model=f"{reference}@v{trained['version']}"))
        scored = scoring.score(
            ScoreConfig(
                source=join(root, "bucket"),
                model=f"{reference}@production",
                output=join(root, "predictions"),
                executor=config.executor,
                carry=("scanner",),
            )
        )
        measured = evaluate.evaluate(
            EvaluateConfig(predictions=join(root, "predictions"), labels=join(root, "labels.csv"))
        )
        held = _second_night(root, f"{reference}@production", images, config.executor)
        not_ok = _rows_not_ok(scored["parts"])
        parquet = _keep(scored["parts"], folder) if config.s3 else scored["parts"]
        pages = [scored["page"], held["held_page"]]
        page, held["held_page"] = _keep(pages, folder) if config.s3 else pages
    result = {
        "accuracy": measured["accuracy"],
        "rows": scored["rows"],
        "rows_ok": scored["rows_ok"],
        "rows_not_ok": not_ok,
        "status_counts": scored["status_counts"],
        "output": str(Path(parquet[0]).parent),
        "page": page,
        "run_output": scored["output"],
        "model": f"{reference}@production",
        "test_accuracy": trained["test_accuracy"],
        **held,
        "elapsed_s": round(time.monotonic() - start_s, 1),
    }
    _explain(result, root)
    return result


def _second_night(
    root: str, model: str, images: np.ndarray, executor: ExecutorName
) -> dict[str, Any]:
    """Score what came from a second scanner that sends negatives: it is held, then released.

    Returns:
        held_for, the sentence; held_page; and rows_released.
    """
    for number, image in enumerate(images[:NUM_SECOND]):
        scanner, picture = ("B", 255 - image) if number % 3 else ("A", image)
        uri = join(root, "bucket", f"scanner={scanner}", f"second-{number:04d}.png")
        put(uri, encode_png(picture))
    output = join(root, "predictions")
    try:
        nightly(
            NightlyConfig(
                source=join(root, "bucket"),
                model=model,
                output=output,
                executor=executor,
                carry=("scanner",),
                drift="hold",
            )
        )
    except NightHeldError as error:
        log.warning("%s", error)
    [(run, held)] = list_held(output)
    released = release(ReleaseConfig(output, run.run_id))
    return {
        "held_for": held.sentence,
        "held_page": run.page(HELD_PAGE),
        "rows_released": released["rows"],
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: several wait for each other most of the time on a busy machine.

    So small a network gains little from them: training took six times as long with two on two busy
    cores (2 shared cores, Intel Xeon, at a load of 4 to 6).
    """
    before = torch.get_num_threads()
    set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(before)


def _fresh_folder(folder: Path) -> Path:
    """Empty the folder of an earlier demo, or make it; refuse a folder that is somebody else's."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _MARKER).exists():
            raise ConfigError(
                f"--output {folder}: is not empty and no demo wrote it; choose another folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()
    return folder


@contextmanager
def _storage(s3: bool, folder: Path) -> Iterator[str]:
    """Yield the root of the demo's objects: the folder, or a bucket of a server of our own."""
    if not s3:
        yield str(folder)
        return
    log.info("starting SeaweedFS, an S3 server, on this machine")
    with embedded_s3() as server:
        before = dict(os.environ)
        os.environ.update(server.environment())
        try:
            server.create_bucket("demo")
            yield "s3://demo"
        finally:
            os.environ.clear()
            os.environ.update(before)


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits in a fixed random order: uint8 [n,8,8] 0..255 and int labels [n]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    # The data set counts ink in 0..16.
    images = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    return images, digits.target[order]


def _write_images(root: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the labelled tree, the bucket with three bad files, and the labels held back."""
    files = {}
    bucket_labels = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if number < NUM_BUCKET:
            uri = join(root, "bucket", "scanner=A", f"scan-{number:04d}.png")
            bucket_labels.append((uri, str(label)))
        else:
            uri = join(root, "digits", str(label), f"digit-{number:04d}.png")
        files[uri] = encode_png(image)
    page = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>"
    scanner = join(root, "bucket", "scanner=A")
    files[join(scanner, "scan-empty.png")] = b""
    files[join(scanner, "scan-page.png")] = page
    files[join(scanner, "scan-truncated.png")] = encode_png(images[0])[:60]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("uri", "label"))
    writer.writerows(bucket_labels)
    files[join(root, "labels.csv")] = table.getvalue().encode()
    with ThreadPoolExecutor(_PUTS_IN_FLIGHT) as pool:
        list(pool.map(put, files.keys(), files.values()))


def _keep(uris: list[str], folder: Path) -> list[str]:
    """Copy what was published out of the server that is about to end."""
    kept = []
    for uri in uris:
        path = folder / "predictions" / uri.rpartition("/")[2]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(read(uri))
        kept.append(str(path))
    return kept


def _rows_not_ok(parts: list[str]) -> dict[str, str]:
    """Return the status of each image that gave no prediction, by file name."""
    rows = [
        row
        for uri in parts
        for row in pq.read_table(io.BytesIO(read(uri)), columns=["uri", "status"]).to_pylist()
    ]
    return {
        row["uri"].rpartition("/")[2]: row["status"] for row in rows if row["status"] != Status.OK
    }


def _explain(result: dict[str, Any], root: str) -> None:
    """Print what happened and where to look, to stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="imgcls demo: handwritten digits", show_header=False, title_justify="left")
    table.add_row("accuracy on the bucket", f"{result['accuracy']:.4f}")
    table.add_row("rows published", str(result["rows"]))
    table.add_row("  of which ok", str(result["rows_ok"]))
    for name, status in result["rows_not_ok"].items():
        table.add_row(f"  {name}", status)
    table.add_row("second night held for", result["held_for"])
    table.add_row("  rows published by its release", str(result["rows_released"]))
    table.add_row("page of the first night", result["page"])
    table.add_row("page of the held night", result["held_page"])
    table.add_row("Parquet", result["output"])
    table.add_row("model", result["model"])
    table.add_row("time", f"{result['elapsed_s']:.1f} s")
    longest = max(len(result[name]) for name in ("output", "page", "held_page", "held_for"))
    console = Console(file=sys.stderr, soft_wrap=True, width=longest + 40)
    console.print(table)
    show = f"import duckdb; print(duckdb.read_parquet('{result['output']}/*.parquet'))"
    where = (
        "The S3 server has ended; the Parquet was copied out of it before."
        if root.startswith("s3://")
        else f"Prove it again from the stored objects: imgcls verify --output {root}/predictions"
    )
    console.print(
        "First night: a CNN, trained on 1,200 labelled digits, scored 600 files that it had "
        "never seen, 3 of them broken; each has its row.\n"
        "Second night: a new scanner B sent negatives, so it was held until imgcls release "
        "published it; imgcls rollback would have thrown it away.\n"
        "The accuracy compares the rows of the first night with labels held back until then.\n"
        f"{where}\n"
        f"Open the pages in a browser: {result['page']}\n"
        f"                             {result['held_page']}\n"
        f'Look at the rows: python -c "{show}"',
        highlight=False,
        markup=False,
    )
