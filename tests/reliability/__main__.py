"""Prints every row with its actual outcome and message, as Markdown tables."""

import logging
import tempfile
from pathlib import Path

from tests.reliability import outcomes, rows
from tests.reliability.outcomes import Outcome

if __name__ == "__main__":
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="reliability-") as temporary:
        by_title = outcomes.clips(Path(temporary, "clips")) | outcomes.trained(Path(temporary, "trained"))
        for part, part_rows in rows.PARTS.items():
            print(f"\n| {part} | outcome | message |\n|---|---|---|")
            for number, row in enumerate(part_rows):
                root = Path(temporary, f"{part} {number}")
                root.mkdir()
                actual: Outcome = by_title.get(row.title) or outcomes.of(row, root)
                message = row.message if actual.outcome == "exit 1" else outcomes.short(actual.message, root)
                print(f"| {row.title} | {actual.outcome} | {message if actual.outcome != 'accepted' else ''} |", flush=True)
