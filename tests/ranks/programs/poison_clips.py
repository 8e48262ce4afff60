"""``vits-trainer`` with clips whose samples are NaN once they are read: audio_000002.wav in test_failures.py's runs.

POISON names the clips; POISON_RANK the rank that alone has them so; POISON_UPDATES the updates, from 1.
"""


from tests.support.poison import poisoned
from vits_trainer.cli.main import entry_point
from vits_trainer.training.trainer import Trainer

if __name__ == "__main__":
    Trainer.step = poisoned
    entry_point()
