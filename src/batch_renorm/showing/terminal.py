"""The tables of a report in a terminal."""

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from batch_renorm.reporting.compare import Comparison
from batch_renorm.showing.tables import MINUS, NONE, tables

STYLES = {"holds": "green", "holds, not sure": "yellow", "does not hold, not sure": "yellow", "does not hold": "red"}
NARROW = 120  # columns; narrower terminals get no columns of these names
MORE = {"range", "minutes a run", "needed", "ours, best", "paper, best", "to baseline: paper"}
ASCII = str.maketrans({MINUS: "-", NONE: "-", "≤": "<=", "≥": ">=", "±": "+-"})


def show(c: Comparison) -> None:
    """Print tables, notes and what is missing; in letters that the terminal has."""

    def text(cell: str) -> Text:
        return Text(cell if console.encoding.startswith("utf") else cell.translate(ASCII), STYLES.get(cell, ""))

    console = Console()
    for table in tables(c):
        grid = Table(title=text(f"{table.title}, scale {c.scale}"), title_justify="left", box=SIMPLE_HEAD)
        columns = [i for i, head in enumerate(table.head) if console.width >= NARROW or head not in MORE]
        for i in columns:
            grid.add_column(text(table.head[i]), justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            grid.add_row(*(text(row[i]) for i in columns))
        console.print(grid)
    for line in (*c.notes, *["Missing:"] * bool(c.missing), *c.missing):
        print(line, file=sys.stdout)
