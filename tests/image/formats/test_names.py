"""What is not read is named, with the way out."""

import gzip
import struct

import pytest

from imgcls.errors import UnsupportedImageError
from imgcls.image.decode import decode
from imgcls.image.formats.sniff import family_of
from imgcls.image.spec import DecodeSpec


def nifti(order: str = "<", *, version: int = 1) -> bytes:
    if version == 2:
        return struct.pack(f"{order}i", 540) + b"n+2\0\r\n\x1a\n" + bytes(600)
    return struct.pack(f"{order}i", 348) + bytes(340) + b"n+1\0" + bytes(100)


PCX = bytes((10, 5, 1, 8)) + struct.pack("<4H", 0, 0, 7, 7) + bytes(200)
TGA = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 8, 8, 24, 0x20) + bytes(192)
RLE_TGA = struct.pack("<BBBHHBHHHHBB", 4, 1, 9, 0, 256, 24, 0, 0, 8, 8, 8, 0) + bytes(900)
META = (
    b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = "
)
UNREAD = {
    "jpeg xl, bare": (b"\xff\x0a" + bytes(40), "jpegxl", "JPEG XL"),
    "jpeg xl, boxed": (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(40), "jpegxl", "JPEG XL"),
    "jpeg xr": (b"II\xbc\x01" + bytes(40), "jpegxr", "JPEG XR"),
    "nifti": (nifti(), "nifti", "NIfTI"),
    "nifti, big-endian": (nifti(">"), "nifti", "NIfTI"),
    "nifti 2": (nifti(version=2), "nifti", "NIfTI-2"),
    "nifti by gzip": (gzip.compress(nifti()), "nifti", "NIfTI"),
    "analyze": (struct.pack("<i28xi", 348, 16384) + bytes(312), "analyze", "ANALYZE"),
    "nrrd": (b"NRRD0004\ntype: short\n", "nrrd", "NRRD"),
    "nrrd by gzip": (gzip.compress(b"NRRD0005\n# c\n"), "nrrd", "NRRD"),
    "mha": (META + b"LOCAL\n" + bytes(128), "metaimage", "MetaImage"),
    "mhd": (META + b"a.raw\n", "metaimage", "another file"),
    "fits": (b"SIMPLE  =                    T" + bytes(200), "fits", "FITS"),
    "czi": (b"ZISRAWFILE" + bytes(100), "czi", "CZI"),
    "pfm": (b"PF\n8 8\n-1.0\n" + bytes(768), "pfm", "PFM"),
    "pam": (b"P7\nWIDTH 8\nHEIGHT 8\n", "pam", "PAM"),
    "hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "hdr", "Radiance HDR"),
    "qoi": (b"qoif" + bytes(20), "qoi", "QOI"),
    "tga": (TGA, "tga", "TGA"),
    "tga, mapped": (RLE_TGA, "tga", "TGA"),
    "tga by its foot": (b"\x05" * 50 + bytes(8) + b"TRUEVISION-XFILE.\x00", "tga", "TGA"),
    "pcx": (PCX, "pcx", "PCX"),
    "psd": (b"8BPS\x00\x01" + bytes(60), "psd", "Photoshop"),
    "blp": (b"BLP2" + bytes(60), "blp", "BLP"),
    "fli": (b"\x00\x10\x00\x00\x11\xaf" + bytes(122), "fli", "FLI"),
    "pict": (bytes(522) + b"\x00\x11\x02\xff\x0c\x00" + bytes(60), "pict", "PICT"),
    "pict 1": (bytes(522) + b"\x11\x01\x01\x00" + bytes(60), "pict", "PICT"),
    "xwd": (struct.pack(">II", 107, 7) + bytes(99), "xwd", "X window"),
    "photo cd": (bytes(2048) + b"PCD_OPA" + bytes(60), "pcd", "Photo CD"),
    "avif, minimized": (b"\x00\x00\x00\x10ftypmif3avif" + bytes(60), "heif", "minimized"),
    "os/2 icon": (b"CI" + struct.pack("<I8xI", 26, 12) + bytes(60), "os2", "OS/2"),
    "os/2 array": (
        b"BA" + struct.pack("<I8x", 40) + b"CI" + struct.pack("<I8xI", 26, 12) + bytes(60),
        "os2",
        "OS/2",
    ),
    "icon": (b"\x00\x00\x01\x00\x01\x00" + bytes(60), "ico", "icon"),
    "exr": (b"v/1\x01" + bytes(60), "exr", "OpenEXR"),
    "dds": (b"DDS |" + bytes(60), "dds", "DDS"),
    "xpm": (b"/* XPM */\nstatic char *x[] = {", "xpm", "XPM"),
    "xbm": (b"#define im_width 16\n#define im_height 7\n", "xbm", "XBM"),
    "svg": (b'<?xml version="1.0"?><svg/>', "svg", "SVG"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "postscript", "PostScript"),
    "wmf": (b"\xd7\xcd\xc6\x9a" + bytes(60), "wmf", "metafile"),
    "emf": (b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60), "emf", "metafile"),
    "djvu": (b"AT&TFORM" + bytes(60), "djvu", "DjVu"),
    "cr3": (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom", "raw", "camera raw"),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "raw", "camera raw"),
    "orf": (b"IIRO\x08\x00\x00\x00" + bytes(60), "raw", "camera raw"),
    "rw2": (b"IIU\x00\x18\x00\x00\x00" + bytes(60), "raw", "camera raw"),
    "lif": (b"\x70\x00\x00\x00\x10\x00\x00\x00\x2a" + bytes(60), "lif", "Leica"),
    "mrc": (bytes(208) + b"MAP " + bytes(900), "mrc", "MRC"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "hdf5", "HDF5"),
    "minc": (b"CDF\x01" + bytes(60), "netcdf", "netCDF"),
    "jpeg by gzip": (gzip.compress(b"\xff\xd8\xff\xe0" + bytes(50)), "gzip", "JPEG"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_an_image_that_is_not_read_is_named_with_the_way_out(kind: str) -> None:
    data, family, name = UNREAD[kind]
    with pytest.raises(UnsupportedImageError) as raised:
        decode(data, DecodeSpec())
    told = str(raised.value)
    assert name in told
    assert any(way in told for way in ("convert", "export", "develop", "unpack"))
    assert "no known image format" not in told
    assert family_of(data) == family


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"a,b\n1,2\n" * 100),
        gzip.compress(bytes(10**6)),
        b"\x1f\x8b" + bytes(60),
        b"\x1f\x8b\x08",
        gzip.compress(gzip.compress(gzip.compress(b"x"))),
    ],
    ids=["table", "zeros", "damaged", "cut", "three times"],
)
def test_a_gzip_file_of_something_else_is_not_an_image(data: bytes) -> None:
    assert family_of(data) == "gzip"
