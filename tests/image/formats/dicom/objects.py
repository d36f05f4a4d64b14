"""DICOM objects by hand."""

import io
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec

pydicom = pytest.importorskip("pydicom")


def make(stored: np.ndarray[Any, Any], **attributes: Any) -> bytes:
    """Write a minimal object around stored values, uint or int, [H,W], [F,H,W] or [H,W,3]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID = "Somebody^Secret", "4711"
    is_color = stored.shape[-1] == 3 and stored.ndim == 3
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    frames = stored if stored.ndim == 3 and not is_color else stored[np.newaxis]
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.BitsAllocated = 8 * stored.itemsize
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes() + b"\x00" * (stored.nbytes % 2)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    if "BitsStored" in attributes and "HighBit" not in attributes:
        dataset.HighBit = dataset.BitsStored - 1
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def gray(data: bytes, **fields: Any) -> list[int]:
    [found] = decode(data, DecodeSpec(color="gray", **fields))
    values: list[int] = found.image_HWC.ravel().tolist()
    return values


ROW = np.array([[0, 1024, 2048, 4095]], np.uint16)
