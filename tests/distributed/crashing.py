"""recorded.py with a last rank that dies at update 4, unless the launcher has started it anew: for test_elastic.py."""

import os

from tests.distributed import recorded
from vits_trainer.__main__ import entry_point
from vits_trainer.trainer import Trainer


def crashing(self, update, normalisers):
    last = self.runtime.rank == self.runtime.world_size - 1
    if last and self.state.update == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(9)
    recorded.recorded(self, update, normalisers)


Trainer.step = crashing
entry_point()
