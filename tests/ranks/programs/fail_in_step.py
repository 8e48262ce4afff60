"""``vits-trainer`` whose last rank fails from update FAIL_AT on, as set by FAIL: for test_failures.py."""

import os
import time

from vits_trainer.cli.main import entry_point
from vits_trainer.training.trainer import Trainer

original_step = Trainer.step


def failing_step(self, update, denominators):
    last = self.runtime.process_index == self.runtime.num_processes - 1
    if last and self.state.update + 1 >= int(os.environ["FAIL_AT"]):
        match os.environ["FAIL"]:
            case "raises":
                raise RuntimeError("broken on purpose")
            case "dies":
                os._exit(9)
            case "sleeps":
                time.sleep(3600)
    original_step(self, update, denominators)


Trainer.step = failing_step
entry_point()
