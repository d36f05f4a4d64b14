"""Deep greys as scanners and cameras write them, with a finding planted where one is asked for.

Each uses a sliver of what its type could hold: by the range that the file declares next to nothing
of it is left in 8 bits.
"""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE_PX = 64
_SPOT_PX = 10


def scene(seed: int, low: float, high: float, finding: float = 0.0) -> npt.NDArray[np.float64]:
    """A smooth picture from `low` to `high` with some noise; `finding` is added to a spot."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.random((6, 6)).astype(np.float32))
    smooth = np.asarray(coarse.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)).astype(float)
    values = low + (high - low) * (0.8 * smooth.clip(0, 1) + 0.02 * rng.random(smooth.shape))
    top, left = rng.integers(4, SIDE_PX - _SPOT_PX - 4, 2)
    values[top : top + _SPOT_PX, left : left + _SPOT_PX] += finding
    return values


def ct_without_window(seed: int, *, finding: bool = False) -> bytes:
    """A CT whose 16 bits could hold -33,792 to 31,743 HU; it shows -200 to 300."""
    return dicom(scene(seed, -200, 300, 150 if finding else 0), "CT")


def dicom(values: npt.NDArray[np.float64], modality: str, **attributes: object) -> bytes:
    """An uncompressed DICOM object of 16 bits, by the rescale of CTs."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = modality
    dataset.Rows, dataset.Columns = values.shape[-2:]
    if values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = (values + 1024).astype(np.int16).tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def png_12_in_16(seed: int, *, finding: bool = False) -> bytes:
    """A camera of 12 bits whose file says 16, used in its lower half."""
    values = scene(seed, 300, 1500, 500 if finding else 0)
    return _encode(Image.fromarray(values.astype(np.uint16)), "PNG")


def thermal_tiff(seed: int, *, finding: bool = False) -> bytes:
    """Hundredths of a kelvin: 290 to 300 K, a hot spot of 4 K more."""
    values = scene(seed, 29_000, 30_000, 400 if finding else 0)
    return _encode(Image.fromarray(values.astype(np.uint16)), "TIFF")


def float_tiff(seed: int, *, finding: bool = False) -> bytes:
    """Counts 1,000 to 1,400 as floats, and one dead pixel of 100,000."""
    values = scene(seed, 1_000, 1_400, 150 if finding else 0)
    values[0, 0] = 100_000
    return _encode(Image.fromarray(values.astype(np.float32)), "TIFF")


def _encode(image: Image.Image, name: str) -> bytes:
    out = io.BytesIO()
    image.save(out, name)
    return out.getvalue()


DEEP: dict[str, tuple[str, Callable[..., bytes]]] = {
    "CT without a window": ("dcm", ct_without_window),
    "12 bits in a PNG of 16": ("png", png_12_in_16),
    "thermal TIFF": ("tif", thermal_tiff),
    "float TIFF": ("tif", float_tiff),
}
