"""--gpu-decode on, with nvImageCodec on the CPU in the GPU's place."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.config.scoring import ScoreConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.image.decoders.pool import Crop
from imgcls.image.gpu.nvjpeg import DeviceJpegDecoder
from imgcls.model.registry import register
from imgcls.scoring.driver import score
from imgcls.scoring.shard import gpu_decode
from imgcls.storage.objects import list_objects
from tests.scoring.tiny import comparable, make_bundle, published_rows, write_images


@pytest.fixture
def cpu_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu-decode is not installed")
    monkeypatch.setattr(gpu_decode, "DEVICES", {"cuda", "cpu"})


@pytest.fixture
def config(tmp_path: Path) -> ScoreConfig:
    """A run over JPEGs, progressive ones, PNGs, a damaged and a truncated file."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(150):
        rough = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        out = io.BytesIO()
        rough.resize((61, 47), Image.Resampling.BICUBIC).save(
            out, "PNG" if number % 10 == 0 else "JPEG", progressive=number % 10 == 1
        )
        (images / f"{number:03d}").write_bytes(out.getvalue())
    (images / "005").write_bytes(b"damaged")
    whole = (images / "006").read_bytes()
    (images / "006").write_bytes(whole[: len(whole) // 2])
    model = register(str(tmp_path / "registry"), "m", make_bundle()).uri
    return ScoreConfig(
        str(images), model, str(tmp_path / "out"), shard_size=64, device="cpu", run_id="night"
    )


def with_gpu(config: ScoreConfig) -> ScoreConfig:
    return ScoreConfig(**{**vars(config), "gpu_decode": "on"})


def test_rows_are_those_of_a_run_without_it(
    config: ScoreConfig, cpu_decodes: None, tmp_path: Path
) -> None:
    expected = ScoreConfig(**{**vars(config), "output": str(tmp_path / "expected")})
    assert score(expected)["status_counts"] == {"ok": 148, "corrupt": 1, "unsupported": 1}
    result = score(with_gpu(config))
    rows, expected_rows = published_rows(config.output), published_rows(expected.output)
    assert comparable(rows) == comparable(expected_rows)
    assert result["stages"]["decode_gpu"]["items"] > 0
    decoded = sum(result["stages"][stage]["items"] for stage in ("decode", "decode_gpu"))
    assert decoded == 150, "each image is counted once"
    assert result["engines"] == ["eager fp32 on cpu, some JPEGs decoded there"]
    assert "the GPU decoded" in result["bottleneck"]
    kept = Path(config.output, "_runs", "night", "gpu_decode.json")
    assert json.loads(kept.read_bytes()) == {
        "images": 118,
        "equal_answers": 118,
        "max_prob_change": 0.0,
        "max_pixel_change": 0,
        "mean_pixel_change": 0.0,
    }


def test_answers_that_change_are_refused_with_the_figures(
    config: ScoreConfig, cpu_decodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = DeviceJpegDecoder.decode

    def decode_negatives(self: DeviceJpegDecoder, files: list[bytes]) -> list[list[Crop] | None]:
        return [
            crops
            and [Crop(255 - crop.x_CHW, crop.width_px, crop.height_px, None) for crop in crops]
            for crops in decode(self, files)
        ]

    monkeypatch.setattr(DeviceJpegDecoder, "decode", decode_negatives)
    with pytest.raises(BundleError, match=r"refused: only \d+ of 118 images get the same answer"):
        score(with_gpu(config))
    written = [info.uri for info in list_objects(config.output)]
    assert not [uri for uri in written if "attempts" in uri or "commits" in uri]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="--gpu-decode on, not off"):
        score(config)
    assert score(replace(config, run_id="without"))["rows"] == 150


def test_run_without_a_plain_jpeg_is_decoded_as_ever(
    config: ScoreConfig, cpu_decodes: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(str(tmp_path / "pngs"), 20)
    caplog.set_level("INFO")
    result = score(ScoreConfig(**{**vars(with_gpu(config)), "source": str(tmp_path / "pngs")}))
    assert result["status_counts"] == {"ok": 20}
    assert result["engines"] == ["eager fp32 on cpu"]
    assert "none is for the GPU" in caplog.text


def test_without_a_gpu_the_flag_is_refused(config: ScoreConfig) -> None:
    with pytest.raises(ConfigError, match="--gpu-decode on: the model runs on cpu here"):
        score(with_gpu(config))
