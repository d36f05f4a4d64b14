import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from imgcls.errors import ConfigError
from imgcls.model.architectures import (
    build_model,
    check_input_size,
    find_head,
    find_stem,
    list_archs,
    register_embedding_hook,
)

# The smallest of each family, with the smallest image that it takes.
_FAMILIES = {
    "simple_cnn": 4,
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 29,
    "efficientnet_b0": 1,
    "efficientnet_v2_s": 1,
    "googlenet": 15,
    "inception_v3": 75,
    "mnasnet0_5": 1,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "regnet_y_400mf": 1,
    "resnet18": 1,
    "shufflenet_v2_x0_5": 1,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_t": 4,
    "swin_v2_t": 4,
    "vgg11_bn": 32,
    "vit_b_32": 32,
}


@pytest.mark.parametrize("arch", sorted(_FAMILIES))
def test_family_trains_at_its_smallest_image_and_gives_its_embedding(arch: str) -> None:
    image_px = _FAMILIES[arch]
    check_input_size(arch, image_px)
    model = build_model(arch, 5, image_px=image_px)
    embedding = register_embedding_hook(model, arch)
    logits_BK = model(torch.randn(2, 3, image_px, image_px))
    assert logits_BK.shape == (2, 5)
    logits_BK.sum().backward()
    _, head = find_head(model)
    width = head.in_features if isinstance(head, nn.Linear) else head.in_channels
    assert embedding().shape == (2, width)


@pytest.mark.parametrize("arch", sorted(a for a, px in _FAMILIES.items() if px > 1))
def test_smaller_image_is_refused_before_torch_would(arch: str) -> None:
    with pytest.raises(ConfigError, match=rf"{arch} needs .* {_FAMILIES[arch]}"):
        check_input_size(arch, _FAMILIES[arch] - 1)


@pytest.mark.parametrize("arch", ["alexnet", "convnext_tiny", "densenet121", "inception_v3"])
def test_smaller_image_really_fails(arch: str) -> None:
    side = _FAMILIES[arch] - 1
    with pytest.raises((RuntimeError, ValueError)):
        build_model(arch, 5)(torch.randn(2, 3, side, side))


def test_every_torchvision_architecture_is_listed() -> None:
    archs = list_archs()
    assert archs[0] == "simple_cnn"
    assert {"resnet50", "efficientnet_v2_s", "convnext_tiny", "vit_b_16", "maxvit_t"} <= set(archs)
    assert len(archs) > 80


def test_unknown_arch_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'resnet19'.*resnet18"):
        build_model("resnet19", 3)


@pytest.mark.parametrize(
    ("arch", "image_px", "sizes"), [("maxvit_t", 300, "224 or 448"), ("vit_b_16", 60, "48 or 64")]
)
def test_image_that_is_no_multiple_is_refused(arch: str, image_px: int, sizes: str) -> None:
    with pytest.raises(ConfigError, match=sizes):
        build_model(arch, 3, image_px=image_px)


@pytest.mark.parametrize("arch", ["simple_cnn", "resnet18", "googlenet", "vit_b_32"])
def test_one_channel_is_the_grey_image_on_three(arch: str) -> None:
    torch.manual_seed(3)
    rgb = build_model(arch, 4, image_px=32).eval()
    torch.manual_seed(3)
    gray = build_model(arch, 4, in_channels=1, image_px=32).eval()
    _, stem = find_stem(gray)
    assert stem.in_channels == 1
    if arch == "simple_cnn":
        return  # its stem is drawn for one channel; nothing is published that would be summed
    if arch == "googlenet":
        rgb.transform_input = False
    x_B1HW = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(gray(x_B1HW), rgb(x_B1HW.expand(-1, 3, -1, -1)))


def test_weights_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model("resnet18", 3).state_dict())
    first, again, other = (state["conv1.weight"] for state in states)
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("image_px", [4, 7, 32, 65])
def test_simple_cnn_takes_any_size(image_px: int) -> None:
    model = build_model("simple_cnn", 3, image_px=image_px)
    assert model(torch.randn(2, 3, image_px, image_px + 1)).shape == (2, 3)


def test_simple_cnn_learns_the_digits() -> None:
    digits = load_digits()
    x_B1HW = torch.tensor(digits.images / 16).float()[:, None]
    x_BCHW = F.interpolate(x_B1HW, size=32, mode="bilinear").repeat(1, 3, 1, 1) * 4 - 2
    label_B = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x_BCHW))
    train, test = order[:600], order[600:1200]
    model = build_model("simple_cnn", 10, image_px=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(4):
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x_BCHW[batch]), label_B[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        correct_B = model(x_BCHW[test]).argmax(dim=1) == label_B[test]
    assert correct_B.float().mean() > 0.95
