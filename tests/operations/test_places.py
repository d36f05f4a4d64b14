"""A job that will run elsewhere takes no place that is another one there."""

from pathlib import Path

import pytest

from imgcls.config.operations import KubernetesConfig, SubmitConfig
from imgcls.errors import ConfigError
from imgcls.operations.kubernetes import kubernetes
from imgcls.operations.submit import submit

SCORE = ("--source", "s3://b/in", "--model", "s3://b/reg/m@v1", "--output", "s3://b/out")


@pytest.mark.parametrize(
    ("job", "more", "flag"),
    [
        ("score", ("--source", "in"), "--source in"),
        ("score", ("--source", "*.png"), r"--source \*.png"),
        ("score", ("--model", "reg/m@v1"), "--model reg/m@v1"),
        ("score", ("--output=out",), "--output out"),
        ("nightly", ("--output", "~/out"), "--output ~/out"),
        ("train", ("--data", "labels.csv"), "--data labels.csv"),
        ("train", ("--registry", "reg"), "--registry reg"),
        ("train", ("--weights", "w.pt"), "--weights w.pt"),
        ("train", ("--mlflow-uri", "sqlite:///runs.db"), "--mlflow-uri sqlite:///runs.db"),
        ("evaluate", ("--labels", "../l.csv"), r"--labels \.\./l.csv"),
        ("promote", ("--model", "reg/m@v1"), "--model reg/m@v1"),
    ],
)
def test_relative_places_of_a_job_are_refused_before_anything_leaves(
    job: str, more: tuple[str, ...], flag: str
) -> None:
    arguments = (SCORE if job in ("score", "nightly") else ()) + more
    with pytest.raises(ConfigError, match=f"{flag}: a relative path"):
        submit(SubmitConfig(job=job, arguments=arguments))  # type: ignore[arg-type]
    config = KubernetesConfig(
        kind="rayjob", job=job, name="n", image="i:1", service_account="s", arguments=arguments
    )  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=flag):
        kubernetes(config)


def test_what_is_uploaded_may_be_read_by_its_name_there(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").touch()
    config = SubmitConfig(
        job="train",
        working_dir=str(tmp_path),
        arguments=("--data", "labels.csv", "--registry", "reg", "--name", "m"),
    )
    # Not the data, which goes along: what is written there would be lost.
    with pytest.raises(ConfigError, match="--registry reg: a relative path ends with the job"):
        submit(config)
