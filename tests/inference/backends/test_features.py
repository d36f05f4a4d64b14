"""Embedding and feature map: what the last layer sees, and where, by every backend."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.inference.backends import openvino
from imgcls.inference.backends.choose import choose_backend
from imgcls.inference.backends.demand import Demand
from imgcls.inference.backends.features import Tap, find_tap_points
from imgcls.inference.sketch import SKETCH_SIZE, projection_ES
from imgcls.model.architectures import build_model
from tests.inference.resnet import images, make_resnet
from tests.kit.predictors import open_predictor

needs_openvino = pytest.mark.skipif(
    not openvino.is_installed(), reason="the extra openvino is not installed"
)


def test_features_are_those_of_the_images_and_the_map_averages_to_the_embedding() -> None:
    """ResNet pools its last map by the mean: whoever took another layer would not find it."""
    with open_predictor(
        make_resnet(1.0), device="cpu", batch_size=4, embedding=True, feature_map=True
    ) as predictor:
        found = predictor.predict_all(images(7))
        assert not predictor.why_no_features
    assert found.embedding_BE is not None
    assert found.feature_map_BEhw is not None
    assert found.embedding_BE.shape == (7, 512)
    assert found.feature_map_BEhw.shape == (7, 512, 2, 2)
    np.testing.assert_allclose(
        found.feature_map_BEhw.mean(axis=(2, 3)), found.embedding_BE, atol=1e-5
    )
    assert len(np.unique(found.embedding_BE[:, 0])) == 7, "each image has its own"


def test_only_what_was_asked_for_is_given() -> None:
    bundle = make_resnet(1.0)
    with open_predictor(bundle, device="cpu", batch_size=4, feature_map=True) as predictor:
        found = predictor.predict(images(3))
    assert found.embedding_BE is None
    assert found.feature_map_BEhw is not None
    with open_predictor(bundle, device="cpu", batch_size=4) as predictor:
        plain = predictor.predict(images(3))
    assert plain.embedding_BE is plain.feature_map_BEhw is None
    np.testing.assert_array_equal(plain.probs_BK, found.probs_BK)


def test_batches_at_a_time_keep_their_features_apart() -> None:
    with open_predictor(
        make_resnet(1.0), device="cpu", batch_size=2, num_streams=3, embedding=True
    ) as predictor:
        together = predictor.predict_all(images(12)).embedding_BE
        alone = [predictor.predict(images(12)[row : row + 1]).embedding_BE for row in range(12)]
    assert together is not None
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


@needs_openvino
def test_openvino_gives_the_features_that_torch_gives() -> None:
    asked = {"device": "cpu", "batch_size": 4, "embedding": True, "feature_map": True}
    with open_predictor(make_resnet(1.0), **asked) as predictor:
        expected = predictor.predict_all(images(6))
    with open_predictor(make_resnet(1.0), kind="openvino", num_streams=2, **asked) as predictor:
        assert predictor.name == "openvino fp32 on cpu"
        found = predictor.predict_all(images(6))
    for name in ("probs_BK", "embedding_BE", "feature_map_BEhw"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "image_px", "width", "grid"),
    [
        ("densenet121", 64, 1024, (2, 2)),
        ("squeezenet1_1", 64, 512, (3, 3)),
        ("swin_t", 64, 768, (2, 2)),
        ("convnext_tiny", 64, 768, (2, 2)),
        ("mobilenet_v3_small", 64, 576, (2, 2)),
    ],
)
def test_every_family_has_its_map_at_the_end_of_its_places(
    arch: str, image_px: int, width: int, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = build_model(arch, 3, image_px=image_px).eval()
    points = find_tap_points(model, torch.rand(1, 3, image_px, image_px))
    tap = Tap(model, points)
    with torch.inference_mode():
        logits_BK = model(torch.rand(2, 3, image_px, image_px))
        embedding_BE, map_BEhw = tap.read()
        head = dict(model.named_modules())[points.head]
        if isinstance(head, nn.Linear):
            torch.testing.assert_close(head(embedding_BE), logits_BK)
    assert map_BEhw is not None
    assert tuple(map_BEhw.shape) == (2, width, *grid)
    assert points.grid == grid


def test_tokens_of_a_transformer_are_laid_out_as_their_patches() -> None:
    torch.manual_seed(0)
    model = build_model("vit_b_32", 3, image_px=96).eval()
    points = find_tap_points(model, torch.rand(1, 3, 96, 96))
    tap = Tap(model, points)
    tokens: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda _m, _in, output: tokens.append(output))
    with torch.inference_mode():
        model(torch.rand(2, 3, 96, 96))
        embedding_BE, map_BEhw = tap.read()
    assert map_BEhw is not None
    assert tuple(map_BEhw.shape) == (2, 768, 3, 3)
    torch.testing.assert_close(map_BEhw[:, :, 1, 2], tokens[0][:, 1 + 3 * 1 + 2])
    torch.testing.assert_close(embedding_BE, tokens[0][:, 0])


def test_a_network_that_keeps_no_places_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    points = find_tap_points(model, torch.rand(1, 3, 2, 2))
    tap = Tap(model, points)
    with torch.inference_mode():
        model(torch.rand(2, 3, 2, 2))
    assert tap.read().map_BEhw is None
    assert points.why_no_map == "no layer of this network keeps places to its end"


@pytest.mark.parametrize("copy", [lambda model: model, lambda model: nn.Sequential(model)])
def test_tapping_changes_no_number(copy: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = copy(build_model("resnet18", 3, image_px=64)).eval()
    x_BCHW = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(x_BCHW)
        Tap(model, find_tap_points(model, x_BCHW))
        assert torch.equal(model(x_BCHW), before)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("eager", "fp32"), ("folded", "bf16"), pytest.param("openvino", "bf16", marks=needs_openvino)],
)
def test_a_sketch_is_that_of_the_embedding_and_gives_up_no_fast_backend(
    kind: str, precision: str
) -> None:
    bundle = make_resnet(1.0)
    with open_predictor(bundle, device="cpu", batch_size=4, embedding=True) as predictor:
        embedding_BE = predictor.predict_all(images(6)).embedding_BE
    assert embedding_BE is not None
    asked = {"precision": precision, "kind": kind}
    with open_predictor(bundle, device="cpu", batch_size=4, sketch=True, **asked) as predictor:
        assert predictor.name == f"{kind} {precision} on cpu"
        found = predictor.predict_all(images(6))
    assert found.embedding_BE is found.feature_map_BEhw is None
    assert found.sketch_BS is not None
    expected_BS = embedding_BE @ projection_ES(512)
    atol = 1e-5 if precision == "fp32" else 0.05 * float(np.abs(expected_BS).max())
    np.testing.assert_allclose(found.sketch_BS, expected_BS, atol=atol)


def test_compiled_code_stays_compiled_and_gives_no_sketch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_resnet(1.0)
    demand = Demand(torch.device("cpu"), batch_size=4, kind="compiled", sketch=True)
    monkeypatch.setattr("imgcls.inference.backends.choose.compile_network", lambda network: network)
    backend = choose_backend(bundle, demand)
    assert (backend.kind, backend.features) == ("compiled", None)
    assert "gives no embeddings beside its answers" in caplog.text


def test_sketches_stay_comparable_for_years() -> None:
    """Its first and last signs, as they were when the first sketch was stored."""
    signs_ES = np.sign(projection_ES(2048)).astype(int)
    assert signs_ES.shape == (2048, SKETCH_SIZE)
    assert signs_ES[0, :8].tolist() == [1, -1, 1, 1, -1, 1, 1, -1]
    assert signs_ES[-1, -8:].tolist() == [-1, -1, 1, 1, -1, 1, -1, 1]
    near, far = np.ones(2048), np.ones(2048)
    far[:1024] = -1
    spread = float(np.linalg.norm((near - far) @ projection_ES(2048)))
    assert abs(spread / np.linalg.norm(near - far) - 1) < 0.5
