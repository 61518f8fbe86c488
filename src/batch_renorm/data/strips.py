"""A part of a JPEG in strips: the file is cut, and only the strips of the part are decoded.

Restart markers divide a JPEG's codes into strips, and a strip is decoded without those before it. So the header with
another width and height, and the strips that a part touches, are a JPEG again. The decoder makes the same pixels of
it, bit for bit, and does not read the rest. `in_strips` writes such files, without loss.
"""

import shutil
import subprocess
from math import log

import numpy as np
import simplejpeg

from batch_renorm.data.augmentation import Box
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.scan import END, RESTARTS, OneScan, header_of, one_scan

MARGIN = 2
"""Pixels around a part that are decoded with it: where the colours have half of the pixels, they are interpolated."""
NARROWEST = 16
"""Pixels: libjpeg interpolates no colours of images of 4 pixels and less."""
STRIPS = 16
"""Aim for the number of strips side by side. With more of them a file is larger, with fewer less is left out."""
PROGRAM = "jpegtran"
INSTALL = "apt install libjpeg-turbo-progs, or brew install jpeg-turbo"


def strips_across(scan: OneScan) -> tuple[int, int, int] | None:
    """Width and height of a strip in units, and the number of strips side by side; None if they make no rows."""
    across, down = (-(-size // unit) for size, unit in zip((scan.width, scan.height), scan.unit, strict=True))
    wide, tall = min(scan.interval, across), max(1, scan.interval // across)
    if not scan.interval or wide * tall != scan.interval or across % wide:
        return None
    strips = across // wide * -(-down // tall)
    in_turn = RESTARTS[0] + np.arange(strips - 1) % 8
    return (wide, tall, across // wide) if np.array_equal(scan.numbers, in_turn) else None


def part(data: bytes, scan: OneScan, box: Box) -> np.ndarray | None:
    """The pixels of a part of a JPEG, (height, width, 3) uint8; None if it is not in strips, or does not decode."""
    shape = strips_across(scan)
    if shape is None:
        return None
    wide, tall, side_by_side = shape
    left, top, right, bottom = box
    width, height = wide * scan.unit[0], tall * scan.unit[1]  # of a strip, in pixels
    first = max(0, min(left - MARGIN, scan.width - NARROWEST)) // width
    above = max(0, top - MARGIN) // height
    last = -(-min(scan.width, right + MARGIN) // width)
    below = -(-min(scan.height, bottom + MARGIN) // height)
    x, y = first * width, above * height
    size = min(scan.height, below * height) - y, min(scan.width, last * width) - x
    marks = np.concatenate([[scan.codes_at - 2], scan.restarts, [len(data) - len(END)]])  # what surrounds each strip
    rows = np.arange(above, below) * side_by_side
    pieces = [data[marks[row + first] + 2 : marks[row + last] + 2] for row in rows.tolist()]
    cut = bytearray(b"".join([data[: scan.codes_at], *pieces]))
    cut[scan.size_at : scan.size_at + 4] = b"".join(n.to_bytes(2, "big") for n in size)
    # Every strip ends with a marker of two bytes; the markers are numbered anew.
    chosen = rows[:, None] + np.arange(first, last)
    seconds = scan.codes_at - 1 + np.cumsum(marks[chosen + 1] - marks[chosen])
    np.frombuffer(cut, np.uint8)[seconds] = RESTARTS[0] + np.arange(chosen.size) % 8
    cut[-len(END) :] = END
    try:
        pixels = simplejpeg.decode_jpeg(cut, "RGB")
    except ValueError:
        return None
    return pixels[top - y : bottom - y, left - x : right - x]


def in_strips(data: bytes) -> bytes:
    """A JPEG with the same pixels, in strips; other files, and those that would get other pixels, as they are."""
    header = header_of(data)
    if header is None:
        return data
    across = -(-header.width // header.unit[0])
    lengths = [length for length in range(1, across + 1) if across % length == 0]
    length = min(lengths, key=lambda length: abs(log(across / length / STRIPS)))
    command = [PROGRAM, "-copy", "all", "-optimize", "-restart", f"{length}B"]
    made = subprocess.run(command, input=data, capture_output=True, check=False).stdout
    made_header = header_of(made)
    scan = None if made_header is None else one_scan(made, made_header)
    if scan is None or strips_across(scan) is None:
        return data
    try:
        same = np.array_equal(decode(made), decode(data))
    except UnreadableImage:  # whoever reads the file says why
        return data
    return made if same else data


def check_program() -> None:
    """ValueError if the program that writes strips is not installed."""
    if shutil.which(PROGRAM) is None:
        raise ValueError(f"strips need the program {PROGRAM}: {INSTALL}")
