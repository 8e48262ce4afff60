"""``vits-trainer`` that replaces the samples of clips by NaN: for test_failures.py.

POISON lists the clips; POISON_RANK is the only rank where they are NaN; POISON_UPDATES lists the updates, from 1.
"""

from tests.support.poison import poisoned
from vits_trainer.cli.main import entry_point
from vits_trainer.training.trainer import Trainer

if __name__ == "__main__":
    Trainer.step = poisoned
    entry_point()
