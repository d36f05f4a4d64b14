"""The command line: one subcommand per job, its flags the fields of the job's config class.

In: argv. Out: an exit code; one JSON object as the last line of stdout, also when the job failed;
on a terminal words instead, but for --json (`kubernetes` prints its YAML instead). A field with the
metadata "positional" is an argument without a flag; of type tuple, it takes all that follows.
Invariant: nothing heavy is imported before a command is chosen, so `imgcls --help` answers at once.
"""

import argparse
import atexit
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NoReturn

from imgcls import logs
from imgcls.config import labelling, models, operations, scoring, training
from imgcls.config.paths import refuse_empty
from imgcls.errors import ImgclsError, RunStoppedError
from imgcls.terminal.flags import Parser, add_flags
from imgcls.terminal.result import Out

_RESUMABLE = ("train", "score", "nightly")
_AGAIN_AFTER_S = 0.05
_FROM_START = "; the same command again does it from the start"

log = logging.getLogger("imgcls.cli")  # __name__ is __main__ under `python -m`


@dataclass(frozen=True)
class Command:
    """A job: its flags, and where the function is that does it."""

    config: type
    function: str
    tells: tuple[str, ...] | None = None
    """What of its result a terminal shows, beside its `lines`; None for all that is short, and ()
    of a command that shows its findings itself."""


_OF_NIGHT: Final = ("difference", "output", "page", "elapsed_s")
# In the order in which a newcomer needs them, as README has them.
COMMANDS = {
    "demo": Command(operations.DemoConfig, "imgcls.demo.demo:demo", ()),
    "doctor": Command(operations.DoctorConfig, "imgcls.operations.doctor:doctor", ()),
    "train": Command(
        training.TrainConfig, "imgcls.training.driver:train", ("model", "uri", "total_s")
    ),
    "import": Command(models.ImportConfig, "imgcls.drift.imported:import_model"),
    "evaluate": Command(models.EvaluateConfig, "imgcls.evaluation.evaluate:evaluate"),
    "calibrate": Command(models.CalibrateConfig, "imgcls.evaluation.calibrate:calibrate"),
    "promote": Command(models.PromoteConfig, "imgcls.model.registry:promote_version"),
    "models": Command(models.ModelsConfig, "imgcls.model.catalog:list_models", ()),
    "diff": Command(models.DiffConfig, "imgcls.diff.driver:diff", ("page", "diff")),
    "quantize": Command(scoring.QuantizeConfig, "imgcls.scoring.quantize:quantize"),
    "reference": Command(scoring.ReferenceConfig, "imgcls.scoring.reference:reference"),
    "export": Command(models.ExportConfig, "imgcls.model.onnx_export:export"),
    "plan": Command(scoring.PlanConfig, "imgcls.scoring.next_night:show_plan"),
    "nightly": Command(scoring.NightlyConfig, "imgcls.nightly:nightly", _OF_NIGHT),
    "score": Command(scoring.ScoreConfig, "imgcls.scoring.driver:score", _OF_NIGHT),
    "release": Command(scoring.ReleaseConfig, "imgcls.scoring.publishing.hold:release"),
    "verify": Command(scoring.VerifyConfig, "imgcls.scoring.publishing.verify:verify"),
    "rollback": Command(scoring.RollbackConfig, "imgcls.scoring.publishing.retention:rollback"),
    "gc": Command(scoring.GcConfig, "imgcls.scoring.publishing.retention:gc"),
    "report": Command(scoring.ReportConfig, "imgcls.report.make:report"),
    "results": Command(scoring.ResultsConfig, "imgcls.results.driver:results"),
    "queue": Command(labelling.QueueConfig, "imgcls.labelling.queue:queue"),
    "labels": Command(labelling.LabelsConfig, "imgcls.labelling.answers:labels"),
    "submit": Command(operations.SubmitConfig, "imgcls.operations.submit:submit"),
    "kubernetes": Command(operations.KubernetesConfig, "imgcls.operations.kubernetes:kubernetes"),
    "bench": Command(operations.BenchConfig, "imgcls.bench.driver:bench"),
}
# Commands as an earlier release named them, with a sentence on stderr.
RENAMED: Final = {"manifest": "kubernetes"}


def run() -> NoReturn:
    """Be the process of `imgcls COMMAND ...`."""
    _be_process_of(main)


def run_job(name: str) -> NoReturn:
    """Be the process of `python -m jobs.NAME ...`."""
    _be_process_of(lambda: _run(name, _parse(name, None)))


def main(argv: list[str] | None = None) -> int:
    """Run `imgcls COMMAND ...` and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words[0] in RENAMED:
        sys.stderr.write(f"imgcls {words[0]} is called imgcls {RENAMED[words[0]]} now\n")
        words[0] = RENAMED[words[0]]
    parser = Parser(
        prog="imgcls",
        description="Train an image classifier; score whole folders or buckets with it.\n"
        "Begin with `imgcls demo`; with images of your own: train, promote, nightly, report.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    asked_for = next((word for word in words if not word.startswith("-")), "")
    for name, command in COMMANDS.items():
        summary = _first_line(command)
        parsers[name] = commands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False
        )
        if name == asked_for:  # those of all take a tenth of the time of --help
            add_flags(parsers[name], command.config, name)
    arguments, unknown = parser.parse_known_args(words)
    values = vars(arguments)
    name = values.pop("command")
    parsers[name].checked(values, unknown)
    if "job" in values:
        # What another machine would refuse in some minutes is refused here, at once.
        values["arguments"] = tuple(values["arguments"])
        parse_job(values["job"], values["arguments"])
    return _run(name, values)


def parse_job(name: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return the flags of one job as values, or exit 2 for what `python -m jobs.NAME` refuses."""
    values = _parse(name, argv)
    del values["json"]
    return values


