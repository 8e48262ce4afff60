"""Prints the table of docs/reliability.md: every row, and what really came of it."""

import logging
import tempfile
from pathlib import Path

from tests.reliability import outcomes, rows
from tests.reliability.outcomes import Outcome

if __name__ == "__main__":
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="reliability-") as temporary:
        found = outcomes.clips(Path(temporary, "clips")) | outcomes.trained(Path(temporary, "trained"))
        for part, those in rows.PARTS.items():
            print(f"\n| {part} | outcome | what it says |\n|---|---|---|")
            for number, row in enumerate(those):
                place = Path(temporary, f"{part} {number}")
                place.mkdir()
                came: Outcome = found.get(row.what) or outcomes.of(row, place)
                said = row.said if came.outcome == "exit 1" else outcomes.short(came.message, place)
                print(f"| {row.what} | {came.outcome} | {said if came.outcome != 'accepted' else ''} |", flush=True)
