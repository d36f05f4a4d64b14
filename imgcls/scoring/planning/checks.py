"""What is refused before anything is read or written, and on continuing with a run.

In: flags, and the plan of a run that is there. Out: ConfigError, or nothing. Invariant: `score`,
`nightly` and `plan` refuse the same flags.
"""

from datetime import date
from typing import Final

from imgcls.config.choices import check_name
from imgcls.config.paths import canonical_value
from imgcls.config.scoring import ScoreConfig
from imgcls.config.selection import Selection
from imgcls.config.source_options import listing_flags
from imgcls.data.tables.shape import TableShape
from imgcls.errors import ConfigError
from imgcls.results.delta import require_delta
from imgcls.runs.plan import Plan
from imgcls.runs.row_options import RowOptions
from imgcls.scoring.planning.carry import parse_unit
from imgcls.scoring.planning.listing import covers
from imgcls.scoring.planning.shard_sizes import MAX_SHARD_SIZE, MIN_SHARD_SIZE
from imgcls.storage.uri import is_inside, join

_PLACES: Final = ("source", "model")


def check_config(config: ScoreConfig) -> None:
    """Refuse flags that cannot work.

    Raises:
        ConfigError: names the flag, its value and what it takes.
    """
    if config.run_id:
        check_name(config.run_id, "--run-id")
    if config.date:
        try:
            written = date.fromisoformat(config.date).isoformat()
        except ValueError:
            written = ""
        if written != config.date:
            raise ConfigError(f"--date {config.date}: not a date; write it as 2026-11-22")
    if config.shard_size and not MIN_SHARD_SIZE <= config.shard_size <= MAX_SHARD_SIZE:
        raise ConfigError(
            f"--shard-size {config.shard_size}: must be {MIN_SHARD_SIZE} to {MAX_SHARD_SIZE}"
        )
    if config.top_k < 1:
        raise ConfigError(f"--top-k {config.top_k}: must be at least 1")
    if config.batch_size < 0:
        raise ConfigError(f"--batch-size {config.batch_size}: must be 1 or more, or 0 to derive it")
    if not 0 <= config.max_failed_fraction <= 1:
        raise ConfigError(f"--max-failed-fraction {config.max_failed_fraction}: must be 0 to 1")
    _check_unit(config)
    if config.delta:
        require_delta("--delta")
    _refuse_own_output(config)
    Selection.of(config)
    TableShape.of(config)


def _check_unit(config: ScoreConfig) -> None:
    if config.unit:
        parse_unit(config.unit)
    elif config.unit_rule != "auto":
        raise ConfigError(f"--unit-rule {config.unit_rule}: needs --unit KEY, what is pooled by it")


def _refuse_own_output(config: ScoreConfig) -> None:
    for source in config.sources:
        is_inside_links = "*" not in source and is_inside(config.output, source)
        if is_inside_links or covers(source, join(config.output, "part-00000.parquet")):
            raise ConfigError(
                f"--output {config.output} lies inside --source {source}: predictions would "
                "be scored as images. Choose an output beside the source."
            )


def check_same_run(config: ScoreConfig, plan: Plan) -> None:
    """Refuse to resume a night, or a run with flags that would change its rows.

    Raises:
        ConfigError: names the flag, and both of its values.
    """
    if plan.is_night:
        raise ConfigError(
            f"run {plan.run_id} is a night: continue it by nightly, which holds the lease of the "
            "output and knows what other nights published"
        )
    # Plans of before flags were made canonical have places as they were typed.
    planned = {name: canonical_value(ScoreConfig, name, getattr(plan, name)) for name in _PLACES}
    changed = next((name for name in _PLACES if planned[name] != getattr(config, name)), "")
    changed = changed or plan.row_options.difference(RowOptions.of(config))
    if changed:
        before = planned[changed] if changed in planned else getattr(plan.row_options, changed)
        raise ConfigError(
            f"run {plan.run_id} was planned with --{changed.replace('_', '-')} {before}, not "
            f"{getattr(config, changed)}: resume it with the same flags, or choose another --run-id"
        )
    if listing_flags(plan.config) != listing_flags(vars(config)):
        raise ConfigError(
            f"run {plan.run_id} was planned with other flags of what is meant (--include, "
            "--exclude, --where, --since, --columns, --root): resume it with the same ones"
        )
    if config.date and config.date != plan.date:
        raise ConfigError(
            f"run {plan.run_id} was planned with --date {plan.date}, not {config.date}: its rows "
            f"are those of {plan.date}. For another day choose another --run-id."
        )
