"""``vits-trainer`` whose last rank sleeps SLOW_S seconds at reading or computing (SLOW): for test_stragglers.py."""

import os
import time

from vits_trainer.cli.main import entry_point
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.training.objective import Objective

OWNERS = {"reading": (PreparedClipDataset, "__getitem__"), "computing": (Objective, "generator_forward")}


def slow_down(owner, name):
    original = getattr(owner, name)

    def slow(self, *args, **kwargs):
        time.sleep(float(os.environ["SLOW_S"]))
        return original(self, *args, **kwargs)

    setattr(owner, name, slow)


if os.environ.get("SLOW") in OWNERS and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
    slow_down(*OWNERS[os.environ["SLOW"]])
entry_point()