def _parse(name: str, argv: Sequence[str] | None) -> dict[str, Any]:
    parser = Parser(
        prog=f"python -m jobs.{name}", description=_first_line(COMMANDS[name]), allow_abbrev=False
    )
    add_flags(parser, COMMANDS[name].config, name)
    arguments, unknown = parser.parse_known_args(argv)
    return parser.checked(vars(arguments), unknown)


class _Version(argparse.Action):
    """Tells the version; what finds it out takes as long to import as all of the help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it and end."""
        from importlib.metadata import version

        sys.stdout.write(f"imgcls {version('imgcls')}\n")
        parser.exit()


def _first_line(command: Command) -> str:
    return str(command.config.__doc__).splitlines()[0]


def _run(name: str, arguments: dict[str, Any]) -> int:
    """Run a job; every way it can end becomes an exit code and a result."""
    command = COMMANDS[name]
    out = Out(command.tells, as_json=arguments.pop("json"))
    logs.configure(result_is_shown=out.is_shown_below_the_log)
    stop = _Stop(name)
    module, function = command.function.split(":")
    try:
        stop.install()
        config = command.config(**arguments)
        refuse_empty(config)
        result = getattr(importlib.import_module(module), function)(config)
    except (RunStoppedError, KeyboardInterrupt) as error:
        _leave_stopped(stop.as_error(error), out)
    except ImgclsError as error:
        return _fail(error, error.exit_code, out)
    except Exception as error:  # the top of a job: what nobody expected is told whole
        if stop.signal_name:  # a library made an error of its own of the signal, as DuckDB does
            _leave_stopped(stop.as_error(error), out)
        log.exception("unexpected error")
        return _fail(error, 1, out)
    if result is None:  # the command has written its output itself
        return 0
    out.show(result)
    return int(result.get("exit_code", 0))


def _be_process_of(job: Callable[[], int]) -> NoReturn:
    """Run a job and end with its exit code, without the second that it takes to free torch."""
    ended_with: list[int] = []
    # The handler that came first is called last: all others, and all threads, are done by then.
    atexit.register(_leave, ended_with)
    try:
        ended_with.append(job())
        # It is done: Ctrl-C only ends the waiting for threads that write last words.
        signal.signal(signal.SIGINT, lambda *_: _leave(ended_with))
    except KeyboardInterrupt:  # before a command was chosen, or after it was done
        logs.configure()
        _leave_stopped(_Stop("").as_error(KeyboardInterrupt()), Out())
    raise SystemExit(ended_with[0])


def _leave(ended_with: list[int]) -> None:
    if ended_with:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended_with[0])


class _Stop:
    """What SIGTERM and Ctrl-C do to a command: end it, with words, resumable."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.signal_name = ""

    def install(self) -> None:
        """Take both signals; Ctrl-C only where it is not ignored, as in a shell's background."""
        sys.unraisablehook = self._send_again
        signal.signal(signal.SIGTERM, self._on_terminate)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_interrupt)

    def as_error(self, error: BaseException) -> RunStoppedError:
        """Return the error to end with: one of ours as it is."""
        if isinstance(error, RunStoppedError):
            return error
        return RunStoppedError(self._words("Ctrl-C"))

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = "SIGTERM"
        if not _is_importing(frame):
            raise RunStoppedError(self._words(self.signal_name))
        _send_later(number)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = "Ctrl-C"
        if not _is_importing(frame):
            raise KeyboardInterrupt
        _send_later(number)

    def _send_again(self, ignored: "sys.UnraisableHookArgs") -> None:
        """Repeat a signal whose exception Python dropped, as in a destructor or a callback."""
        if self.signal_name and issubclass(ignored.exc_type, KeyboardInterrupt | RunStoppedError):
            # Later: what is raised in this very hook is dropped too.
            _send_later(signal.SIGINT if self.signal_name == "Ctrl-C" else signal.SIGTERM)
        else:
            sys.__unraisablehook__(ignored)

    def _words(self, signal_name: str) -> str:
        again = "; start the same command again to finish the run"
        if self._command == "score":
            again += " (with --run-id and the id of the run, which the log names)"
        return f"stopped by {signal_name}{again if self._command in _RESUMABLE else _FROM_START}"


def _is_importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported: C++ of torch's ends the process at an exception."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _send_later(number: int) -> None:
    timer = threading.Timer(_AGAIN_AFTER_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _leave_stopped(error: RunStoppedError, out: Out) -> NoReturn:
    """End at once: what shards in flight have not committed, the next start does again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = _fail(error, RunStoppedError.exit_code, out)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fail(error: BaseException, exit_code: int, out: Out) -> int:
    message = str(error) or type(error).__name__
    log.error("%s", message)
    out.show_failure({"error": type(error).__name__, "message": message, "exit_code": exit_code})
    return exit_code


if __name__ == "__main__":
    run()
