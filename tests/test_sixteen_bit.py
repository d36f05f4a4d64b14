"""A 16-bit grey data set from training to rows: what other tools turn into white paper."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.scoring.driver import score
from imgcls.storage.objects import put, read
from imgcls.training.driver import train

# Both far above 255, where a clipping decoder sees one and the same white.
LEVELS = {"dim": (2_000, 20_000), "dense": (40_000, 60_000)}


def sixteen_bit_png(low: int, high: int, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(low, high, (32, 32)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_sixteen_bit_greys_train_and_score_by_their_real_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, (low, high) in LEVELS.items():
        for number in range(24):
            put(str(tmp_path / "data" / name / f"{number}.png"), sixteen_bit_png(low, high, rng))
        for number in range(8):
            put(str(tmp_path / "in" / f"{name}-{number}.png"), sixteen_bit_png(low, high, rng))
    clipped = {
        Image.open(io.BytesIO(read(str(path)))).convert("L").getextrema()
        for path in (tmp_path / "in").iterdir()
    }
    assert clipped == {(255, 255)}, "the peers' way sees white paper only"
    trained = train(
        TrainConfig(
            data=str(tmp_path / "data"),
            registry=str(tmp_path / "registry"),
            name="xray",
            arch="simple_cnn",
            image_px=32,
            color="gray",
            epochs=4,
            batch_size=8,
        )
    )
    assert trained["test_accuracy"] == 1.0
    result = score(
        ScoreConfig(str(tmp_path / "in"), trained["model"], str(tmp_path / "out"), executor="local")
    )
    rows = pq.read_table(result["parts"][0]).to_pylist()
    assert len(rows) == 16
    for row in rows:
        assert row["class_name"] == Path(row["uri"]).name.partition("-")[0]
