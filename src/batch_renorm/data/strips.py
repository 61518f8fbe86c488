"""JPEGs in strips: a part is decoded without the rest of the image.

Restart markers divide a JPEG's codes into strips, and a strip is decoded without those before it. So the header with
another width and height, and the strips that a part touches, are a JPEG again. The decoder makes the same pixels of
it, bit for bit, and does not read the rest. `in_strips` writes such files without loss, with the lengths of their
strips in a comment behind the first two bytes; other readers skip it.
"""

import shutil
import struct
import subprocess
from dataclasses import dataclass
from math import log

import numpy as np
import simplejpeg

from batch_renorm.data.augmentation import Box
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.scan import END, RESTARTS, START, header_of, restarts_of
from batch_renorm.errors import UserError

MARGIN = 2
"""Pixels around a part that are decoded with it: where the colours have half of the pixels, they are interpolated."""
NARROWEST = 16
"""Pixels: libjpeg interpolates no colours of images of 4 pixels and less."""
STRIPS = 16
"""Aim for the number of strips side by side. With more of them a file is larger, with fewer less is left out."""
PROGRAM = "jpegtran"
INSTALL = "apt install libjpeg-turbo-progs, or brew install jpeg-turbo"
COMMENT, TAG = b"\xff\xfe", b"strips 1"
FIELDS = struct.Struct("<8s8I")
LONGEST = (1 << 16) - 1
"""Bytes of a strip and of the comment, and pixels of a side of a JPEG."""


@dataclass(frozen=True)
class Strips:
    """What the comment says of a file. Sizes are pixels, places are bytes.

    Args:
        wide, tall: size of a strip.
        across: number of strips side by side.
        size_at: where the height and then the width of the image stand, 2 bytes each.
        header_at, codes_at: where the JPEG's own header and codes begin.
    """

    width: int
    height: int
    wide: int
    tall: int
    across: int
    size_at: int
    header_at: int
    codes_at: int


def strips_of(data: bytes) -> Strips | None:
    """The strips of a file that `in_strips` has made; None for other files."""
    if data[2:4] != COMMENT or data[6:14] != TAG or len(data) < 6 + FIELDS.size:
        return None
    found = Strips(*FIELDS.unpack_from(data, 6)[1:])
    size = int.from_bytes(data[found.size_at : found.size_at + 4], "big")
    if not (0 < found.width <= LONGEST and found.height and size == (found.height << 16) + found.width):
        return None  # damaged, as below
    if not (found.wide and found.tall and found.across == -(-found.width // found.wide)):
        return None
    strips = found.across * -(-found.height // found.tall)
    return found if found.header_at == 6 + FIELDS.size + 2 * strips < found.codes_at < len(data) else None


def part(data: bytes, strips: Strips, box: Box) -> np.ndarray | None:
    """The pixels of a part of a file in strips, (height, width, 3) uint8; None if the file is damaged."""
    left, top, right, bottom = box
    first = max(0, min(left - MARGIN, strips.width - NARROWEST)) // strips.wide
    last = -(-min(strips.width, right + MARGIN) // strips.wide)
    above, below = max(0, top - MARGIN) // strips.tall, -(-min(strips.height, bottom + MARGIN) // strips.tall)
    x, y = first * strips.wide, above * strips.tall
    size = min(strips.height, below * strips.tall) - y, min(strips.width, last * strips.wide) - x
    try:
        lengths = np.frombuffer(data[6 + FIELDS.size : strips.header_at], "<u2")
        ends = np.cumsum(lengths, dtype=np.int64).reshape(-1, strips.across)  # also of the two bytes of their markers
        rows = slice(above, below)
        begin = strips.codes_at + ends[rows, first] - lengths.reshape(ends.shape)[rows, first]
        pieces = map(slice, begin.tolist(), (strips.codes_at + ends[rows, last - 1]).tolist())
        cut = bytearray(b"".join([START, data[strips.header_at : strips.codes_at], *map(data.__getitem__, pieces)]))
        at = strips.size_at - strips.header_at + len(START)
        cut[at : at + 4] = b"".join(n.to_bytes(2, "big") for n in size)
        # The markers behind the strips are numbered anew, and the last one ends the image.
        codes_at = strips.codes_at - strips.header_at + len(START)
        chosen = lengths.reshape(ends.shape)[rows, first:last]
        markers = codes_at - 1 + np.cumsum(chosen, dtype=np.int64)
        codes = np.frombuffer(cut, np.uint8)
        if (
            strips.codes_at + ends[-1, -1] != len(data)
            or (codes[markers - 1] != 0xFF).any()
            or not codes[markers].all()
        ):
            return None  # the comment is of another file
        codes[markers] = RESTARTS[0] + np.arange(chosen.size) % 8
        cut[-len(END) :] = END
        pixels = simplejpeg.decode_jpeg(cut, "RGB")
    except (ValueError, IndexError):
        return None
    pixels = pixels[top - y : bottom - y, left - x : right - x]
    return pixels if pixels.shape == (bottom - top, right - left, 3) else None


def in_strips(data: bytes) -> bytes:
    """A JPEG with the same pixels, in strips; other files, and those that would get other pixels, as they are."""
    header = header_of(data)
    if header is None or strips_of(data) is not None:
        return data
    across = -(-header.width // header.unit[0])
    lengths = [length for length in range(1, across + 1) if across % length == 0]
    length = min(lengths, key=lambda length: abs(log(across / length / STRIPS)))
    command = [PROGRAM, "-copy", "all", "-optimize", "-restart", f"{length}B"]
    made = subprocess.run(command, input=data, capture_output=True, check=False).stdout
    described = _described(made, length, across // length)
    try:
        same = described is not None and np.array_equal(decode(described), decode(data))
    except UnreadableImage:  # whoever reads the file says why
        return data
    return described if described is not None and same else data


def _described(data: bytes, length: int, across: int) -> bytes | None:
    """A JPEG with the comment, for strips of `length` units, `across` side by side; None if it has other strips."""
    header = header_of(data)
    restarts = None if header is None else restarts_of(data, header)
    if header is None or restarts is None or header.interval != length:
        return None
    ends = np.concatenate([restarts + 2, [len(data)]])
    lengths = np.diff(ends, prepend=header.codes_at)
    header_at = 6 + FIELDS.size + 2 * len(lengths)
    if len(lengths) != across * -(-header.height // header.unit[1]) or max(lengths.max(), header_at) > LONGEST:
        return None
    moved = header_at - len(START)
    fields = FIELDS.pack(
        TAG, header.width, header.height, length * header.unit[0], header.unit[1], across,
        header.size_at + moved, header_at, header.codes_at + moved,
    )  # fmt: skip
    comment = fields + lengths.astype("<u2").tobytes()
    return START + COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment + data[len(START) :]


def check_program() -> None:
    """ValueError if the program that writes strips is not installed."""
    if shutil.which(PROGRAM) is None:
        raise UserError(f"strips need the program {PROGRAM}: {INSTALL}")
