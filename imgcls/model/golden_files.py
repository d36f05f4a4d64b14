"""Pictures that nobody took, as encoded files: a golden check begins with them.

In: nothing. Out: files by name, JPEG, PNG of 8 and 16 bits, DICOM where pydicom is installed; to a
zip and back. Invariant: generated from fixed seeds, so no patient and no part is ever in a bundle.
"""

import io
import zipfile
from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg

from imgcls.image.png import encode_png
from imgcls.model.bundle_files import GOLDEN_FILES

# Height and width: upright, wide, square, a strip; above and below usual inputs.
_SIZES_PX: Final = (
    (240, 320), (320, 214), (256, 256), (167, 250), (101, 99), (100, 300),
    (288, 216), (130, 174), (300, 225), (112, 112), (206, 144), (75, 120),
)  # fmt: skip
_KINDS: Final = ("jpg", "png", "16.png", "jpg", "gray.png", "dcm")
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)  # equal files give equal bytes

_GENERATED: Final = (
    "`golden_files.zip` holds generated pictures that prove a machine. No image of the data is in "
    "this folder, but in inputs.png and worst_errors.png, if these are here."
)
_OF_THE_DATA: Final = (
    "`golden.safetensors` holds a few preprocessed images of the data, by which every machine "
    "proves that it computes what this model computes: whoever has the model has them."
)


def about_golden(attachments: Collection[str]) -> str:
    """Return what the model card says of what proves a machine, by the files beside the card."""
    return _GENERATED if GOLDEN_FILES in attachments else _OF_THE_DATA


def make_files() -> dict[str, bytes]:
    """Return encoded files by name, the same at every call on a machine."""
    files = {}
    for number, (height, width) in enumerate(_SIZES_PX):
        kind = _KINDS[number % len(_KINDS)]
        data = _encode(draw_picture(number, height, width), kind)
        if data:
            files[f"{number:02d}.{kind}"] = data
    return files


def pack_files(files: dict[str, bytes]) -> bytes:
    """Return the files as one zip, in their order."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data)
    return packed.getvalue()


def unpack_files(data: bytes) -> dict[str, bytes]:
    """Return what `pack_files` packed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _encode(image_HWC: npt.NDArray[np.uint8], kind: str) -> bytes:
    gray_HW = image_HWC.mean(axis=2)
    if kind == "jpg":
        data: bytes = simplejpeg.encode_jpeg(image_HWC, 90)
        return data
    if kind == "png":
        return encode_png(image_HWC)
    if kind == "gray.png":
        return encode_png(gray_HW.astype(np.uint8))
    deep_HW = (gray_HW * 257).astype(np.uint16)
    return encode_png(deep_HW) if kind == "16.png" else _encode_dicom(deep_HW)


def _encode_dicom(deep_HW: npt.NDArray[np.uint16]) -> bytes:
    """Return a plain 16-bit grey image; nothing where pydicom is not installed."""
    try:
        import pydicom
        from pydicom.dataset import Dataset, FileMetaDataset
    except ImportError:
        return b""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    kind = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.7")  # Secondary Capture
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = kind
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("2.25.1")
    image.Modality, image.PhotometricInterpretation = "OT", "MONOCHROME2"
    image.Rows, image.Columns = deep_HW.shape
    image.SamplesPerPixel, image.PixelRepresentation = 1, 0
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelData = deep_HW.tobytes()
    encoded = io.BytesIO()
    image.save_as(encoded, enforce_file_format=True)
    return encoded.getvalue()


def draw_picture(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,3]: waves, discs, bars and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image_HWC = np.empty((height, width, 3), np.float32)
    for channel in range(3):
        across, down, phase = rng.uniform((0.004, 0.004, 0), (0.06, 0.06, 6.3))
        image_HWC[..., channel] = 127 + 90 * np.sin(across * x + down * y + phase)
    for _ in range(int(rng.integers(3, 9))):
        row, column, radius = rng.uniform((0, 0, 8), (height, width, height / 3))
        is_inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        image_HWC[is_inside] = 0.4 * image_HWC[is_inside] + 0.6 * rng.uniform(0, 255, 3)
    for _ in range(int(rng.integers(2, 6))):
        top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
        bottom, right = top + int(rng.integers(2, 40)), left + int(rng.integers(2, 60))
        image_HWC[top:bottom, left:right] = rng.uniform(0, 255, 3)
    image_HWC += rng.normal(0, 3, image_HWC.shape)
    return image_HWC.clip(0, 255).astype(np.uint8)
