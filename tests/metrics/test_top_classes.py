"""Of equal probabilities the lowest label wins, wherever a label is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from imgcls.inference.decision_rule import DecisionRule
from imgcls.metrics import top_classes
from imgcls.metrics.top_classes import top_label, top_labels
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import make_bundle


@pytest.mark.parametrize("num_classes", [1, 2, 7, 60])
def test_equal_probabilities_come_in_the_order_of_their_labels(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    probs_BK = rng.choice(np.array([0.0, 0.1, 0.2, 0.4], np.float32), (50, num_classes))
    for num_top in {1, min(5, num_classes), num_classes}:
        for probs_K, found_T in zip(probs_BK, top_labels(probs_BK, num_top), strict=True):
            expected = sorted(range(num_classes), key=lambda label: (-probs_K[label], label))
            assert found_T.tolist() == expected[:num_top]
    np.testing.assert_array_equal(top_labels(probs_BK, 1)[:, 0], top_label(probs_BK))


def test_picking_and_sorting_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    probs_BK = rng.integers(0, 9, (50, 40)).astype(np.float32)
    picked = top_labels(probs_BK, 20)
    monkeypatch.setattr(top_classes, "_MAX_PICKED", 0)
    np.testing.assert_array_equal(picked, top_labels(probs_BK, 20))


def test_rows_answers_and_measurement_name_the_same_of_tied_classes() -> None:
    """torch.topk names any of them, on a CPU and even more so on CUDA."""
    bundle = make_bundle(num_classes=40)
    predictor = open_predictor(bundle, device="cpu", batch_size=4, top_k=5)
    tied_K = torch.zeros(40)
    tied_K[[7, 13, 21, 33, 38, 39]] = 3.0

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
        return tied_K.repeat(len(x_BCHW), 1)

    predictor._model = forward
    found = predictor.predict(np.zeros((3, 3, 32, 32), np.uint8))
    assert found.label_B.tolist() == [7, 7, 7]
    assert found.topk_label_BT.tolist() == [[7, 13, 21, 33, 38]] * 3
    assert found.topk_label_BT.dtype == np.int32
    answers = DecisionRule.of(bundle).all_answers(found.probs_BK)
    assert [labels for ((*labels,),) in answers] == [[7]] * 3
    measured = replace(bundle, calibration=None)
    assert DecisionRule.of(measured).all_answers(found.probs_BK)[0] == ((7,),)
