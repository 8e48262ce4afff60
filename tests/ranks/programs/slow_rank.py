"""``vits-trainer`` whose last rank is slow at what SLOW names, by SLOW_S seconds each time: for test_stragglers.py."""

import os
import time

from vits_trainer.cli.main import entry_point
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.training.objective import Objective

OWNERS = {"reading": (PreparedClipDataset, "__getitem__"), "computing": (Objective, "generator_forward")}


def slow_down(owner, name):
    works = getattr(owner, name)

    def late(self, *given, **named):
        time.sleep(float(os.environ["SLOW_S"]))
        return works(self, *given, **named)

    setattr(owner, name, late)


if os.environ.get("SLOW") in OWNERS and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
    slow_down(*OWNERS[os.environ["SLOW"]])
entry_point()
