"""The command `imgcls diff`, top to bottom: two runs -> pairs -> numbers -> a page and a record.

In: a DiffConfig. Out: the result as plain values. Invariant: what is compared are published rows;
two models that are named are run first, by `score`, as any night would run them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from imgcls.config.models import DiffConfig
from imgcls.config.paths import canonical_uri
from imgcls.config.scoring import ScoreConfig
from imgcls.config.source_options import listing_flags
from imgcls.data.keys import Key, as_name
from imgcls.diff.labelled import Label, read_labels
from imgcls.diff.numbers import Paired, agreement, paired_test
from imgcls.diff.page import write_page
from imgcls.diff.pairs import Bools, Pairs, Side, carried_columns, read_pairs
from imgcls.errors import ConfigError
from imgcls.model.bundle import read_bundle
from imgcls.runs.diff_record import DiffRecord
from imgcls.runs.published import Night, list_published, pick_published, read_manifest
from imgcls.runs.run import Run
from imgcls.scoring.driver import new_run_id, score
from imgcls.sources.members import Member
from imgcls.storage.objects import put
from imgcls.storage.records import record_text

_FOLDER: Final = re.compile(r"(.+)/date=[^/]+/run=([^/]+)/?")
_NUM_NAMED: Final = 20  # groups and slices that the result names one by one


@dataclass(frozen=True)
class Found:
    """What a comparison found."""

    record: DiffRecord
    agreement: float
    agreement_interval: list[float] | None
    by_class: Counter[str]
    by_decision: Counter[str]
    by_group: Counter[str]
    """Flips in each group that has any."""
    by_slice: dict[str, dict[str, int]]
    num_gained: int
    num_changed: int
    paired: Paired | None

    def lines(self) -> list[str]:
        """Return it in words, the most important first."""
        record, low_high = self.record, self.agreement_interval
        between = f" ({low_high[0]:.2%} to {low_high[1]:.2%})" if low_high else ""
        lines = [
            f"{record.num_flips:,} of {record.num_compared:,} images get another answer: "
            f"{self.agreement:.2%}{between} keep theirs"
        ]
        if record.num_lost or self.num_gained:
            lines.append(
                f"{record.num_lost:,} images get no answer any more, {self.num_gained:,} get one "
                "for the first time"
            )
        if self.num_changed:
            lines.append(f"{self.num_changed:,} images were overwritten in between: not compared")
        return [*lines, *self._paired_lines()]

    def _paired_lines(self) -> list[str]:
        if self.paired is None:
            return ["No labelled image that is new to both models: who is right is not known"]
        paired, low_high = self.paired, self.paired.difference_interval
        between = f" ({low_high[0]:+.2%} to {low_high[1]:+.2%})" if low_high else ""
        words = {
            "better": "The second model is right more often",
            "worse": "The second model is right less often",
            "no_difference": "These images show no difference",
        }[paired.verdict]
        return [
            f"{words}: on {paired.num_images:,} labelled images that are new to both the first is "
            f"right on {paired.accuracy_a:.2%}, the second on {paired.accuracy_b:.2%}, "
            f"{paired.difference:+.2%}{between}; {paired.only_a_right:,} only the first, "
            f"{paired.only_b_right:,} only the second (McNemar's exact p {paired.p_value:.3g})"
        ]


def diff(config: DiffConfig) -> dict[str, Any]:
    """Compare two published runs, or two models.

    Raises:
        ConfigError: a run or model that is not there, or runs without an image in common.
    """
    first, second = _sides(config)
    pairs = read_pairs(first, second)
    labels: dict[str, Label] = {}
    if config.data:
        labels = read_labels(config, [read_bundle(s.manifest.model_uri) for s in (first, second)])
    found = compare(config, first, second, pairs, labels)
    page = write_page(first, second, pairs, found.lines(), found.by_class, found.by_decision)
    uri = page.removesuffix(".html") + ".json"
    put(uri, record_text(found.record))
    return {
        "lines": found.lines(),
        "diff": uri,
        "page": page,
        **asdict(found.record),
        "agreement": found.agreement,
        "agreement_interval": found.agreement_interval,
        "num_gained": found.num_gained,
        "num_changed": found.num_changed,
        "by_class": dict(found.by_class.most_common()),
        "by_decision": dict(found.by_decision.most_common()),
        "num_groups_with_flips": len(found.by_group),
        "by_group": dict(found.by_group.most_common(_NUM_NAMED)),
        "by_slice": found.by_slice,
        "paired": None if found.paired is None else asdict(found.paired)
        | {"verdict": found.paired.verdict},
    }  # fmt: skip


def compare(
    config: DiffConfig, first: Side, second: Side, pairs: Pairs, labels: dict[str, Label]
) -> Found:
    """Return the numbers of a comparison."""
    both_N, flip_N = pairs.both_N, pairs.flip_N
    uris = pairs.paths()
    groups = _values(config.group, "--group", pairs, uris)
    slices = _values(config.slice_by, "--slice-by", pairs, uris)
    for index, uri in enumerate(uris):
        if uri in labels:
            groups[index] = labels[uri].group or groups[index]
            slices[index] = labels[uri].slice_name or slices[index]
    # An image without a group is one by itself.
    units = [group or uri for group, uri in zip(groups, uris, strict=True)]
    share, low_high = agreement(~flip_N[both_N], _of(units, both_N))
    paired = _paired(pairs, uris, units, labels)
    record = DiffRecord(
        first_run=first.run.run_id,
        second_run=second.run.run_id,
        first_model=first.manifest.model,
        second_model=second.manifest.model,
        first_digest=first.manifest.model_digest,
        second_digest=second.manifest.model_digest,
        num_compared=int(both_N.sum()),
        num_flips=int(flip_N.sum()),
        num_lost=int(pairs.lost_N.sum()),
        num_labelled=0 if paired is None else paired.num_images,
        verdict="unknown" if paired is None else paired.verdict,
    )
    by_slice = {
        name: {"num_images": count, "num_flips": Counter(_of(slices, flip_N))[name]}
        for name, count in Counter(_of(slices, both_N)).most_common(_NUM_NAMED)
        if name
    }
    return Found(
        record=record,
        agreement=share,
        agreement_interval=low_high,
        by_class=_changes(pairs, "answer", pairs.class_flip_N),
        by_decision=_changes(pairs, "decision", pairs.decision_flip_N),
        by_group=Counter(group for group in _of(groups, flip_N) if group),
        by_slice=by_slice,
        num_gained=int(pairs.gained_N.sum()),
        num_changed=int(pairs.changed_N.sum()),
        paired=paired,
    )


def _sides(config: DiffConfig) -> tuple[Side, Side]:
    """Return both runs; those of models are made first."""
    asked = (config.first, config.second)
    are_models = ["/" in text and not _FOLDER.fullmatch(text.rstrip("/")) for text in asked]
    if any(are_models) != all(are_models):
        raise ConfigError(
            f"{config.first} {config.second}: name two runs, or two models (REGISTRY/NAME@v3)"
        )
    if not any(are_models):
        return _two_sides(config.output, asked)
    if not (config.source or config.data):
        raise ConfigError("two models need images to run on: --source, or --data with labels")
    made = []
    for text, name in zip(asked, ("a", "b"), strict=True):
        flags = listing_flags(vars(config))
        flags |= {key: tuple(value) for key, value in flags.items() if isinstance(value, list)}
        made.append(
            score(
                ScoreConfig(
                    config.source or config.data,
                    text,
                    config.output,
                    run_id=f"{new_run_id()}-{name}",
                    heatmaps=config.heatmaps,
                    device=config.device,
                    precision=config.precision,
                    batch_size=config.batch_size,
                    num_decoders=config.num_decoders,
                    **flags,
                )
            )["run_id"]
        )
    return _two_sides(config.output, made)


def _two_sides(output: str, asked: Sequence[str]) -> tuple[Side, Side]:
    are_ids = any(not _FOLDER.fullmatch(text) for text in asked)
    published = list(list_published(output)) if are_ids else []
    first, second = (_side(output, text, published) for text in asked)
    return first, second


def _side(output: str, text: str, published: Sequence[Night]) -> Side:
    """Find a published run by its id, or by the folder that it is published to."""
    if found := _FOLDER.fullmatch(text):
        folder = canonical_uri(text, str(Path.cwd()))
        manifest = read_manifest(folder)
        if manifest is None:
            raise ConfigError(f"{text} is not a published run")
        return Side(
            Run(canonical_uri(found[1], str(Path.cwd())), manifest.run_id), folder, manifest
        )
    [(folder, manifest)] = pick_published(published, output, text)
    return Side(Run(output, text), folder, manifest)


def _paired(
    pairs: Pairs, uris: Sequence[str], units: Sequence[str], labels: dict[str, Label]
) -> Paired | None:
    is_new_N = np.array([uri in labels and labels[uri].is_unseen for uri in uris], bool)
    usable_N = pairs.both_N & is_new_N
    truth = [labels[uri].answer for uri in _of(uris, usable_N)]
    right_a, right_b = (
        np.array(
            [
                answer == expected
                for answer, expected in zip(
                    _of(pairs.table[f"answer_{side}"].to_pylist(), usable_N), truth, strict=True
                )
            ],
            bool,
        )
        for side in "ab"
    )
    chosen = _of(units, usable_N)
    return paired_test(right_a, right_b, chosen if len(set(chosen)) < len(chosen) else None)


def _changes(pairs: Pairs, column: str, mask_N: Bools) -> Counter[str]:
    both = [_of(pairs.table[f"{column}_{side}"].to_pylist(), mask_N) for side in "ab"]
    return Counter(f"{a or 'none'} -> {b or 'none'}" for a, b in zip(*both, strict=True))


@dataclass(frozen=True, slots=True)
class _Item:
    """An image that a key is asked about."""

    uri: str
    key: str
    cells: dict[str, Any]
    member: Member | None = None


def _values(text: str, flag: str, pairs: Pairs, uris: Sequence[str]) -> list[str]:
    """Return the value of a key for each pair, "" without one."""
    if not text:
        return [""] * len(uris)
    carried = carried_columns(pairs.table)
    cells = [
        {name.removesuffix("_a"): value for name, value in row.items()}
        for row in pairs.table.select(carried).to_pylist()
    ] or [{} for _ in uris]
    items = [_Item(uri, uri, row) for uri, row in zip(uris, cells, strict=True)]
    return [as_name(value) for value in Key.parse(text, flag, is_required=False).values(items)]


def _of(values: Sequence[Any], mask_N: Bools) -> list[Any]:
    return [values[index] for index in np.flatnonzero(mask_N).tolist()]
