"""The decoder pool inside a Ray actor: other signals, another working folder, another sys.path."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.image.decoders.pool import decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec


@pytest.mark.ray
def test_a_ray_actor_decodes_as_this_process_does_and_leaves_no_child() -> None:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {
        "PYTHONPATH": str(Path(__file__).parents[2])}})  # fmt: skip
    try:

        @ray.remote
        class Actor:
            def decode(self, files: list[bytes]) -> tuple[list[Any], list[int]]:
                from imgcls.image.decoders.pool import DecoderPool

                with DecoderPool(DecodeSpec(), PreprocessSpec.for_image_px(48), 2) as pool:
                    results = sorted(pool.decode_many(enumerate(files)), key=lambda r: r.index)
                    return [r.crops[0].x_CHW for r in results], pool.pids()

        rng = np.random.default_rng(0)
        files = []
        for _ in range(20):
            out = io.BytesIO()
            noise = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
            Image.fromarray(noise).save(out, "JPEG")
            files.append(out.getvalue())
        crops, pids = ray.get(Actor.remote().decode.remote(files), timeout=60)
        for data, crop in zip(files, crops, strict=True):
            [expected] = decode_one(data, DecodeSpec(), PreprocessSpec.for_image_px(48))
            np.testing.assert_array_equal(crop, expected.x_CHW)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        ray.shutdown()
