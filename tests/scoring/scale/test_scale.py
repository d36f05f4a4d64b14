"""Memory does not grow with the number of images: a million keys from listing to verified night."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.scoring.tiny import published_rows, write_images

MAX_GROWTH_MIB = 300
NUM_KEYS = 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_keys_grow_the_driver_by_less_than_300_mib(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.scoring.scale.million", str(tmp_path), str(NUM_KEYS)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    stages = [json.loads(line) for line in ended.stdout.splitlines()]
    print(*stages, sep="\n")  # noqa: T201 - the measurement is wanted in the log
    # Commit is the workers' part; the rest is the driver's.
    by_name = {stage["stage"]: stage for stage in stages}
    assert by_name["plan"]["grown_mib"] < MAX_GROWTH_MIB
    assert by_name["publish"]["grown_mib"] < MAX_GROWTH_MIB
    assert by_name["twice"]["grown_mib"] < 1024
    assert by_name["difference"]["grown_mib"] < 1024
    assert by_name["verify"]["grown_mib"] < 1024
    assert by_name["plan"]["planned"] == NUM_KEYS
    assert by_name["publish"]["rows"] == NUM_KEYS
    assert by_name["verify"]["problems"] == by_name["twice"]["problems"] == 0
    assert by_name["twice"]["repeated"] == NUM_KEYS
    assert by_name["difference"]["to_score"] == 0


def peak_mib_of_scoring(source: str, model_ref: str, output: str) -> float:
    """Score in a process of its own; return the highest memory that it and its decoders had."""
    code = (
        "import resource, sys; from imgcls.config.scoring import ScoreConfig;"
        "from imgcls.scoring.driver import score;"
        "score(ScoreConfig(*sys.argv[1:], executor='local'));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,"
        " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, source, model_ref, output],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return sum(map(float, ended.stdout.split()))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_workers_memory_does_not_grow_over_20000_images(model_ref: str, tmp_path: Path) -> None:
    write_images(str(tmp_path / "few"), 2_000)
    write_images(str(tmp_path / "many"), 20_000)
    few = peak_mib_of_scoring(str(tmp_path / "few"), model_ref, str(tmp_path / "out-few"))
    many = peak_mib_of_scoring(str(tmp_path / "many"), model_ref, str(tmp_path / "out-many"))
    print(f"2,000 images: {few:.0f} MiB, 20,000 images: {many:.0f} MiB")  # noqa: T201
    # Larger shards and the part of the night hold more rows; images must not.
    assert many - few < 100


def large_images(number: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of images of a megabyte, none like another."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "BMP")
    data = buffer.getvalue()
    for n in range(number):
        yield f"{n:06d}.bmp", data[:-8] + n.to_bytes(8, "big")


def pack(path: Path, number: int) -> None:
    """Write a container of large images, a few in memory at a time."""
    images = large_images(number)
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for name, data in images:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in images:
                archive.writestr(name, data)
    else:
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("image", struct)])
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            while rows := [{"bytes": d, "path": n} for _, (n, d) in zip(range(50), images)]:  # noqa: B905
                writer.write_table(pa.table({"image": pa.array(rows, struct)}, schema))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suffix", ["tar", "zip", "parquet"])
def test_a_workers_memory_does_not_grow_with_its_container(
    suffix: str, model_ref: str, tmp_path: Path
) -> None:
    """One of 2 GB beside one of 700 MB, which fills what is read ahead and decoded as well.

    What threads happen to hold at once moves a peak by 100 MiB: the lower of two nights counts.
    """
    lowest = []
    for number in (650, 2_000):
        container = tmp_path / f"{number}.{suffix}"
        pack(container, number)
        peaks = []
        for night in range(2):
            output = str(tmp_path / f"out-{number}-{night}")
            peaks.append(peak_mib_of_scoring(str(container), model_ref, output))
            assert published_rows(output)["status"].to_pylist() == ["ok"] * number
        size_gb = container.stat().st_size / 1e9
        container.unlink()
        print(f"{suffix} of {size_gb:.1f} GB: {peaks} MiB")  # noqa: T201
        lowest.append(min(peaks))
    assert lowest[1] - lowest[0] < 100
