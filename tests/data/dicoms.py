"""Small DICOM files with whatever elements a test needs."""

from io import BytesIO
from typing import Any

import numpy as np
import pydicom

_ALWAYS = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
    "SOPInstanceUID": "1.2.3",
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "SamplesPerPixel": 1,
    "PixelRepresentation": 0,
    "PhotometricInterpretation": "MONOCHROME2",
}


def dicom_file(
    transfer_syntax: str = "1.2.840.10008.1.2.1",
    image_HW: np.ndarray | None = None,
    **elements: Any,
) -> bytes:
    """Return a picture, uint8 [H,W] (frames [N,H,W]) or 4 x 4 black pixels, with these elements."""
    pixels_HW = np.zeros((4, 4), np.uint8) if image_HW is None else image_HW
    dataset = pydicom.Dataset()
    for name, value in (_ALWAYS | elements).items():
        setattr(dataset, name, value)
    dataset.Rows, dataset.Columns = pixels_HW.shape[-2:]
    dataset.PixelData = pixels_HW.tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
