"""What a registry holds: `imgcls models`.

In: REGISTRY. Out: names, versions, aliases with their history, headline numbers with intervals, and
where each version came from; as a table on stderr and as JSON. Invariant: no weights are read, and
a version that cannot be read is listed with the reason instead of ending the list.
"""

import sys
from dataclasses import asdict
from typing import Any

from imgcls.config.models import ModelsConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.inert import in_log
from imgcls.metrics.measures import HEADLINES
from imgcls.model import aliases
from imgcls.model.bundle_files import FACTS, parse_facts, parse_sums, read_file, read_sums
from imgcls.model.registry import list_names, list_versions
from imgcls.storage.uri import canonical, join

# Of several splits the one that decided nothing comes first.
_SPLITS = ("test", "val")


def list_models(config: ModelsConfig) -> dict[str, Any]:
    """Run `imgcls models`.

    Returns:
        registry, and models: name, aliases (alias -> version, digest, promoted_at, promoted_by,
        reference, from_version, forced, undone, history), versions (version, uri, digest,
        created_at, arch, num_classes, numbers, came_from, license, verdict; or error).

    Raises:
        ConfigError: there is no model there, or not the one that was asked for.
    """
    registry = canonical(config.registry)
    names = [config.name] if config.name else list_names(registry)
    models = [_model(registry, name) for name in names]
    models = [model for model in models if model["versions"]]
    if not models:
        what = f"no model {config.name!r}" if config.name else "no models"
        raise ConfigError(f"--registry {registry}: there are {what} with a complete version there")
    _show(models)
    return {"registry": registry, "models": models}


def _model(registry: str, name: str) -> dict[str, Any]:
    folder = join(registry, name)
    found = {
        alias: asdict(stands.now) | {"history": [asdict(change) for change in stands.history]}
        for alias, stands in aliases.list_aliases(folder).items()
    }
    versions = [
        {"version": one.version, "uri": one.uri, "digest": one.digest} | _facts(one.uri)
        for one in list_versions(registry, name)
    ]
    return {"name": name, "aliases": found, "versions": versions}


def _facts(uri: str) -> dict[str, Any]:
    try:
        sums = parse_sums(read_sums(uri), uri)
        facts = parse_facts(read_file(uri, FACTS, sums[FACTS]), join(uri, FACTS))
    except BundleError as error:
        return {"error": str(error)}
    return {
        "created_at": facts["created_at"],
        "arch": facts["arch"],
        "num_classes": len(facts["class_names"]),
        "numbers": headline(facts["metrics"]),
        "came_from": _came_from(facts),
        "license": facts["origin"].get("license", ""),
        "verdict": (facts["verdict"] or {}).get("answer", ""),
    }


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the split that decided nothing, each with its interval, if known."""
    split = next((name for name in _SPLITS if name in metrics), "")
    values = metrics.get(split, {})
    intervals = values.get("intervals", {})
    numbers = {
        name: {"value": values[name], "interval": intervals.get(name)}
        for name in (each.name for each in HEADLINES if each.in_list)
        if values.get(name) is not None
    }
    return {"split": split, **numbers} if numbers else {}


def _came_from(facts: dict[str, Any]) -> str:
    origin, training = facts["origin"], facts["training"]
    if origin:
        return f"imported from {origin.get('source', 'elsewhere')}"
    count = training.get("num_images", {}).get("train")
    images = f" on {count} images" if count else ""
    return f"trained by imgcls{images}"


def _show(models: list[dict[str, Any]]) -> None:
    """Print one line per version to stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("model", "aliases", "created", "arch", "numbers (95 % interval)", "came from"):
        table.add_column(title, overflow="fold")
    for model in models:
        for version in reversed(model["versions"]):
            standing = [
                alias for alias, now in model["aliases"].items()
                if now["version"] == version["version"]
            ]  # fmt: skip
            cells = (
                f"{model['name']}@v{version['version']}",
                ", ".join(standing),
                *_cells(version),
            )
            table.add_row(*(in_log(cell) for cell in cells))
    console = Console(file=sys.stderr, markup=False, highlight=False)
    console.print(table, markup=False)


def _cells(version: dict[str, Any]) -> tuple[str, str, str, str]:
    if "error" in version:
        return "", "", "cannot be read", version["error"]
    numbers = dict(version["numbers"])
    split = numbers.pop("split", "")
    shown = [f"{name} {_shown(number)}" for name, number in numbers.items()]
    where = f"{split}: " if shown else "not measured"
    if version["verdict"] == "not_better":
        where = f"NOT BETTER THAN GUESSING; {where}"
    origin = version["came_from"]
    if version["license"]:
        origin += f" (licence: {version['license']})"
    return version["created_at"][:16], version["arch"], where + ", ".join(shown), origin


def _shown(number: dict[str, Any]) -> str:
    bounds = number["interval"]
    interval = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if isinstance(bounds, list) else ""
    return f"{number['value']:.3f}{interval}"
