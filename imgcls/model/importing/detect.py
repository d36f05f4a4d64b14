"""What somebody handed in: its kind told by content, and what is refused told how to convert it.

In: a path. Out: a kind. Invariant: nothing of what is looked at is ever run or unpickled; a kind
that can run code when it is loaded is refused here, each with the lines that convert it.
"""

import zipfile
from pathlib import Path
from typing import Final, Literal

from imgcls.errors import ConfigError
from imgcls.storage.json_text import parse_object

Kind = Literal["timm", "hugging_face", "onnx", "checkpoint"]

_TO_WEIGHTS: Final = (
    "    import torch\n"
    "    from safetensors.torch import save_file\n"
    "    {load}\n"
    "    state = {{name: tensor.contiguous() for name, tensor in model.state_dict().items()}}\n"
    "    save_file(state, 'weights.safetensors')\n"
    "then: imgcls import --from weights.safetensors --arch ARCH --classes FILE ..."
)
_TO_ONNX: Final = (
    "    import torch\n"
    "    {load}\n"
    "    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), 'model.onnx', dynamo=True,\n"
    "                      dynamic_shapes=({{0: 'batch'}},))\n"
    "then: imgcls import --from model.onnx ..."
)
_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"


def kind_of(path: Path) -> Kind:
    """Tell what a path holds.

    Raises:
        ConfigError: nothing is there; or what it is, why it is refused, and how to convert it.
    """
    if path.is_symlink():
        raise ConfigError(f"--from {path} is a link: give the place itself")
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        raise ConfigError(f"--from {path}: there is nothing of that name on this machine")
    return _kind_of_file(path)


def _kind_of_folder(folder: Path) -> Kind:
    if (folder / "SHA256SUMS").is_file() and (folder / "bundle.json").is_file():
        raise ConfigError(f"{folder} is a bundle of imgcls already: score with --model {folder}")
    if (folder / "MLmodel").is_file():
        raise _refused(
            folder,
            "an MLflow model, whose python functions are pickles",
            _TO_ONNX.format(
                load=f"import mlflow; model = mlflow.pytorch.load_model({str(folder)!r}).eval()"
            ),
        )
    if (folder / "saved_model.pb").is_file():
        raise ConfigError(
            f"{folder} is a TensorFlow model: convert it by `python -m tf2onnx.convert "
            f"--saved-model {folder} --output model.onnx`, then imgcls import --from model.onnx"
        )
    config = folder / "config.json"
    if not config.is_file():
        files = sorted(folder.glob("*.onnx"))
        if len(files) == 1:
            raise ConfigError(f"--from {folder}: name the file in it, {files[0]}")
        raise ConfigError(
            f"{folder} has no config.json: a folder of timm or Hugging Face holds one beside "
            "model.safetensors; of an ONNX network or a checkpoint name the file"
        )
    named = parse_object(config.read_bytes(), str(config), ConfigError)
    if isinstance(named.get("architecture"), str):
        return "timm"
    if "model_type" in named:
        return "hugging_face"
    raise ConfigError(
        f"{config} names neither an architecture (timm) nor a model_type (Hugging Face)"
    )


def _kind_of_file(path: Path) -> Kind:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_ZIP):
        return _kind_of_zip(path)
    if int.from_bytes(head[:8], "little") <= path.stat().st_size - 8 and head[8:9] == b"{":
        return "checkpoint"  # safetensors: the length of a JSON header, and the header
    if head.startswith(_PICKLE):
        raise _refused(
            path,
            "a pickle",
            _TO_WEIGHTS.format(load=f"model = torch.load({str(path)!r}, weights_only=False)"),
        )
    if head.startswith(_HDF5):
        raise ConfigError(
            f"{path} is an HDF5 file, such as Keras writes: convert it by "
            f"`python -m tf2onnx.convert --keras {path} --output model.onnx`, then imgcls import "
            "--from model.onnx"
        )
    if head[4:8] == b"TFL3":
        raise ConfigError(
            f"{path} is a TensorFlow Lite model: convert it by `python -m tf2onnx.convert --tflite "
            f"{path} --output model.onnx`, then imgcls import --from model.onnx"
        )
    if path.suffix.lower() == ".onnx" or head[:1] == b"\x08":  # field 1 of a ModelProto: ir_version
        return "onnx"
    raise ConfigError(
        f"{path} is none of what imgcls imports: .safetensors or .pt (weights only), .onnx, a "
        "folder of timm or Hugging Face"
    )


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{path} is damaged: {error}; copy it again") from error
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise _refused(
            path,
            "a TorchScript archive",
            _TO_ONNX.format(load=f"model = torch.jit.load({str(path)!r}).eval()"),
        )
    if "archive_format" in names or any(
        "exported_program" in name or name == "models/model.json" for name in names
    ):
        raise _refused(
            path,
            "a .pt2 archive of torch.export, which falls back to pickle",
            _TO_ONNX.format(load=f"model = torch.export.load({str(path)!r}).module()"),
        )
    if "data.pkl" in names:
        return "checkpoint"  # torch.save: read with weights_only, which runs nothing
    raise ConfigError(f"{path} is a zip archive and none that torch.save writes: unpack it first")


def _refused(path: Path, what: str, lines: str) -> ConfigError:
    return ConfigError(
        f"{path} is {what}: it can run code when it is loaded, so imgcls does not. Where you trust "
        f"it, convert it once:\n{lines}"
    )
