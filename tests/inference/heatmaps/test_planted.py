"""The peak of a heatmap lies in the planted object; hiding what it marks costs the answer."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from imgcls.image.facts.overlay import Patch
from imgcls.inference.backends.features import find_tap_points
from imgcls.inference.backends.network import Network
from imgcls.inference.heatmaps.class_activation import ClassActivation, find_readout, find_shift
from imgcls.inference.heatmaps.explainer import Explainer, make_explainer
from imgcls.inference.heatmaps.occlusion import Occlusion
from imgcls.inference.predictor import Predictor
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle
from tests.inference.heatmaps.planted import Planted, plant, train_planted
from tests.kit.predictors import open_predictor

# Found by chance: of a place drawn at random 9 % lie in the object.
NUM_IMAGES = 60


def objects(image_px: int) -> Planted:
    return plant(NUM_IMAGES, image_px, seed=2, labels=(0, 2))


Box = tuple[int, int, int, int]
NO_SHIFT = (0.0, 0.0)


def peaks(
    maps: list[np.ndarray], px: int, shift_px: tuple[float, float]
) -> list[tuple[float, tuple[float, float]]]:
    """Of each map its highest value, and where that is."""
    whole = (px, px), (0, 0, px, px), (0.0, 0.0, float(px), float(px))
    return [Patch(heat_hw, *whole, shift_px).peak() for heat_hw in maps]


def share_inside(
    maps: list[np.ndarray], boxes: list[Box], px: int, shift_px: tuple[float, float] = NO_SHIFT
) -> float:
    """Of how many maps the peak lies in the object."""
    inside = [
        highest > 0 and left <= x <= right and top <= y <= bottom
        for (highest, (x, y)), (left, top, right, bottom) in zip(
            peaks(maps, px, shift_px), boxes, strict=True
        )
    ]
    return float(np.mean(inside))


def bias(
    maps: list[np.ndarray], boxes: list[Box], px: int, shift_px: tuple[float, float]
) -> npt.NDArray[np.float64]:
    """How far peaks lie right and below of the middle of their objects, as shares of a cell."""
    away = [
        ((x - (left + right) / 2) * heat_hw.shape[1] / px,
         (y - (top + bottom) / 2) * heat_hw.shape[0] / px)
        for heat_hw, (_, (x, y)), (left, top, right, bottom) in zip(
            maps, peaks(maps, px, shift_px), boxes, strict=True
        )
    ]  # fmt: skip
    return np.mean(away, axis=0)


def prob_after_hiding(
    predictor: Predictor, images: Planted, order: list[np.ndarray], fraction: float
) -> float:
    """Mean probability of the label once the first cells of each order are grey."""
    x_BCHW, px = images.x_BCHW.copy(), images.x_BCHW.shape[2]
    for x_CHW, heat_hw in zip(x_BCHW, order, strict=True):
        rows = (np.arange(px) * heat_hw.shape[0] // px)[:, None]
        columns = np.arange(px) * heat_hw.shape[1] // px
        rank_HW = (-heat_hw).ravel().argsort().argsort().reshape(heat_hw.shape)[rows, columns]
        x_CHW[:, rank_HW < fraction * heat_hw.size] = 120
    probs_BK = predictor.predict_all(x_BCHW).probs_BK
    return float(probs_BK[np.arange(len(x_BCHW)), images.label_B].mean())


def check(bundle: Bundle, image_px: int, method: str) -> None:
    images = objects(image_px)
    with open_predictor(bundle, device="cpu", batch_size=16) as predictor:
        explainer: Explainer = make_explainer(bundle, predictor)
        assert explainer.name == method
        others = plant(NUM_IMAGES, image_px, seed=5)
        found = predictor.predict_all(others.x_BCHW)
        assert (found.label_B == others.label_B).mean() > 0.95, "it has learnt them"
        maps = explainer.maps(images.x_BCHW, images.label_B)
        shift_px = explainer.shift_px
        assert share_inside(maps, images.boxes, image_px, shift_px) >= 0.95
        off = bias(maps, images.boxes, image_px, shift_px)
        assert np.abs(off).max() < 0.4, f"not always beside it on the same side: {off}"
        rng = np.random.default_rng(3)
        by_chance = [rng.random(heat_hw.shape) for heat_hw in maps]
        assert share_inside(by_chance, images.boxes, image_px) < 0.3
        marked, drawn = (
            prob_after_hiding(predictor, images, order, 0.25) for order in (maps, by_chance)
        )
        assert marked < drawn - 0.2, (marked, drawn)


@pytest.mark.parametrize(
    ("arch", "method"), [("spot_cnn", "class activation"), ("simple_cnn", "occlusion")]
)
def test_the_peak_lies_in_the_object(arch: str, method: str) -> None:
    check(train_planted(arch, 64, epochs=3), 64, method)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "image_px", "epochs", "method"),
    [
        ("resnet18", 128, 4, "class activation"),
        ("timm:test_efficientnet", 160, 8, "class activation"),
        ("timm:test_convnext", 160, 12, "class activation"),
        ("mobilenet_v3_small", 128, 8, "occlusion"),
        ("timm:test_vit", 160, 10, "occlusion"),
    ],
)
def test_the_peak_lies_in_the_object_for_every_family(
    arch: str, image_px: int, epochs: int, method: str
) -> None:
    check(train_planted(arch, image_px, epochs=epochs, lr=0.003), image_px, method)


def test_an_object_of_which_any_part_is_enough_is_found() -> None:
    """It is larger than what is hidden at a time, so that some of it is always seen."""
    images = objects(64)

    def predict(x_NCHW: np.ndarray) -> np.ndarray:
        """Tell green from red by five pixels, and be no surer by a hundred."""
        more_red_N = (x_NCHW[:, 0].astype(int) - x_NCHW[:, 1]).reshape(len(x_NCHW), -1)
        num_NK = np.stack([(more_red_N < -60).sum(1), (more_red_N > 60).sum(1)], axis=1)
        label_N = np.select([num_NK[:, 0] >= 5, num_NK[:, 1] >= 5], [0, 2], 1)
        return np.where(np.arange(3) == label_N[:, None], 0.98, 0.01).astype(np.float32)

    occlusion = Occlusion(predict, (3, 64, 64), multi_label=False)
    maps = occlusion.maps(images.x_BCHW, images.label_B)
    assert share_inside(maps, images.boxes, 64) >= 0.95


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        ("resnet18", "mean"),
        ("densenet121", "mean"),
        ("spot_cnn", "max"),
        ("timm:test_convnext", "norm_mean"),
        ("mobilenet_v3_small", None),
        ("squeezenet1_1", None),
        ("simple_cnn", None),
        ("timm:test_vit", None),
    ],
)
def test_a_network_is_allowed_by_what_it_computes(arch: str, kind: str | None) -> None:
    torch.manual_seed(0)
    image_px = 160 if arch == "timm:test_vit" else 64
    model = build_model(arch, 3, image_px=image_px).eval()
    x_BCHW = torch.rand(2, 3, image_px, image_px)
    points = find_tap_points(model, x_BCHW[:1])
    readout = find_readout(model, points, x_BCHW)
    assert (readout and readout.kind) == kind


@pytest.mark.parametrize(
    ("arch", "half_a_cell"), [("resnet18", 15.5), ("spot_cnn", 3.5), ("timm:test_convnext", 0.0)]
)
def test_what_a_place_sees_lies_before_its_cell_where_strides_pad(
    arch: str, half_a_cell: float
) -> None:
    torch.manual_seed(0)
    model = build_model(arch, 3, image_px=224).eval()
    x_BCHW = torch.rand(2, 3, 224, 224)
    found = find_shift(model, find_tap_points(model, x_BCHW[:1]), x_BCHW)
    assert found == pytest.approx((-half_a_cell, -half_a_cell), abs=4 if half_a_cell else 1)


def test_the_shares_of_all_places_sum_to_the_logit() -> None:
    """Whatever is left is the constant of the last layer, the same for each input."""
    torch.manual_seed(0)
    for arch in ("resnet18", "spot_cnn", "densenet121"):
        model = build_model(arch, 3, image_px=64).eval()
        x_BCHW = torch.rand(6, 3, 64, 64)
        points = find_tap_points(model, x_BCHW[:1])
        readout = find_readout(model, points, x_BCHW)
        assert readout is not None
        with torch.inference_mode():
            logits_BK = model(x_BCHW)
        label_B = logits_BK.argmax(dim=1).numpy()
        maps = ClassActivation(model, points, readout, multi_label=True).maps(
            x_BCHW.numpy(), label_B
        )
        rest_B = logits_BK.numpy()[np.arange(6), label_B] - [heat_hw.sum() for heat_hw in maps]
        bias_K = model.get_submodule(points.head).bias.detach().numpy()  # type: ignore[union-attr]
        np.testing.assert_allclose(rest_B, bias_K[label_B], atol=1e-3)


def test_it_is_the_map_of_pytorch_grad_cam() -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    bundle = train_planted("timm:test_resnet", 64, epochs=1)
    network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
    images = plant(6, 64, seed=4)
    x_BCHW = torch.from_numpy(images.x_BCHW)
    points = find_tap_points(network, x_BCHW[:1])
    readout = find_readout(network, points, x_BCHW)
    assert readout is not None
    maps = ClassActivation(network, points, readout, multi_label=False).maps(
        images.x_BCHW, images.label_B
    )
    # Theirs, of the same score: a logit less the mean of all.
    targets = [lambda out, label=label: out[label] - out.mean() for label in images.label_B]
    layer = network.get_submodule(points.last_map)
    with grad_cam.GradCAM(model=network, target_layers=[layer]) as theirs:
        weighted = theirs(input_tensor=x_BCHW.float().requires_grad_(), targets=targets)
    for ours_hw, expected_HW in zip(maps, weighted, strict=True):
        positive = torch.from_numpy(ours_hw.clip(0))[None, None]
        ours_HW = np.asarray(grad_cam.utils.image.scale_cam_image(positive[0].numpy(), (64, 64))[0])
        np.testing.assert_allclose(ours_HW, expected_HW, atol=1e-3)
