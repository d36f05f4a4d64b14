"""What a run tells of its rows at its end."""

import pyarrow as pa

from imgcls.scoring.reporting.result import Found


def test_statuses_are_told_in_one_order_and_names_are_read_where_they_are_wanted() -> None:
    names_read = []

    def part_of(number: int, statuses: list[str]) -> None:
        names = pa.table({"uri": [f"{number}-{n}" for n in range(len(statuses))]})

        def named() -> pa.Table:
            names_read.append(number)
            return names

        found.add(pa.table({"status": statuses, "class_name": ["x"] * len(statuses)}), named)

    found = Found()
    part_of(0, ["ok"] * 4)
    part_of(1, ["timeout", "ok", "too_large", "corrupt", "missing", "empty", "changed"])
    part_of(2, ["corrupt", "corrupt", "timeout"])
    part_of(3, ["corrupt", "timeout", "ok"])
    assert names_read == [1, 2], "neither where all are ok, nor for more than two of a status"
    assert list(found.examples) == sorted(found.examples)
    assert [each["name"] for each in found.examples["corrupt"]] == ["1-3", "2-0"]
    assert found.classes == {"x": 17}
