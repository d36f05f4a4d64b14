import hashlib
import json
import pickle
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from imgcls.data.class_names import ClassNames
from imgcls.errors import BundleError, ObjectExistsError
from imgcls.image.preprocess import normalize
from imgcls.metrics.calibration import fit_calibration
from imgcls.model.bundle import (
    Bundle,
    make_golden,
    read_bundle,
    read_facts,
    write_bundle,
)
from imgcls.model.bundle_files import read_digest
from tests.kit.predictors import open_predictor

CLASS_NAMES = ClassNames(("bad", "good", "unsure"))
MakeBundle = Callable[..., Bundle]


@pytest.fixture
def stored(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    write_bundle(make_bundle(), str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def _reseal(folder: Path) -> None:
    """Write SHA256SUMS again, as somebody would who tampers with care."""
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _edit_facts(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(facts | changes))
    _reseal(folder)


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    edit(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    _reseal(folder)


def test_bundle_comes_back_as_it_went_in(make_bundle: MakeBundle, tmp_path: Path) -> None:
    probs_BK = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.2, 0.3]])
    bundle = replace(
        make_bundle(),
        calibration=fit_calibration(probs_BK, np.eye(3, dtype=bool), CLASS_NAMES).to_dict(),
        attachments={"curves.png": b"png"},
    )
    uri = str(tmp_path / "bundle")
    digest = write_bundle(bundle, uri)
    again = read_bundle(uri)
    assert again.digest == digest == read_digest(uri)
    for name in ("arch", "class_names", "decode_spec", "preprocess_spec", "metrics"):
        assert getattr(again, name) == getattr(bundle, name)
    for name in ("split_digest", "training", "calibration", "attachments"):
        assert getattr(again, name) == getattr(bundle, name)
    assert again.state_dict.keys() == bundle.state_dict.keys()
    assert all(again.state_dict[name].equal(t) for name, t in bundle.state_dict.items())
    assert again.golden_probs_BK.equal(bundle.golden_probs_BK)
    assert not again.to_model().training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_of_a_bundle_has_weights_of_its_own(
    dtype: torch.dtype, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle()
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in bundle.state_dict.items()
    }
    bundle = replace(bundle, state_dict=stored)
    before = {name: tensor.clone() for name, tensor in stored.items()}
    model = bundle.to_model()
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == make_bundle().state_dict[name].dtype
        assert tensor.equal(before[name].to(tensor.dtype))
        tensor.add_(1)
    assert all(stored[name].equal(tensor) for name, tensor in before.items())
    del stored[next(iter(stored))]
    with pytest.raises(RuntimeError, match="Missing key"):
        bundle.to_model()


