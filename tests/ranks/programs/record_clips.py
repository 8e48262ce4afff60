"""``vits-trainer`` that records the clips of each rank and update in clips-<rank>.jsonl.

A line is synced to disk before its update starts, so that it survives a kill of the process.
"""

import json
import os
from collections.abc import Sequence

from vits_trainer.cli.main import entry_point
from vits_trainer.data.dataset import Batch
from vits_trainer.training.objective import LossDenominators
from vits_trainer.training.trainer import Trainer

original_step = Trainer.step


def recorded(self: Trainer, update: Sequence[Batch], denominators: LossDenominators) -> None:
    clips = [sorted(batch.clip_ids) for batch in update]
    line = json.dumps({"update": self.state.update + 1, "clips": clips}) + "\n"
    with (self.tracker.run_dir / f"clips-{self.runtime.process_index}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    original_step(self, update, denominators)


Trainer.step = recorded
if __name__ == "__main__":
    entry_point()
