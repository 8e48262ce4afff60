"""Replaces the samples of clips by NaN.

POISON lists the clips; POISON_RANK is the only rank where they are NaN; POISON_UPDATES lists the updates, from 1.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vits_trainer.training.trainer import Trainer

original_step = Trainer.step


def poisoned(self, update, denominators):
    updates = os.environ.get("POISON_UPDATES", "")
    due = not updates or str(self.state.update + 1) in updates.split(",")
    if due and self.runtime.process_index == int(os.environ.get("POISON_RANK", "0")):
        update = [_poison(batch) for batch in update]
    original_step(self, update, denominators)


def _poison(batch):
    poisoned_clips = os.environ.get("POISON", "").split(",")
    rows = [row for row, clip in enumerate(batch.clip_ids) if clip in poisoned_clips or poisoned_clips == ["all"]]
    waveform = batch.to(torch.device("cpu")).waveform
    waveform[rows, 1000] = torch.nan
    return replace(batch, waveform=waveform)


Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Returns a function that makes the samples of clips NaN in the given updates, by default in all."""

    def begin(clips: str, updates: str = "") -> None:
        monkeypatch.setattr(Trainer, "step", poisoned)
        monkeypatch.setenv("POISON", clips)
        monkeypatch.setenv("POISON_UPDATES", updates)

    return begin
