"""Results in words, of whatever shape they are."""

import pytest

from imgcls.terminal.result import lines_of


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"verdict": "better", "alias": "production"},
         ["verdict     better", "alias       production"]),
        ({"verdict": {"answer": "better", "lines": ["Verdict: better."]}, "model": "r/m@v1"},
         ["", "Verdict: better.", "", "model       r/m@v1"]),
        ({"verdict": None, "difference": {"new": 3, "failed_before": 0}, "parts": []},
         ["difference  new 3, failed before 0"]),
        ({"ok": True, "elapsed_s": 75.0, "shards": list(range(9)), "deep": {"a": {"b": 1}}},
         ["ok          yes", "took        1 min 15 s", "shards      9 (--json shows them)",
          "deep        --json shows it"]),
    ],
)  # fmt: skip
def test_a_result_is_told_whatever_its_values_are(
    result: dict[str, object], expected: list[str]
) -> None:
    assert list(lines_of(result)) == expected
