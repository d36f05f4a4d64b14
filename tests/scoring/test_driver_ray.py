import subprocess
import sys
from pathlib import Path

import pytest

from imgcls.cluster import ClusterResources
from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ConfigError
from imgcls.scoring.driver import lay_out_actors, score
from tests.scoring.tiny import comparable, published_rows, write_images

NUM_IMAGES = 200


@pytest.mark.parametrize(
    ("resources", "asked", "laid_out"),
    [
        ((1, 2, 0), (0, 0), (1, 1, 0)),
        ((1, 16, 1), (0, 0), (1, 15, 1)),
        ((4, 33, 0), (0, 0), (4, 8, 0)),
        ((4, 33, 0), (8, 0), (8, 4, 0)),
        ((3, 17, 2), (0, 0), (2, 8, 1)),
        ((1, 1, 0), (0, 0), (1, 1, 0)),
    ],
)
def test_actors_follow_the_cluster_and_leave_a_cpu(
    resources: tuple[int, int, int], asked: tuple[int, int], laid_out: tuple[int, int, int]
) -> None:
    layout = lay_out_actors(ClusterResources(*resources), *asked)
    assert (layout.num_actors, layout.cpus_per_actor, layout.gpus_per_actor) == laid_out


def test_actors_that_do_not_fit_are_refused_with_what_the_cluster_has() -> None:
    with pytest.raises(ConfigError, match=r"8 actors of 4 CPUs .* 16 CPUs .* 0 GPUs on 2 nodes"):
        lay_out_actors(ClusterResources(2, 16, 0), 8, 4)


@pytest.mark.ray
@pytest.mark.s3
def test_ray_and_local_write_identical_rows(model_ref: str, s3_bucket: str) -> None:
    write_images(f"{s3_bucket}/images", NUM_IMAGES)
    for executor in ("local", "ray"):
        score(
            ScoreConfig(
                f"{s3_bucket}/images",
                model_ref,
                f"{s3_bucket}/{executor}",
                run_id="night",
                executor=executor,  # type: ignore[arg-type]
            )
        )
    local = comparable(published_rows(f"{s3_bucket}/local"))
    assert len(local) == NUM_IMAGES
    assert comparable(published_rows(f"{s3_bucket}/ray")) == local


def test_local_executor_never_imports_ray(model_ref: str, tmp_path: Path) -> None:
    write_images(str(tmp_path / "bucket"), 3)
    code = (
        "import sys; from imgcls.config import ScoreConfig;"
        "from imgcls.scoring.driver import score;"
        f"score(ScoreConfig({str(tmp_path / 'bucket')!r}, {model_ref!r}, {str(tmp_path / 'o')!r},"
        " executor='local')); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
