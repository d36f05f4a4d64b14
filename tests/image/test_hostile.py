"""Every hostile file gives exactly one result with the status that its making decides."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.errors import DecodeError
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec


def test_every_hostile_file_gives_one_row_with_the_right_status(hostile_files: list[Any]) -> None:
    assert len(hostile_files) >= 1000
    preprocess = PreprocessSpec.for_image_px(32)
    with DecoderPool(DecodeSpec(), preprocess, min(4, os.cpu_count() or 1)) as pool:
        pids = set(pool.pids())
        results = list(pool.decode_many((i, case.data) for i, case in enumerate(hostile_files)))
        assert set(pool.pids()) == pids, "a decoder process died"
    assert sorted(result.index for result in results) == list(range(len(hostile_files)))
    wrong = []
    for result in results:
        case = hostile_files[result.index]
        if result.error is None:
            [crop] = result.crops
            found, size = "ok", (crop.width_px, crop.height_px)
        else:
            assert isinstance(result.error, DecodeError)
            found, size = result.error.status, None
        if found not in case.statuses or (case.size and size != case.size):
            wrong.append(f"{case.name}: {found} {size} {result.error}, not {set(case.statuses)}")
    assert not wrong, "\n".join(wrong)


def test_process_pool_and_any_number_of_children_give_the_same_bits(
    hostile_files: list[Any],
) -> None:
    files = [case.data for case in hostile_files if case.name.startswith(("valid", "png", "exif"))]
    files = [data for data in files if len(data) < 100_000]
    decode_spec = DecodeSpec(alpha_background=(10, 200, 30))
    preprocess_spec = PreprocessSpec.for_image_px(33)
    in_process: dict[int, Any] = {}
    for index, data in enumerate(files):
        try:
            [in_process[index]] = decode_one(data, decode_spec, preprocess_spec)
        except DecodeError:
            continue
    assert len(in_process) >= 150
    for num_processes in (1, 3):
        with DecoderPool(decode_spec, preprocess_spec, num_processes) as pool:
            results = {r.index: r for r in pool.decode_many(enumerate(files))}
        assert {index for index, result in results.items() if result.crops} == set(in_process)
        for index, expected in in_process.items():
            np.testing.assert_array_equal(results[index].crops[0].x_CHW, expected.x_CHW)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_dicom_of_every_coding_costs_one_row_each() -> None:
    pydicom = pytest.importorskip("pydicom")
    rng = np.random.default_rng(11)
    files = []
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        whole = path.read_bytes()
        if whole[128:132] != b"DICM" or len(whole) > 200_000:
            continue
        files.append(whole[: int(rng.integers(140, len(whole)))])
        for _ in range(3):
            damaged = bytearray(whole)
            for position in rng.integers(len(whole) // 2, len(whole), 4):
                damaged[position] ^= 1 << int(rng.integers(0, 8))
            files.append(bytes(damaged))
    assert len(files) >= 200
    statuses = {
        "corrupt", "unsupported", "not_an_image", "too_large", "decoder_crash", "timeout",
    }  # fmt: skip
    with DecoderPool(DecodeSpec(), PreprocessSpec.for_image_px(32), 2) as pool:
        results = list(pool.decode_many(enumerate(files)))
    assert sorted(result.index for result in results) == list(range(len(files)))
    for result in results:
        assert bool(result.crops) == (result.error is None)
        assert result.error is None or (
            isinstance(result.error, DecodeError) and result.error.status in statuses
        )
