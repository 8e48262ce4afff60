"""``vits-trainer`` whose last rank lacks the extra asr: for test_selection.py."""

import os

from vits_trainer.cli.main import entry_point
from vits_trainer.evaluation import recognizers

if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
    recognizers.is_installed = lambda need: False
entry_point()
