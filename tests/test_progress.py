"""How long a job still takes: steadily less."""

from itertools import pairwise

from imgcls.progress import TimeLeft


def seconds(words: str) -> float:
    parts = words.split()[1:-1]
    units = {"s": 1, "min": 60, "h": 3600}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return float(sum(int(number) * units[unit] for number, unit in pairs))


def test_the_time_left_falls_steadily_though_shards_come_in_bursts() -> None:
    left, start_s = TimeLeft(100_000), 0.0
    left._start_s = left._at_s = start_s
    shown = []
    # Four actors end their shards of 1,000 nearly together, every 40 s.
    for burst in range(25):
        for actor in range(4):
            left.add(1000 * (4 * burst + actor + 1), 40.0 * (burst + 1) + actor)
        for second in range(5, 40, 5):
            words = left.words(40.0 * (burst + 1) + second)
            shown += [seconds(words)] if words.endswith("left") else []
    assert len(shown) > 100
    rises = [after - before for before, after in pairwise(shown)]
    assert max(rises) <= 60, "a minute is how it is rounded"
    assert abs(shown[0] - 960) < 120


def test_a_training_that_continues_counts_from_where_it_was() -> None:
    left = TimeLeft(1000, from_first=True)
    left.add(800, 10.0)  # an earlier start did these
    for second in range(1, 11):
        left.add(800 + 10 * second, 10.0 + second)
    assert seconds(left.words(20.0)) == 10
    assert left.rate(20.0) == "10.0/s"


def test_a_training_of_one_step_has_no_rate() -> None:
    left = TimeLeft(43, from_first=True)
    left.add(43, 10.0)
    assert left.rate(12.0) == ""


def test_nothing_is_said_before_anybody_can_know() -> None:
    left = TimeLeft(1000)
    assert left.words(1.0) == ""
    assert TimeLeft(None).words(100.0) == ""
