"""Names of image formats that people have and imgcls does not read.

In: encoded bytes. Out: the family for the column `format`, and words for people. Invariant: told by
content alone, from a few bytes at fixed places; nothing of such a file is ever decoded.
"""

import re
import struct
import zlib
from typing import Final

_CONVERT: Final = "is not read: convert it to PNG or TIFF"
_VOLUME: Final = "is not read: export its slices as DICOM, PNG or TIFF"
_RAW: Final = "a camera raw is not read: develop it to TIFF, PNG or JPEG"
# Begin, family, name, what to do.
_MAGIC: Final[tuple[tuple[bytes, str, str, str], ...]] = (
    (b"\xff\x0a", "jpegxl", "JPEG XL", _CONVERT),
    (b"\x00\x00\x00\x0cJXL ", "jpegxl", "JPEG XL", _CONVERT),
    (b"II\xbc\x01", "jpegxr", "JPEG XR", _CONVERT),
    (b"\x97JB2\r\n\x1a\n", "jbig2", "JBIG2", _CONVERT),
    (b"%!PS", "postscript", "PostScript", _CONVERT),
    (b"\xc5\xd0\xd3\xc6", "postscript", "PostScript (EPS with a preview)", _CONVERT),
    (b"8BPS", "psd", "a Photoshop document", _CONVERT),
    (b"gimp xcf", "xcf", "a GIMP document", _CONVERT),
    (b"\x00\x00\x01\x00", "ico", "an icon", _CONVERT),
    (b"icns", "icns", "an icon of macOS", _CONVERT),
    (b"v/1\x01", "exr", "OpenEXR", _CONVERT),
    (b"#?RADIANCE", "hdr", "Radiance HDR", _CONVERT),
    (b"#?RGBE", "hdr", "Radiance HDR", _CONVERT),
    (b"PF\n", "pfm", "PFM of three channels", _CONVERT),
    (b"PF ", "pfm", "PFM of three channels", _CONVERT),
    (b"PF\r", "pfm", "PFM of three channels", _CONVERT),
    (b"P7\n", "pam", "PAM", _CONVERT),
    (b"P7 332", "xv", "a thumbnail of xv", _CONVERT),
    (b"qoif", "qoi", "QOI", _CONVERT),
    (b"DDS ", "dds", "DDS", _CONVERT),
    (b"\xabKTX ", "ktx", "KTX", _CONVERT),
    (b"FLIF", "flif", "FLIF", _CONVERT),
    (b"BPG\xfb", "bpg", "BPG", _CONVERT),
    (b"\x8aMNG\r\n\x1a\n", "mng", "MNG", _CONVERT),
    (b"\x8bJNG\r\n\x1a\n", "jng", "JNG", _CONVERT),
    (b"farbfeld", "farbfeld", "farbfeld", _CONVERT),
    (b"\x01\xda\x00", "sgi", "SGI", _CONVERT),
    (b"\x01\xda\x01", "sgi", "SGI", _CONVERT),
    (b"\x59\xa6\x6a\x95", "sun", "a Sun raster", _CONVERT),
    (b"/* XPM */", "xpm", "XPM", _CONVERT),
    (b"! XPM2", "xpm", "XPM", _CONVERT),
    (b"BLP1", "blp", "BLP", _CONVERT),
    (b"BLP2", "blp", "BLP", _CONVERT),
    (b"FTEX", "ftex", "FTEX", _CONVERT),
    (b"DanM", "msp", "Microsoft Paint", _CONVERT),
    (b"LinS", "msp", "Microsoft Paint", _CONVERT),
    (b"AT&TFORM", "djvu", "DjVu", _CONVERT),
    (b"\xd7\xcd\xc6\x9a", "wmf", "a Windows metafile", _CONVERT),
    (b"SDPX", "dpx", "DPX", _CONVERT),
    (b"XPDS", "dpx", "DPX", _CONVERT),
    (b"\x80\x2a\x5f\xd7", "cineon", "Cineon", _CONVERT),
    (b"<svg", "svg", "SVG", _CONVERT),
    (b"FUJIFILMCCD-RAW", "raw", "Fujifilm RAF", _RAW),
    (b"IIRO", "raw", "Olympus ORF", _RAW),
    (b"IIRS", "raw", "Olympus ORF", _RAW),
    (b"MMOR", "raw", "Olympus ORF", _RAW),
    (b"IIU\x00", "raw", "Panasonic RW2", _RAW),
    (b"FOVb", "raw", "Sigma X3F", _RAW),
    (b"\x00MRM", "raw", "Minolta MRW", _RAW),
    (b"II\x1a\x00\x00\x00HEAPCCDR", "raw", "Canon CRW", _RAW),
    (b"NRRD000", "nrrd", "NRRD", _VOLUME),
    (b"SIMPLE  =", "fits", "FITS", _CONVERT),
    (b"ZISRAWFILE", "czi", "Zeiss CZI", _CONVERT),
    (b"\xda\xce\xbe\x0a", "nd2", "Nikon ND2", _CONVERT),
    (b"\x00\x00\x00\x0cjP  \x1a\x1a", "nd2", "Nikon ND2", _CONVERT),
    (b"MATRIX7", "ecat", "ECAT", _VOLUME),
    (b"!INTERFILE", "interfile", "Interfile", _VOLUME),
    (b"# vtk DataFile", "vtk", "VTK", _VOLUME),
    (b"CDF\x01", "netcdf", "netCDF (as MINC)", _VOLUME),
    (b"CDF\x02", "netcdf", "netCDF", _VOLUME),
    (b"\x89HDF", "hdf5", "an HDF5 file", _CONVERT),
    (b"MATLAB 5.0", "matlab", "a MATLAB file", _CONVERT),
    (b"\x93NUMPY", "numpy", "a NumPy array", _CONVERT),
)
# The same of marks further behind.
_MAGIC_WITHIN: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (4, b"\x11\xaf", "fli", "an animation of Autodesk (FLI)"),
    (4, b"\x12\xaf", "fli", "an animation of Autodesk (FLC)"),
    (40, b" EMF", "emf", "an enhanced metafile"),
    (522, b"\x00\x11\x02\xff", "pict", "PICT"),
    (522, b"\x11\x01", "pict", "PICT"),
    (2048, b"PCD_", "pcd", "Kodak Photo CD"),
)
_META_IMAGE: Final = re.compile(rb"\s*(?:Comment|ObjectType|ObjectSubType|NDims) *=")
_META_IMAGE_PIXELS: Final = re.compile(rb"ElementDataFile *= *(\S+)")
_XBM: Final = re.compile(rb"\s*(?:/\*.*?\*/\s*)?#define\s+\w*_?width\s+\d", re.DOTALL)
_NIFTI_1: Final = (b"n+1\0", b"ni1\0")
_NIFTI_2: Final = (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")
_NIFTI_1_BYTES, _NIFTI_2_BYTES = 348, 540
_ANALYZE_EXTENTS: Final = 16384
_PCX_VERSIONS: Final = (0, 2, 3, 4, 5)
_TGA_FOOTER: Final = b"TRUEVISION-XFILE.\x00"
_TGA_TYPES: Final = (1, 2, 3, 9, 10, 11)
_GZIP: Final = b"\x1f\x8b"
_PEEK_BYTES: Final = 1024


def name_unread(data: bytes) -> tuple[str, str] | None:
    """Return family and words for an image of a format that is not read, else None."""
    for magic, family, name, advice in _MAGIC:
        if data.startswith(magic):
            return family, f"{name}: {advice}" if advice == _RAW else f"{name} {advice}"
    within = (row for row in _MAGIC_WITHIN if data.startswith(row[1], row[0]))
    marked = next(((family, name, _CONVERT) for _, _, family, name in within), None)
    found = _volume(data) or marked or _by_structure(data)
    if found is None:
        return None
    family, name, advice = found
    return family, f"{name} {advice}"


def peek_gzip(data: bytes) -> bytes:
    """Return the first bytes of what a gzip file holds, b"" where that is none or damaged."""
    if not data.startswith(_GZIP):
        return b""
    try:
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        return inflater.decompress(data[: 4 * _PEEK_BYTES], _PEEK_BYTES)
    except zlib.error:
        return b""


def _volume(data: bytes) -> tuple[str, str, str] | None:
    """Tell the volumes of research by their headers, in either byte order."""
    if len(data) >= _NIFTI_1_BYTES and data[344:348] in _NIFTI_1:
        return "nifti", "NIfTI", _VOLUME
    if data[4:12] in _NIFTI_2:
        return "nifti", "NIfTI-2", _VOLUME
    for order in "<>":
        if len(data) >= _NIFTI_1_BYTES:
            size, extents = struct.unpack_from(f"{order}i28xi", data)
            if size == _NIFTI_1_BYTES and extents in (0, _ANALYZE_EXTENTS):
                return "analyze", "an ANALYZE 7.5 header", _VOLUME
    if _META_IMAGE.match(data) and b"NDims" in data[:_PEEK_BYTES]:
        pixels = _META_IMAGE_PIXELS.search(data[: 4 * _PEEK_BYTES])
        is_here = pixels is None or pixels[1].upper() == b"LOCAL"
        name = "MetaImage" if is_here else "a MetaImage header, its pixels in another file,"
        return "metaimage", name, _VOLUME
    if data[208:212] == b"MAP " and len(data) >= 1024:
        return "mrc", "MRC", _VOLUME
    return None


def _by_structure(data: bytes) -> tuple[str, str, str] | None:
    """Tell formats whose first bytes alone say too little."""
    if data[:1] == b"\x70" and data[1:4] == bytes(3) and data[8:9] == b"\x2a":
        return "lif", "Leica LIF", _CONVERT
    if data[:4] == b"FORM" and data[8:12] in (b"ILBM", b"PBM "):
        return "iff", "IFF", _CONVERT
    if data[4:8] == b"\x00\x00\x00\x07" and 100 <= int.from_bytes(data[:4]) <= 1024:
        return "xwd", "a dump of an X window", _CONVERT
    if _is_os2(data):
        return "os2", "an icon or bitmap array of OS/2", _CONVERT
    if _XBM.match(data[:_PEEK_BYTES]):
        return "xbm", "XBM", _CONVERT
    if data.endswith(_TGA_FOOTER) or _is_tga(data):
        return "tga", "TGA", _CONVERT
    if data.startswith(b"\x00\x00\x02\x00"):  # as an uncompressed TGA begins, too
        return "cur", "a cursor", _CONVERT
    if _is_pcx(data):
        return "pcx", "PCX", _CONVERT
    return None


def _is_os2(data: bytes) -> bool:
    """Tell an icon, pointer or bitmap array of OS/2 by its mark and the header within."""
    inside = data[14:16] if data.startswith(b"BA") else data[:2]
    header_at = 28 if data.startswith(b"BA") else 14
    header_bytes = int.from_bytes(data[header_at : header_at + 4], "little")
    kinds = (b"CI", b"CP", b"IC", b"PT", *((b"BM",) if header_at == 28 else ()))
    return inside in kinds and header_bytes in (12, 16, 40, 64)


def _is_pcx(data: bytes) -> bool:
    """Tell PCX by its header: maker, version, run lengths, bits, a box that is not inside out."""
    if len(data) < 128 or data[0] != 0x0A or data[1] not in _PCX_VERSIONS or data[2] > 1:
        return False
    left, top, right, bottom = struct.unpack_from("<4H", data, 4)
    return data[3] in (1, 2, 4, 8) and left <= right and top <= bottom and data[64] == 0


def _is_tga(data: bytes) -> bool:
    """Tell a TGA without footer by its header, each of whose fields allows few values."""
    if len(data) <= 18:
        return False
    _, has_map, kind, first, length, map_bits, _, _, width, height, bits, flags = (
        struct.unpack_from("<BBBHHBHHHHBB", data)
    )
    is_mapped = kind in (1, 9)
    allowed_bits = (8,) if kind in (1, 3, 9, 11) else (15, 16, 24, 32)
    map_is_right = (
        has_map == 1 and map_bits in (15, 16, 24, 32) and 0 < length <= 256
        if is_mapped
        else (has_map, first, length, map_bits) == (0, 0, 0, 0)
    )
    return (
        kind in _TGA_TYPES
        and map_is_right
        and bits in allowed_bits
        and flags & 0xC0 == 0
        and 0 < width <= 16384
        and 0 < height <= 16384
    )