def test_multi_label_bundle_says_so_and_gives_sigmoids(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    single = make_bundle()
    model, spec = single.to_model(), single.preprocess_spec
    golden_BK = make_golden(model, single.golden_x_BCHW, spec, multi_label=True)
    with torch.inference_mode():
        expected_BK = model(normalize(single.golden_x_BCHW, spec)).sigmoid()
    torch.testing.assert_close(golden_BK, expected_BK)
    bundle = replace(single, multi_label=True, golden_probs_BK=golden_BK)
    uri = str(tmp_path / "bundle")
    write_bundle(bundle, uri)
    assert read_bundle(uri).multi_label
    facts = read_facts(uri)
    assert (facts.class_names, facts.multi_label, facts.calibration) == (CLASS_NAMES, True, None)
    assert "any number of them per image" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    predictor = open_predictor(read_bundle(uri), device="cpu", batch_size=4)
    found = predictor.predict(bundle.golden_x_BCHW)
    np.testing.assert_allclose(found.probs_BK, golden_BK.numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.label_B, golden_BK.argmax(dim=1))
    assert (np.diff(found.topk_prob_BT, axis=1) <= 0).all()
    with pytest.raises(BundleError, match="does not reproduce its golden probabilities"):
        write_bundle(replace(single, multi_label=True), str(tmp_path / "other"))


def test_bundle_without_the_key_multi_label_has_one_label_per_image(stored: Path) -> None:
    facts = json.loads((stored / "bundle.json").read_text())
    assert facts.pop("multi_label") is False
    (stored / "bundle.json").write_text(json.dumps(facts))
    _reseal(stored)
    assert not read_bundle(str(stored)).multi_label
    _edit_facts(stored, multi_label="yes")
    with pytest.raises(BundleError, match="multi_label is a str"):
        read_bundle(str(stored))


def test_pooling_comes_back_and_is_empty_in_an_older_bundle(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = tmp_path / "pooled"
    write_bundle(replace(make_bundle(), pooling="noisy_or", background_class="good"), str(folder))
    bundle = read_bundle(str(folder))
    assert (bundle.pooling, bundle.background) == ("noisy_or", CLASS_NAMES.label_of("good"))
    facts = json.loads((folder / "bundle.json").read_text())
    del facts["pooling"], facts["background_class"]
    (folder / "bundle.json").write_text(json.dumps(facts))
    _reseal(folder)
    bundle = read_bundle(str(folder))
    assert (bundle.pooling, bundle.background) == ("", None)


def test_operating_point_of_no_class_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    probs_BK = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.2, 0.3]])
    other = ClassNames(("a", "b", "c"))
    calibration = fit_calibration(
        probs_BK, np.eye(3, dtype=bool), other, targets=[("b", "recall", 0.9)]
    )
    bundle = replace(make_bundle(), calibration=calibration.to_dict())
    with pytest.raises(BundleError, match=r"'b:recall>=0\.9' is of no class"):
        write_bundle(bundle, str(tmp_path / "bundle"))


def test_sha256sum_checks_the_folder(stored: Path) -> None:
    result = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=stored, capture_output=True, text=True, check=True
    )
    assert result.stdout.count("OK") == 5


def test_digest_is_the_sha256_of_the_sums(stored: Path) -> None:
    sums = (stored / "SHA256SUMS").read_bytes()
    assert read_digest(str(stored)) == hashlib.sha256(sums).hexdigest()


def test_loading_leaves_the_random_state_alone(stored: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    read_bundle(str(stored)).to_model()
    assert torch.rand(3).equal(expected)


def test_channels_last_weights_are_stored(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    model = bundle.to_model().to(memory_format=torch.channels_last)
    write_bundle(replace(bundle, state_dict=model.state_dict()), str(tmp_path / "b"))
    assert read_bundle(str(tmp_path / "b")).to_model() is not None


@pytest.mark.parametrize(
    "name", ["bundle.json", "model.safetensors", "golden.safetensors", "MODEL_CARD.md"]
)
def test_one_changed_byte_is_refused_by_name(stored: Path, name: str) -> None:
    data = bytearray((stored / name).read_bytes())
    data[-1] ^= 1
    (stored / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} was changed"):
        read_bundle(str(stored))


@pytest.mark.parametrize(
    "name", ["bundle.json", "model.safetensors", "golden.safetensors", "MODEL_CARD.md"]
)
def test_missing_file_is_refused_by_name(stored: Path, name: str) -> None:
    (stored / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        read_bundle(str(stored))


def test_folder_without_sums_is_no_bundle(stored: Path, tmp_path: Path) -> None:
    (stored / "SHA256SUMS").unlink()
    with pytest.raises(BundleError, match="never finished"):
        read_bundle(str(stored))
    with pytest.raises(BundleError, match="nothing is there"):
        read_bundle(str(tmp_path / "absent"))


def test_folder_of_a_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt.*no pickles"):
        read_bundle(str(tmp_path))


class _Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["torch", "pickle", "pickle2"])
def test_pickle_in_place_of_weights_is_refused_and_not_run(stored: Path, kind: str) -> None:
    trap = _Trap(stored.parent / "sprung")
    path = stored / "model.safetensors"
    if kind == "torch":
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap, protocol=2 if kind == "pickle2" else 5))
    _reseal(stored)
    with pytest.raises(BundleError, match=r"model\.safetensors is a pickle"):
        read_bundle(str(stored))
    assert not (stored.parent / "sprung").exists()


