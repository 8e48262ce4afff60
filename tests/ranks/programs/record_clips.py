"""``vits-trainer`` that also writes down which clips each rank trains on in which update: clips-<rank>.jsonl.

A line is whole on the disk before its update begins, so it is there whenever the process may be killed.
"""

import json
import os
from collections.abc import Sequence

from vits_trainer.cli.main import entry_point
from vits_trainer.data.dataset import Batch
from vits_trainer.training.objective import LossDenominators
from vits_trainer.training.trainer import Trainer

works = Trainer.step


def recorded(self: Trainer, update: Sequence[Batch], denominators: LossDenominators) -> None:
    clips = [sorted(batch.clip_ids) for batch in update]
    line = json.dumps({"update": self.state.update + 1, "clips": clips}) + "\n"
    with (self.tracker.run_dir / f"clips-{self.runtime.rank}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    works(self, update, denominators)


Trainer.step = recorded
if __name__ == "__main__":
    entry_point()
