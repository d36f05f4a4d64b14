import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from imgcls.data.dataset import Sample
from imgcls.data.leaks import (
    Fingerprints,
    count_leaks,
    find_near_duplicates,
    find_shared,
    fingerprint,
    leaks_from_csv,
    leaks_to_csv,
    refuse_leaks,
)
from imgcls.errors import SourceError


def _samples(splits: list[str], groups: list[str] | None = None) -> list[Sample]:
    groups = groups or [""] * len(splits)
    return [
        Sample(f"s3://b/{i}.png", (0,), "a", split, group, f"{i}.png", 1.0)
        for i, (split, group) in enumerate(zip(splits, groups, strict=True))
    ]


def _pictures(count: int, side: int = 64) -> Tensor:
    """Smooth random pictures with a little noise, uint8 [B,3,side,side]."""
    torch.manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8) * 255
    smooth = F.interpolate(coarse, size=side, mode="bicubic")
    return (smooth + torch.randn(count, 3, side, side) * 4).clamp(0, 255).to(torch.uint8)


def test_group_on_two_sides_is_found_once_per_pair_of_sides() -> None:
    samples = _samples(["train", "train", "val", "val", "test"], ["p", "p", "p", "p", ""])
    [leak] = find_shared(samples, [sample.group for sample in samples], "group")
    assert (leak.kind, leak.uri, leak.other_uri) == ("group", "s3://b/0.png", "s3://b/2.png")
    assert (leak.split, leak.other_split) == ("train", "val")


def test_same_bytes_within_a_split_are_no_leak() -> None:
    samples = _samples(["train", "train", "test"])
    assert find_shared(samples, ["x", "x", "y"], "bytes") == []
    assert len(find_shared(samples, ["x", "y", "x"], "bytes")) == 1


@pytest.mark.parametrize("change", ["noise", "half size", "brighter", "grey"])
def test_altered_copy_on_another_side_is_found(change: str) -> None:
    x_BCHW = _pictures(40)
    copy = x_BCHW[:10].float()
    if change == "noise":
        copy = copy + torch.randn_like(copy) * 6
    elif change == "half size":
        copy = F.interpolate(F.interpolate(copy, scale_factor=0.5, mode="area"), scale_factor=2.0)
    elif change == "brighter":
        copy = copy * 0.8 + 30
    else:
        copy = copy.mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
    altered = copy.clamp(0, 255).to(torch.uint8)
    samples = _samples(["train"] * 40 + ["test"] * 10)
    leaks = find_near_duplicates(samples, fingerprint(torch.cat([x_BCHW, altered])))
    assert [(leak.uri, leak.other_uri) for leak in leaks] == [
        (f"s3://b/{i}.png", f"s3://b/{40 + i}.png") for i in range(10)
    ]


def test_copies_within_a_split_are_no_leak() -> None:
    x_BCHW = _pictures(5).repeat(2, 1, 1, 1)
    assert find_near_duplicates(_samples(["train"] * 10), fingerprint(x_BCHW)) == []


def test_handwritten_digits_are_not_taken_for_copies_of_each_other() -> None:
    images = torch.tensor(load_digits().images / 16 * 255, dtype=torch.uint8)[:, None]
    x_BCHW = F.interpolate(images.float(), size=32, mode="bilinear").to(torch.uint8)
    splits = ["train" if i % 2 else "test" for i in range(len(x_BCHW))]
    assert find_near_duplicates(_samples(splits), fingerprint(x_BCHW)) == []


def test_empty_pictures_tell_nothing() -> None:
    x_BCHW = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    assert find_near_duplicates(_samples(["train", "test"]), fingerprint(x_BCHW)) == []


def test_every_pair_within_four_bits_is_found_wherever_they_differ() -> None:
    rng = np.random.default_rng(0)
    thumb = rng.integers(0, 256, (1, 256)).astype(np.uint8)
    base = rng.integers(0, 2**63, dtype=np.uint64)
    for _ in range(50):
        flipped = base
        for bit in rng.choice(64, size=4, replace=False):
            flipped ^= np.uint64(1) << np.uint64(bit)
        both = Fingerprints(np.array([base, flipped]), np.repeat(thumb, 2, axis=0))
        assert len(find_near_duplicates(_samples(["train", "val"]), both)) == 1


def test_refusal_names_the_images_and_the_way_out() -> None:
    refuse_leaks([])
    samples = _samples(["train", "test"])
    leaks = find_shared(samples, ["x", "x"], "bytes")
    with pytest.raises(SourceError, match=r"1 by bytes: s3://b/0\.png \(train\).*--allow-leaks"):
        refuse_leaks(leaks)


def test_a_pair_is_named_once_although_it_agrees_in_every_band() -> None:
    thumb = np.random.default_rng(0).integers(0, 256, (1, 256)).astype(np.uint8)
    same = Fingerprints(np.zeros(4, np.uint64), np.repeat(thumb, 4, axis=0))
    leaks = find_near_duplicates(_samples(["train", "train", "val", "test"]), same)
    assert count_leaks(leaks) == {"near-duplicate": 5}
    assert len({(leak.uri, leak.other_uri) for leak in leaks}) == 5


def test_a_search_that_ends_early_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    thumb = np.random.default_rng(0).integers(0, 256, (1, 256)).astype(np.uint8)
    alike = Fingerprints(np.zeros(40, np.uint64), np.repeat(thumb, 40, axis=0))
    samples, told = _samples(["train", "val"] * 20), list[str]()
    assert len(find_near_duplicates(samples, alike, told.append)) == 400
    assert told == []
    for limit, words in (
        ("_MAX_LEAKS", "stopped at 7 pairs found"),
        ("_MAX_COMPARED", "400 pairs of pictures"),
        ("_MAX_TESTED", "1600 pairs of hashes"),
    ):
        told.clear()
        with monkeypatch.context() as patch:
            patch.setattr(f"imgcls.data.leaks.{limit}", 7)
            find_near_duplicates(samples, alike, told.append)
        assert len(told) == 1
        assert words in told[0]


def test_pictures_that_all_look_alike_end_at_a_thousand_pairs() -> None:
    thumb = np.random.default_rng(0).integers(0, 256, (1, 256)).astype(np.uint8)
    alike = Fingerprints(np.zeros(4000, np.uint64), np.repeat(thumb, 4000, axis=0))
    assert len(find_near_duplicates(_samples(["train", "val"] * 2000), alike)) == 1000


def test_the_list_of_leaks_survives_its_file() -> None:
    samples = _samples(["train", "val"], ['p"1",\n', 'p"1",\n'])
    leaks = find_shared(samples, [sample.group for sample in samples], "group")
    assert leaks_from_csv(leaks_to_csv(leaks)) == leaks
    assert leaks_from_csv(leaks_to_csv([])) == []


def test_refusal_of_look_alikes_tells_those_with_a_fixed_camera_what_to_do() -> None:
    thumb = np.random.default_rng(0).integers(0, 256, (1, 256)).astype(np.uint8)
    same = Fingerprints(np.zeros(2, np.uint64), np.repeat(thumb, 2, axis=0))
    leaks = find_near_duplicates(_samples(["train", "val"]), same)
    with pytest.raises(SourceError, match=r"all in run/leaks\.csv\..*fixed camera.*look at some"):
        refuse_leaks(leaks, "run/leaks.csv")
