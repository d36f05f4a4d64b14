import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from imgcls.cli import COMMANDS, main, parse_job
from imgcls.config.operations import Job
from imgcls.config.paths import flag_of
from imgcls.storage import resolver
from imgcls.storage.objects import put
from tests.scoring.tiny import write_images

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "pyarrow", "numpy", "botocore", "obstore", "duckdb", "PIL")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imgcls.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


def test_help_answers_in_half_a_second_and_imports_nothing_heavy() -> None:
    times_s = []
    for _ in range(3):
        start_s = time.monotonic()
        assert run("--help").returncode == 0
        times_s.append(time.monotonic() - start_s)
    assert min(times_s) < 0.5
    code = "import sys, imgcls.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in fields(COMMANDS[name].config):
        is_flag = not field.metadata.get("positional")
        assert not is_flag or flag_of(field.name) in text


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")))
def test_every_job_takes_the_flags_of_its_command(name: str) -> None:
    job = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for field in fields(COMMANDS[name].config):
        is_flag = not field.metadata.get("positional")
        assert not is_flag or f"--{field.name.replace('_', '-')}" in job.stdout


def test_jobs_that_can_be_submitted_are_those_there_are() -> None:
    names = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")}
    assert set(get_args(Job)) == names


def test_all_behind_the_job_is_the_jobs_own(capsys: pytest.CaptureFixture[str]) -> None:
    night = [
        "nightly",
        "--source",
        "s3://a",
        "--model",
        "s3://b",
        "--output",
        "s3://c/d",
        "--top-k",
        "3",
    ]
    flags = ["--name", "n", "--image", "i:1", "--service-account", "s"]
    for arguments in (["rayjob", *flags, *night], [*flags, "rayjob", *night],
                      ["rayjob", *flags, "--", *night]):  # fmt: skip
        assert main(["kubernetes", *arguments]) == 0
        assert f"python -m jobs.{' '.join(night)}" in capsys.readouterr().out.replace("\n   ", "")


def test_submit_and_manifest_lines_of_the_cluster_page_work_as_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "imgcls" / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    submits = re.findall(r"^    (?:[0-9* ]+ )?imgcls submit ([a-z].*)$", text, re.MULTILINE)
    assert len(submits) == 3
    for line in submits:
        name, *flags = shlex.split(line)
        parse_job(name, flags)
    [line] = re.findall(r"^    imgcls (kubernetes .*?)\|", text, re.MULTILINE)
    assert main(shlex.split(line)) == 0
    assert "kind: CronJob" in capsys.readouterr().out


def test_old_name_of_a_command_works_and_says_the_new_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["manifest", "rayjob", "--name", "x", "--image", "x:latest", "--service-account",
                 "x", "promote", "--model", "r/m@v1", "--alias", "a"]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert "imgcls manifest is called imgcls kubernetes now" in said
    assert "x:latest: is another image tomorrow" in said


