"""JPEGs decoded beside the pool, by nvImageCodec on the CPU: the code that runs on a GPU."""

import io
import queue
import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from imgcls.errors import DecodeError, ImgclsError
from imgcls.image.decoders.pool import Crop, Decoded, DecoderPool, decode_one
from imgcls.image.decoders.scheduler import Task
from imgcls.image.gpu.nvjpeg import DeviceJpegDecoder
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from tests.image.encoders import lossless_jpeg

pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu-decode is not installed")

CPU = torch.device("cpu")
DECODE = DecodeSpec()
PREPROCESS = PreprocessSpec.for_image_px(96)


def photo(seed: int, size: tuple[int, int] = (180, 130), mode: str = "RGB") -> Image.Image:
    """Smooth shapes and some noise, in colour: what chroma upsampling can get wrong."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(rough.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def with_orientation(value: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture
def make_decoder() -> Iterator[Callable[..., DeviceJpegDecoder]]:
    made = []

    def make(spec: DecodeSpec = DECODE) -> DeviceJpegDecoder:
        made.append(DeviceJpegDecoder(spec, PREPROCESS, CPU))
        return made[-1]

    yield make
    for decoder in made:
        decoder.close()


def assert_equal(crops: list[Crop], expected: list[Crop]) -> None:
    for crop, other in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop.x_CHW, other.x_CHW)
        assert crop.x_CHW.dtype == np.uint8
        assert (crop.width_px, crop.height_px, crop.frame) == (
            other.width_px,
            other.height_px,
            other.frame,
        )


PLAIN = {
    "4:2:0": jpeg(photo(1), subsampling=2, quality=85),
    "4:2:2": jpeg(photo(2), subsampling=1, quality=50),
    "4:4:4": jpeg(photo(3), subsampling=0, quality=95),
    "grey": jpeg(photo(4, mode="L")),
    "odd sizes": jpeg(photo(5, (141, 97)), subsampling=2),
    "portrait": jpeg(photo(6, (75, 145)), subsampling=2),
    "smaller than the crop": jpeg(photo(7, (20, 31)), subsampling=2),
    "upright": jpeg(photo(8), exif=with_orientation(1)),
    "profile that is ignored": jpeg(photo(9), icc_profile=b"profile" * 20),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_ones_are_decoded_as_by_the_processes(
    name: str, make_decoder: Callable[..., DeviceJpegDecoder]
) -> None:
    decoder = make_decoder()
    assert decoder.is_plain(PLAIN[name])
    [crops] = decoder.decode([PLAIN[name]])
    assert crops is not None
    assert_equal(crops, decode_one(PLAIN[name], DECODE, PREPROCESS))


def test_greys_of_a_grey_model_are_decoded_and_its_colours_are_not(
    make_decoder: Callable[..., DeviceJpegDecoder],
) -> None:
    spec = DecodeSpec(color="gray")
    gray = PreprocessSpec.for_image_px(96, mean=(0.5,), std=(0.5,))
    decoder = DeviceJpegDecoder(spec, gray, CPU)
    try:
        [crops] = decoder.decode([PLAIN["grey"]])
        assert crops is not None
        assert_equal(crops, decode_one(PLAIN["grey"], spec, gray))
        assert not decoder.is_plain(PLAIN["4:2:0"]), "its luma comes from the coloured pixels"
    finally:
        decoder.close()


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        (jpeg(photo(1), progressive=True), DECODE),
        (jpeg(photo(1, mode="CMYK")), DECODE),
        (simplejpeg.encode_jpeg(np.asarray(photo(1)), colorsubsampling="440"), DECODE),
        (jpeg(photo(1), keep_rgb=True), DECODE),
        (jpeg(photo(1), exif=with_orientation(6)), DECODE),
        (jpeg(photo(1, (2 * PREPROCESS.resize_px + 20, 2 * PREPROCESS.resize_px))), DECODE),
        (jpeg(photo(1, (2200, 2000))), DecodeSpec(dct_scaling=False)),
        (jpeg(photo(1)), DecodeSpec(max_pixels=180 * 130 - 1)),
        (jpeg(photo(1), icc_profile=b"profile" * 20), DecodeSpec(icc="srgb")),
        (lossless_jpeg(np.asarray(photo(1, mode="L"))[:, :, np.newaxis]), DECODE),
        (jpeg(photo(1))[:-2], DECODE),
        (jpeg(photo(1))[:1000], DECODE),
        (b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9", DECODE),
        (b"", DECODE),
        (b"hello", DECODE),
    ],
    ids=[
        "progressive",
        "cmyk",
        "unusual sampling",
        "stored as rgb",
        "turned",
        "decoded at half size",
        "more than 4 megapixels",
        "too large",
        "profile to convert",
        "lossless",
        "no end",
        "half",
        "no header",
        "empty",
        "text",
    ],
)
def test_all_others_are_left_to_the_processes(
    data: bytes, spec: DecodeSpec, make_decoder: Callable[..., DeviceJpegDecoder]
) -> None:
    assert not make_decoder(spec).is_plain(data)


def mixed_files() -> list[bytes]:
    """Plain and other JPEGs, PNGs, damaged and empty files, each many times."""
    damaged = bytearray(PLAIN["4:2:0"])
    damaged[len(damaged) // 2 : len(damaged) // 2 + 40] = bytes(40)
    png = io.BytesIO()
    photo(11).save(png, "PNG")
    kinds = [
        *PLAIN.values(),
        jpeg(photo(12), progressive=True),
        jpeg(photo(13), exif=with_orientation(6)),
        png.getvalue(),
        bytes(damaged),
        PLAIN["4:4:4"][:500],
        b"",
    ]
    return [kinds[number % len(kinds)] for number in range(300)]


def check_all(results: list[Decoded], files: list[bytes]) -> None:
    """Every file came out once, as `decode_one` has it."""
    assert sorted(result.index for result in results) == list(range(len(files)))
    expected: dict[bytes, list[Crop] | DecodeError] = {}
    for data in set(files):
        try:
            expected[data] = decode_one(data, DECODE, PREPROCESS)
        except DecodeError as error:
            expected[data] = error
    for result in results:
        one = expected[files[result.index]]
        if isinstance(one, DecodeError):
            assert type(result.error) is type(one)
            assert not result.crops
        else:
            assert result.error is None
            assert_equal(result.crops, one)


def test_pool_that_shares_gives_what_it_gives_alone(
    make_decoder: Callable[..., DeviceJpegDecoder],
) -> None:
    files, decoder = mixed_files(), make_decoder()
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pool.share_with(decoder)
        check_all(list(pool.decode_many(enumerate(files))), files)
        assert 0 < pool.num_taken() < len(files)
        before = pool.num_taken()
        check_all(list(pool.decode_many(enumerate(files))), files)
        assert pool.num_taken() > before


def test_neither_side_waits_for_the_other(
    make_decoder: Callable[..., DeviceJpegDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [PLAIN["4:2:0"]] * 600
    decoder = make_decoder()
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pool.share_with(decoder)
        check_all(list(pool.decode_many(enumerate(files))), files)
        assert pool.num_taken() >= decoder.capacity, "it has the first of them"
        assert pool.num_taken() < len(files), "what it has no room for is not kept waiting"


def test_what_fails_there_is_decoded_by_the_processes(
    make_decoder: Callable[..., DeviceJpegDecoder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files, decoder = mixed_files(), make_decoder()
    calls = 0

    def fail(_: object) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(decoder, "_decode", fail)
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pool.share_with(decoder)
        for _ in range(4):
            check_all(list(pool.decode_many(enumerate(files))), files)
        assert pool.num_taken() == 0
    assert calls == 3, "then it is not tried any more"
    assert "CUDA error: out of memory" in caplog.text
    assert "no more is tried" in caplog.text


def test_single_files_that_fail_there_are_decoded_by_the_processes(
    make_decoder: Callable[..., DeviceJpegDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, decoder = mixed_files(), make_decoder()
    decode = decoder._decode
    monkeypatch.setattr(
        decoder,
        "_decode",
        lambda some: [None if n % 3 else image for n, image in enumerate(decode(some))],
    )
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pool.share_with(decoder)
        check_all(list(pool.decode_many(enumerate(files))), files)
        assert pool.num_taken() > 0


def test_closed_one_gives_back_what_it_has(
    make_decoder: Callable[..., DeviceJpegDecoder],
) -> None:
    files, decoder = mixed_files(), make_decoder()
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pool.share_with(decoder)
        results = pool.decode_many(enumerate(files))
        found = [next(results) for _ in range(5)]
        decoder.close()
        check_all([*found, *results], files)


def test_abandoned_stream_leaves_nothing_behind(
    make_decoder: Callable[..., DeviceJpegDecoder],
) -> None:
    files, decoder = [PLAIN["4:2:0"]] * 300, make_decoder()
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pool.share_with(decoder)
        results = pool.decode_many(enumerate(files))
        next(results)
        results.close()  # type: ignore[attr-defined]
        check_all(list(pool.decode_many(enumerate(files))), files)
    with pytest.raises(ImgclsError, match="closed"):
        list(pool.decode_many(enumerate(files)))


def test_a_batch_is_started_before_the_one_before_it_is_waited_for(
    make_decoder: Callable[..., DeviceJpegDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, is_full, order = make_decoder(), threading.Event(), list[str]()
    start, finish = decoder._start, decoder._finish

    def record_start(files: Any) -> Any:
        assert is_full.wait(60)
        order.append(f"start {len(files)}")
        return start(files)

    def record_finish(started: Any) -> Any:
        order.append(f"finish {len(started.images)}")
        return finish(started)

    monkeypatch.setattr(decoder, "_start", record_start)
    monkeypatch.setattr(decoder, "_finish", record_finish)
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tasks = [Task(PLAIN["4:2:0"], done.put, lambda: True) for _ in range(decoder.capacity)]
    assert all(decoder.take(task, lambda _task: None) for task in tasks)
    assert not decoder.take(tasks[0], lambda _task: None), "it has as many as it may have"
    is_full.set()
    assert all(isinstance(done.get(timeout=60), list) for _ in tasks)
    decoder.close()
    assert decoder.num_decoded() == decoder.capacity
    # The first batch is whatever had come when the thread looked.
    assert [step.split()[0] for step in order[:3]] == ["start", "start", "finish"]
    assert order[-1].startswith("finish")
    assert sum(int(step.split()[1]) for step in order) == 2 * decoder.capacity
    under_way = list(accumulate(1 if step.startswith("start") else -1 for step in order))
    assert max(under_way) == 2
