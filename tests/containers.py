"""Pictures written by hand, byte by byte, as their formats state: PNG, TIFF, BMP, PNM."""

import struct
import zlib

import numpy as np

Entry = tuple[int, int, int, bytes]  # tag, type, count, value


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of samples, each padded to whole bytes; the first bits are the high ones."""
    if bits in (8, 16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    rows = b""
    for row in samples.reshape(len(samples), -1):
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += int(text, 2).to_bytes(len(text) // 8, "big")
    return rows


def png(samples: np.ndarray, bits: int, colour: int, **chunks: bytes) -> bytes:
    """A PNG; ``colour`` is 0 grey, 2 RGB, 3 palette, 4 grey and opacity, 6 RGB and opacity."""
    height, width = samples.shape[:2]
    rows = packed(samples, bits)
    step = len(rows) // height
    lines = b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = {"IHDR": head, **chunks, "IDAT": zlib.compress(lines), "IEND": b""}
    data = b"\x89PNG\r\n\x1a\n"
    for name, value in content.items():
        body = name.encode() + value
        data += struct.pack(">I", len(value)) + body + struct.pack(">I", zlib.crc32(body))
    return data


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    order: str,
    *,
    separate: bool = False,
    **shorts: list[int],
) -> bytes:
    """A TIFF of one strip, or one for each plane; ``shorts`` are further tags, ``t338=[1]``."""
    height, width = samples.shape[:2]
    planes = samples.reshape(height, width, -1)
    count = planes.shape[2]
    strips = [packed(samples, bits, order)]
    if separate:
        strips = [packed(planes[..., plane], bits, order) for plane in range(count)]
    tags = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [photometric],
            277: [count], 278: [height], 284: [2 if separate else 1]}  # fmt: skip
    tags |= {int(name[1:]): values for name, values in shorts.items()}
    entries: list[Entry] = [
        (tag, 3, len(values), struct.pack(f"{order}{len(values)}H", *values))
        for tag, values in tags.items()
    ]
    number = len(strips)
    lengths = struct.pack(f"{order}{number}I", *map(len, strips))
    entries += [(273, 4, number, bytes(4 * number)), (279, 4, number, lengths)]
    behind = 8 + 2 + 12 * len(entries) + 4
    start = behind + sum(len(value) for *_, value in entries if len(value) > 4)
    offsets = [start + sum(map(len, strips[:i])) for i in range(number)]
    directory, values = b"", b""
    for tag, kind, size, value in sorted(entries):
        at = struct.pack(f"{order}{number}I", *offsets) if tag == 273 else value
        if len(at) > 4:
            at, values = struct.pack(f"{order}I", behind + len(values)), values + at
        directory += struct.pack(f"{order}HHI", tag, kind, size) + at.ljust(4, b"\0")
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    head += struct.pack(f"{order}H", len(entries))
    return head + directory + bytes(4) + values + b"".join(strips)


def bmp(
    samples: np.ndarray, bits: int, palette: np.ndarray | None = None, masks: tuple[int, ...] = ()
) -> bytes:
    """A BMP of indices, of colours, or of numbers in which ``masks`` say where the colours lie.

    With a fourth mask, of opacity, its header is of version 5. Rows are stored from the bottom.
    """
    order = "<" if masks else ">"  # colours are bytes: blue, green, red
    stored = samples[..., ::-1] if samples.ndim == 3 else samples
    rows = [packed(row[None], 8 if samples.ndim == 3 else bits, order) for row in stored[::-1]]
    lines = b"".join(row + bytes(-len(row) % 4) for row in rows)
    colours = b""
    if palette is not None:
        colours = np.insert(palette[:, ::-1], 3, 0, axis=1).astype(np.uint8).tobytes()
    fields, size = struct.pack(f"<{len(masks)}I", *masks), 40
    if len(masks) == 4:
        fields, size = (fields + b"BGRs").ljust(84, b"\0"), 124
    start = 14 + 40 + len(fields) + len(colours)
    kind, used = 3 if masks else 0, len(colours) // 4
    head = struct.pack("<2sIHHI", b"BM", start + len(lines), 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", size, 8, 8, 1, bits, kind, len(lines), 0, 0, used, 0)
    return head + fields + colours + lines


def pnm(kind: str, samples: np.ndarray, largest: int) -> bytes:
    """A portable map of kind P1 to P6; P1 and P4 have bits, of which 1 is black."""
    head = f"{kind} {samples.shape[1]} {samples.shape[0]}\n"
    if kind not in ("P1", "P4"):
        head += f"{largest}\n"
    if kind in ("P1", "P2", "P3"):
        return (head + " ".join(map(str, samples.ravel()))).encode()
    bits = 1 if kind == "P4" else 8 if largest < 256 else 16
    return head.encode() + packed(samples, bits)