def test_bare_imgcls_is_the_help_and_version_is_told() -> None:
    bare, version = run(), run("--version")
    assert (bare.returncode, version.returncode) == (0, 0)
    assert "nightly" in bare.stdout
    assert version.stdout.startswith("imgcls ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit"], "the following arguments are required: job"),
        (["submit", "nigthly"], "invalid choice: 'nigthly'"),
        (["submit", "--adress", "x", "nightly"], "invalid choice: 'x'"),
        (["submit", "nightly", "--sorce", "x"], "unknown --sorce, did you mean --source?"),
        (["kubernetes", "rayjob", "train"], "missing --name, --image, --service-account"),
        (["score", "--sorce", "x"], "unknown --sorce, did you mean --source?"),
        (["score", "--source", "x"], "missing --model, --output"),
        (["score", "--top-k", "many"], "invalid int value: 'many'"),
        (["score", "--executor", "spark"], "invalid choice: 'spark'"),
        (["scoer"], "invalid choice: 'scoer'"),
    ],
)
def test_wrong_flag_is_one_line_that_names_it(arguments: list[str], words: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.fixture(autouse=True)
def restored_signals() -> Iterator[None]:
    """`main` takes SIGTERM for itself; pytest wants it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[Path]:
    """A folder with what the bad-input cases need, to be found unchanged afterwards."""
    write_images(str(tmp_path / "images"), 3)
    (tmp_path / "empty").mkdir()
    put(str(tmp_path / "one-class/cat/a.png"), b"x")
    put(str(tmp_path / "list.csv"), b"path,label\na,b\n")
    put(str(tmp_path / "unknown.csv"), b"uri,label\na.png,zebra\n")
    put(str(tmp_path / "not-a-bundle/readme.txt"), b"x")
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-made is left behind"


def train(data: str, *more: str) -> list[str]:
    return ["train", "--data", data, "--registry", "{dir}/registry", "--name", "m", *more]


def score(source: str, model: str = "{dir}/not-a-bundle") -> list[str]:
    return ["score", "--source", source, "--model", model, "--output", "{dir}/out"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (score("{dir}/images"), "not-a-bundle"),
        (score("{dir}/images", "{dir}/registry/m@v7"), "registry/m"),
        (score("ftp://host/images"), "ftp"),
        (train("{dir}/nowhere"), "nowhere"),
        (train("{dir}/empty"), "empty"),
        (train("{dir}/one-class"), "cat"),
        (train("{dir}/list.csv"), "path"),
        (train("{dir}/images", "--arch", "resnet19"), "resnet19"),
        (train("{dir}/images", "--device", "cuda"), "cuda"),
        (train("{dir}/images", "--name", "a/b"), "a/b"),
        (["promote", "--model", "{dir}/registry/m@v1"], "registry/m"),
        (["verify", "--output", "{dir}/out"], "out"),
        (["evaluate", "--predictions", "{dir}/out", "--labels", "{dir}/unknown.csv"], "out"),
        (["rollback", "--output", "{dir}/out", "--run-id", "night"], "night"),
        (["gc", "--output", "{dir}/out", "--older-than", "soon"], "soon"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], words: str, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_s = time.monotonic()
    assert main([argument.replace("{dir}", str(inputs)) for argument in arguments]) == 2
    assert time.monotonic() - start_s < 15
    ended = capsys.readouterr()
    assert words in ended.err
    assert "Traceback" not in ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert result["exit_code"] == 2
    assert words in result["message"]


@pytest.mark.parametrize("command", ["score", "train"])
@pytest.mark.parametrize(
    ("environment", "exit_code", "words"),
    [
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a",
             "AWS_SECRET_ACCESS_KEY": "b"},
            1,
            "http://127.0.0.1:9",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 2, "AWS_ACCESS_KEY_ID"),
    ],
)  # fmt: skip
def test_store_out_of_reach_is_told_within_15_seconds(
    command: str,
    environment: dict[str, str],
    exit_code: int,
    words: str,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    # No profile of this machine may lend credentials to the test.
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    resolver.reset()
    arguments = train("s3://bucket/data") if command == "train" else score("s3://b/x", "s3://b/m")
    start_s = time.monotonic()
    assert main([word.replace("{dir}", str(inputs)) for word in arguments]) == exit_code
    assert time.monotonic() - start_s < 15
    ended = capsys.readouterr()
    assert words in ended.err
    assert "Traceback" not in ended.err
    resolver.reset()


def test_progress_goes_to_stderr_and_one_json_line_to_stdout(tmp_path: Path) -> None:
    from imgcls.model.registry import register
    from tests.scoring.tiny import make_bundle

    register(str(tmp_path / "registry"), "tiny", make_bundle())
    write_images(str(tmp_path / "images"), 3)
    ended = run(*(word.replace("{dir}", str(tmp_path)) for word in score(
        "{dir}/images", "{dir}/registry/tiny@v1")))  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    assert json.loads(ended.stdout)["rows"] == 3
    assert "scoring: 3/3 images" in ended.stderr


def run_as_process(job: str) -> subprocess.CompletedProcess[str]:
    """Run `job`, the body of a function, as the work of a process; stdout is a pipe."""
    code = (
        "import atexit, sys, threading, time\n"
        "from imgcls import cli\n"
        "class Kept:\n"
        "    def __del__(self): print('freed')\n"
        "kept = Kept()\n"
        "def late(words): time.sleep(0.2); print(words)\n"
        f"def job():\n    {job}\n"
        "cli._be_process_of(job)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_end_of_a_process_waits_for_all_but_freeing() -> None:
    ended = run_as_process(
        "threading.Thread(target=late, args=['thread']).start();"
        "atexit.register(late, 'handler'); print('line'); return 3"
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout.split() == ["line", "thread", "handler"]


def test_an_error_ends_a_process_as_python_does() -> None:
    ended = run_as_process("raise ValueError('nobody expected this')")
    assert ended.returncode == 1
    assert "nobody expected this" in ended.stderr
    assert ended.stdout.split() == ["freed"]
