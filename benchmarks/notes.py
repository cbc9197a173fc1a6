"""The documents that are asked about: delivery notes of about 1.2 kB, no two alike."""

from __future__ import annotations

from pathlib import Path

PARAGRAPH = (
    "The vendor ACME Supplies Ltd. delivers {boxes} boxes of part {part} to the warehouse in Rotterdam, for a total "
    "of ${boxes}.50, due on 2026-0{month}-15. Late payment is charged at two per cent a month; any dispute about this "
    "delivery goes to the courts of Amsterdam. "
)


def write_notes(folder: Path, numbers: range) -> None:
    """Write a file for each number, all of one length up to 90,000; a note's first line tells it from all others."""
    folder.mkdir()
    for number in numbers:
        text = "".join(
            PARAGRAPH.format(boxes=10_000 + number + n, part=f"{number:05}-{n}", month=1 + n)
            for n in range(4)
        )
        Path(folder, f"{number:05}.txt").write_text(f"{first_line(folder.name, number)}\n{text}")


def first_line(folder: str, number: int) -> str:
    """Return the line that a note begins with."""
    return f"Delivery note {folder} {number:05}."
