"""A guest's memory as a picture: a cell for so many frames, in SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .survey import FRAME, Content, Stretch

COLUMNS = 64
MOST_ROWS = 96
CELL = 10
"""Points of a cell, its gap included."""
LEFT, TOP, LINE = 150, 64, 18

COLOURS = {
    Content.DATA: "#2f6f9f",
    Content.ZEROES: "#b9d3e6",
    Content.HOLE: "#e4e2dc",
    Content.FAILED: "#c0392b",
}
MEANINGS = {
    Content.DATA: "data",
    Content.ZEROES: "zeroes",
    Content.HOLE: "hole",
    Content.FAILED: "could not be mapped",
}
_IMPORTANCE = (Content.FAILED, Content.DATA, Content.ZEROES, Content.HOLE)
"""Of what is in a cell, this is shown."""


def picture(title: str, stretches: Sequence[Stretch]) -> str:
    """An SVG document. Each bank of neighbouring addresses begins at a row of its own."""
    frames = sum(len(one.addresses) for one in stretches) // FRAME
    per_cell = 1
    while frames > per_cell * COLUMNS * MOST_ROWS:
        per_cell *= 2
    rows: list[str] = []
    y = TOP
    for bank in banks(stretches):
        for address, cells in _rows(bank, per_cell * FRAME):
            label = f'<text x="{LEFT - 8}" y="{y + CELL - 1}" text-anchor="end">{address:#x}</text>'
            rows.append(label + "".join(_cell(LEFT + x * CELL, y, one) for x, one in enumerate(cells)))
            y += CELL
        y += LINE
    width, height = LEFT + COLUMNS * CELL + 20, y
    legend = "".join(
        _cell(x, TOP - 26, one) + f'<text x="{x + CELL + 6}" y="{TOP - 17}">{MEANINGS[one]}</text>'
        for x, one in zip(range(LEFT, width, 150), COLOURS, strict=False)
    )
    scale = f"a cell is {per_cell * FRAME // 1024} KiB"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="10">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>\n'
        f'<text x="{LEFT - 8}" y="{TOP - 17}" text-anchor="end">{scale}</text>\n'
        f"{legend}\n" + "\n".join(rows) + "\n</svg>\n"
    )


def banks(stretches: Iterable[Stretch]) -> list[list[Stretch]]:
    """Those that follow each other without a gap, together."""
    found: list[list[Stretch]] = []
    for one in stretches:
        if found and found[-1][-1].addresses.stop == one.addresses.start:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def _rows(bank: Sequence[Stretch], size: int) -> Iterable[tuple[int, list[Content]]]:
    start, stop = bank[0].addresses.start, bank[-1].addresses.stop
    cells = [Content.HOLE] * -((start - stop) // size)
    for one in bank:
        for index in range((one.addresses.start - start) // size, -((start - one.addresses.stop) // size)):
            cells[index] = min(cells[index], one.content, key=_IMPORTANCE.index)
    for first in range(0, len(cells), COLUMNS):
        yield start + first * size, cells[first : first + COLUMNS]


def _cell(x: int, y: int, content: Content) -> str:
    return f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{COLOURS[content]}"/>'
