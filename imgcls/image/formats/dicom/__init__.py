"""DICOM objects: bytes -> frames of pixels."""
