"""Clips whose samples are NaN once they are read.

POISON names the clips; POISON_RANK the rank that alone has them so; POISON_UPDATES the updates, from 1.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vits_trainer.training.trainer import Trainer

works = Trainer.step


def poisoned(self, update, denominators):
    updates = os.environ.get("POISON_UPDATES", "")
    due = not updates or str(self.state.update + 1) in updates.split(",")
    if due and self.runtime.rank == int(os.environ.get("POISON_RANK", "0")):
        update = [_poison(batch) for batch in update]
    works(self, update, denominators)


def _poison(batch):
    asked = os.environ.get("POISON", "").split(",")
    rows = [row for row, clip in enumerate(batch.clip_ids) if clip in asked or asked == ["all"]]
    waveform = batch.to(torch.device("cpu")).waveform
    waveform[rows, 1000] = torch.nan
    return replace(batch, waveform=waveform)


Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Makes the samples of these clips NaN in these updates, all of them if none is named."""

    def begin(clips: str, updates: str = "") -> None:
        monkeypatch.setattr(Trainer, "step", poisoned)
        monkeypatch.setenv("POISON", clips)
        monkeypatch.setenv("POISON_UPDATES", updates)

    return begin
