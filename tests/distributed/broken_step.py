"""``vits-trainer`` with a training step that raises, for test_launch.py: on the last rank only."""

import os
import sys

from vits_trainer.__main__ import main
from vits_trainer.objective import Objective

works = Objective.generator_losses


def broken(self, discriminator, comparison):
    if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        raise RuntimeError("broken on purpose")
    return works(self, discriminator, comparison)


Objective.generator_losses = broken
sys.exit(main(sys.argv[1:]))
