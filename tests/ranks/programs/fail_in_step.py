"""``vits-trainer`` whose last rank fails from update FAIL_AT on, in the way that FAIL names: for test_failures.py."""

import os
import time

from vits_trainer.cli.main import entry_point
from vits_trainer.training.trainer import Trainer

works = Trainer.step


def failing(self, update, denominators):
    last = self.runtime.rank == self.runtime.world_size - 1
    if last and self.state.update + 1 >= int(os.environ["FAIL_AT"]):
        match os.environ["FAIL"]:
            case "raises":
                raise RuntimeError("broken on purpose")
            case "dies":
                os._exit(9)
            case "sleeps":
                time.sleep(3600)
    works(self, update, denominators)


Trainer.step = failing
entry_point()
