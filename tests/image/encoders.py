"""Writers of files that no library here writes, byte by byte from their standards."""

import struct

import numpy as np

_ALL_LENGTHS_FIVE = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # a Huffman code of 17 symbols


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def lossless_jpeg(image_HWC: np.ndarray, adobe_transform: int | None = None) -> bytes:
    """A JPEG of the lossless process (SOF3), predictor 1, of any number of channels."""
    height, width, channels = image_HWC.shape
    values = image_HWC.astype(int)
    predicted = np.roll(values, 1, axis=1)
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 128
    bits = []
    for difference in (values - predicted).ravel().tolist():
        category = abs(difference).bit_length()
        extra = difference if difference > 0 else difference + (1 << category) - 1
        bits.append(f"{category:05b}" + (f"{extra:0{category}b}" if category else ""))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\x00")
    components = b"".join(bytes([c + 1, 0x11, 0]) for c in range(channels))
    scanned = b"".join(bytes([c + 1, 0]) for c in range(channels))
    adobe = b"Adobe\x00\x64\x00\x00\x00\x00" + bytes([adobe_transform or 0])
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xEE, adobe) if adobe_transform is not None else b"",
            segment(0xC3, struct.pack(">BHHB", 8, height, width, channels) + components),
            segment(0xC4, b"\x00" + _ALL_LENGTHS_FIVE),
            segment(0xDA, bytes([channels]) + scanned + b"\x01\x00\x00"),
            coded,
            b"\xff\xd9",
        )
    )