def test_tensors_that_do_not_fit_are_refused_by_name(stored: Path) -> None:
    bias = "classifier.4.bias"
    _edit_weights(stored, lambda t: t.update({bias: torch.zeros(7)}))
    with pytest.raises(BundleError, match=rf"{bias}.*\[7\].*needs torch.float32 \[3\]"):
        read_bundle(str(stored))
    _edit_weights(stored, lambda t: t.update({bias: torch.zeros(3, dtype=torch.float16)}))
    with pytest.raises(BundleError, match=rf"{bias} is torch.float16"):
        read_bundle(str(stored))
    _edit_weights(stored, lambda t: t.pop(bias))
    with pytest.raises(BundleError, match=f"missing.*{bias}"):
        read_bundle(str(stored))
    _edit_weights(stored, lambda t: t.update({bias: torch.zeros(3), "extra": torch.zeros(1)}))
    with pytest.raises(BundleError, match="has not: 'extra'"):
        read_bundle(str(stored))


def test_weights_that_are_no_safetensors_are_refused(stored: Path) -> None:
    (stored / "model.safetensors").write_bytes(b"\x10" + bytes(40))
    _reseal(stored)
    with pytest.raises(BundleError, match="not a safetensors"):
        read_bundle(str(stored))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "unknown keys 'surprise'"),
        ({"format_version": 2}, "format_version 2.*upgrade"),
        ({"arch": "resnet19"}, "unknown arch 'resnet19'"),
        ({"arch": "resnet18"}, "tensors missing for resnet18"),
        ({"class_names": ["a", "b"]}, "needs torch.float32"),
        ({"class_names": ["a"]}, "one class only"),
        ({"training": []}, "training is a list"),
        ({"pooling": "median"}, "unknown pooling 'median'.*max, mean"),
        ({"background_class": "c"}, "background_class 'c' is not a class"),
        ({"decode_spec": {"zoom": 2}}, "zoom"),
        ({"calibration": {"temperature": 1.0}}, "Calibration: unknown or missing"),
    ],
)
def test_facts_that_do_not_fit_are_refused(
    stored: Path, changes: dict[str, Any], message: str
) -> None:
    _edit_facts(stored, **changes)
    with pytest.raises(BundleError, match=message):
        read_bundle(str(stored))


def test_sums_that_name_other_files_are_refused(stored: Path) -> None:
    with (stored / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../../secret\n")
    with pytest.raises(BundleError, match=r"\.\./\.\./secret"):
        read_bundle(str(stored))


def test_golden_that_the_weights_do_not_give_is_not_written(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle()
    wrong = replace(bundle, golden_probs_BK=bundle.golden_probs_BK.flip(1))
    with pytest.raises(BundleError, match="does not reproduce"):
        write_bundle(wrong, str(tmp_path / "b"))
    nan = {n: t.float() * float("nan") if t.ndim else t for n, t in bundle.state_dict.items()}
    with pytest.raises(BundleError, match="does not reproduce"):
        write_bundle(replace(bundle, state_dict=nan), str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_facts_with_nan_are_not_written(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="JSON"):
        write_bundle(replace(make_bundle(), metrics={"a": float("nan")}), str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_second_writer_of_a_folder_is_refused(make_bundle: MakeBundle, stored: Path) -> None:
    digest = read_digest(str(stored))
    with pytest.raises(ObjectExistsError):
        write_bundle(make_bundle(), str(stored))
    assert read_digest(str(stored)) == digest


def test_card_shows_classes_counts_and_metrics(stored: Path) -> None:
    card = (stored / "MODEL_CARD.md").read_text()
    for text in (
        "| 0 | bad |",
        "| class | train |",
        "| bad | 2 |",
        "| test | accuracy | 0.5000 | 0.2500 to 0.7500 |",
        "image_px",
    ):
        assert text in card
