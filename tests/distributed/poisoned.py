"""``vits-trainer`` with clips whose samples are NaN once they are read: audio_000002.wav in test_failures.py's runs.

POISON names the clips; POISON_RANK the rank that alone has them so; POISON_UPDATES the updates, from 1.
"""

import os
from dataclasses import replace

import torch

from vits_trainer.__main__ import entry_point
from vits_trainer.trainer import Trainer

works = Trainer.step


def poisoned(self, update, normalisers):
    updates = os.environ.get("POISON_UPDATES", "")
    due = not updates or str(self.state.update + 1) in updates.split(",")
    if due and self.runtime.rank == int(os.environ.get("POISON_RANK", "0")):
        update = [_poison(batch) for batch in update]
    works(self, update, normalisers)


def _poison(batch):
    asked = os.environ.get("POISON", "").split(",")
    rows = [row for row, clip in enumerate(batch.clip_ids) if clip in asked or asked == ["all"]]
    waveform = batch.to(torch.device("cpu")).waveform
    waveform[rows, 1000] = torch.nan
    return replace(batch, waveform=waveform)


if __name__ == "__main__":
    Trainer.step = poisoned
    entry_point()
