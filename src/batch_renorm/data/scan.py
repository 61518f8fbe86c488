"""What a JPEG's header says, and where the codes of its scan begin and end."""

from dataclasses import dataclass

import numpy as np

START, END = b"\xff\xd8", b"\xff\xd9"
FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, sequential and progressive, with Huffman codes."""
PROGRESSIVE, RESTART_INTERVAL, SCAN = 0xC2, 0xDD, 0xDA
TABLES = (0xC4, 0xDB, 0xFE, *range(0xE0, 0xF0))
"""What else may stand before a scan: Huffman and quantisation tables, comment, applications' data."""
RESTARTS = 0xD0, 0xD7
"""Restart markers, which are numbered from 0 to 7 in turn."""
MOST_PIXELS = 178_956_970
"""Pillow warns about larger images, which may be an attack on the memory."""


@dataclass(frozen=True)
class Header:
    """A JPEG up to its first scan, 8 bits a channel, grey or of three channels.

    Args:
        size_at: where its height and then its width stand, 2 bytes each.
        unit: width and height in pixels of the blocks that are coded together.
        interval: number of such units between two restart markers; 0 without them.
        codes_at: where the codes of the scan begin.
        alone: whether the scan may be the only one: it is not progressive, and has all channels.
    """

    width: int
    height: int
    size_at: int
    unit: tuple[int, int]
    interval: int
    codes_at: int
    alone: bool


def header_of(data: bytes) -> Header | None:
    """The header of a JPEG file; None for any other file, and for damaged ones."""
    place, frame, interval = len(START), 0, 0
    while data.startswith(START) and place + 4 <= len(data) and data[place] == 0xFF:
        marker, after = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if after > len(data):
            return None
        if marker == SCAN:
            return _header(data, frame, interval, place, after) if frame else None
        if marker in FRAMES:
            frame = place
        elif marker == RESTART_INTERVAL:
            interval = int.from_bytes(data[place + 4 : after], "big")
        elif marker not in TABLES:
            return None
        place = after
    return None


def _header(data: bytes, frame: int, interval: int, scan: int, codes_at: int) -> Header | None:
    bits, channels = data[frame + 4], data[frame + 9]
    if int.from_bytes(data[frame + 2 : frame + 4], "big") < 8 + 3 * channels or codes_at < scan + 5:
        return None
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (frame + 5, frame + 7))
    samplings = [data[frame + 11 + 3 * channel] for channel in range(min(channels, 3))]
    if bits != 8 or channels not in (1, 3) or not 0 < height * width <= MOST_PIXELS:
        return None
    across, down = max(s >> 4 for s in samplings), max(s & 15 for s in samplings)
    unit = (8 * across, 8 * down) if channels == 3 else (8, 8)
    alone = data[frame + 1] != PROGRESSIVE and data[scan + 4] == channels
    return Header(width, height, frame + 5, unit, interval, codes_at, alone) if min(unit) else None


def restarts_of(data: bytes, header: Header) -> np.ndarray | None:
    """Where the restart markers of a JPEG stand that has one scan and nothing behind it; None for others.

    Also None if there is another marker in the scan.
    """
    if not header.alone or not data.endswith(END):
        return None
    codes = np.frombuffer(data, np.uint8)[header.codes_at : len(data) - 1]
    places = np.flatnonzero(codes[:-1] == 0xFF)
    kinds = codes[places + 1]
    restarts = (kinds >= RESTARTS[0]) & (kinds <= RESTARTS[1])
    if not (restarts | (kinds == 0) | (kinds == 0xFF)).all():  # 0: a code of 0xFF; 0xFF: filling before a marker
        return None
    return header.codes_at + places[restarts]
