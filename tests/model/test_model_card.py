"""The words of a model card that a reader must not miss."""

from typing import Any

from imgcls.model.card.model_card import model_card


def facts(training: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "arch": "simple_cnn",
        "class_names": ["bad", "good"],
        "multi_label": False,
        "split_digest": "0" * 64,
        "decode_spec": {},
        "preprocess_spec": {},
        "created_at": "2026-01-01",
        "metrics": {},
        "training": {"num_images": {"train": 4, "test": 2}} | training,
        **others,
    }


COMPLETE = {"complete": True, "incomplete_because": []}
INCOMPLETE = {"complete": False, "incomplete_because": ["the search stopped"]}


def test_a_leak_check_says_how_far_it_went() -> None:
    clean = model_card(facts({"leaks": {}, "leak_check": COMPLETE, "num_groups": 3}))
    assert "No group, no image and no near-duplicate of one lies in two splits. Leak" in clean
    assert "Leak check: complete. Groups: 3." in clean
    partial = model_card(facts({"leaks": {}, "leak_check": INCOMPLETE, "num_groups": 3}))
    assert "**Leak check: incomplete, because the search stopped.** There may be more" in partial
    assert "lies in two splits" not in partial
    shared = model_card(facts({"leaks": {"bytes": 2}, "leak_check": INCOMPLETE, "num_groups": 3}))
    assert "trained all the same: 2 by bytes.** The numbers below are too good." in shared
    assert "Leak check: incomplete" in shared


def test_without_groups_the_card_says_what_nobody_could_check() -> None:
    card = model_card(facts({"leaks": {}, "leak_check": COMPLETE, "num_groups": 0}))
    assert "No groups were given: whether images of one patient" in card
    assert "No group, no image" not in card
    alone = {"num_images": {"train": 4, "test": 0}, "leaks": {}, "leak_check": COMPLETE}
    assert "There is one split only: nothing was compared." in model_card(facts(alone))


def test_a_bootstrap_that_cannot_tell_is_no_certainty() -> None:
    intervals = {"accuracy": [1.0, 1.0], "ece": [0.1, 0.2], "num_units": 17}
    test = {"accuracy": 1.0, "ece": 0.15, "intervals": intervals}
    card = model_card(facts({}, metrics={"test": test}))
    assert "| test | accuracy | 1.0000 | no spread |" in card
    assert "as low as 1 - 3/n" in card
    assert "1.0000 to 1.0000" not in card
    assert "| test | ece | 0.1500 | 0.1000 to 0.2000 |" in card
    test["intervals"] = intervals | {"accuracy": [0.9, 1.0]}
    assert "1 - 3/n" not in model_card(facts({}, metrics={"test": test}))


def test_a_missing_operating_point_is_told_with_a_calibration_and_without() -> None:
    training = {"no_operating_point": "no operating point for 'bad': why"}
    calibration = {"temperature": 1.0, "note": "n", "num_images": 4, "operating_points": []}
    for card in (
        model_card(facts(training)),
        model_card(facts(training, calibration=calibration)),
    ):
        assert "## Calibration" in card
        assert "**No operating point for 'bad': why.**" in card
    assert "## Calibration" not in model_card(facts({}))


def test_thresholds_near_zero_keep_their_digits() -> None:
    point = {
        "threshold_id": "bad:recall>=0.9",
        "threshold": 0.00068123,
        "review_low": 0.00021,
        "review_high": 0.0021456,
        "num_positive": 4,
        "num_negative": 22,
    }
    calibration = {"temperature": 1.0, "note": "n", "num_images": 4, "operating_points": [point]}
    after = {"log_loss": 0.1, "ece": 0.1, "operating_points": {}}
    after["operating_points"]["bad:recall>=0.9"] = {  # type: ignore[index]  # a JSON value
        "recall": 0.9,
        "recall_interval": [0.8, 1.0],
        "specificity": 1.0,
        "specificity_interval": [1.0, 1.0],
        "review_fraction": 0.016,
    }
    metrics = {"test": {"accuracy": 0.9, "calibrated": after}}
    card = model_card(facts({}, metrics=metrics, calibration=calibration))
    assert "| 0.0006812 | 0.00021 to 0.002146 | test | 0.9000 (0.8000 to 1.0000) |" in card
    assert "| 1.0000 (no spread) | 1.6 % |" in card
    assert "bad:recall>=0.9 rests on 4 images of the class and 22 others." in card
    assert "1 - 3/n" in card
