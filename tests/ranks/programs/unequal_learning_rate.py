"""``vits-trainer`` whose rank 1 has another learning rate; accelerate launch gives all ranks the same flags."""

import os
import sys

from vits_trainer.cli.main import entry_point

if os.environ.get("RANK") == "1":
    sys.argv += ["--learning_rate", "0.002"]
entry_point()
