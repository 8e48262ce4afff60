"""``demo``: runs the whole pipeline, from recordings to a voice that one can listen to."""

import re
from pathlib import Path

from vits_trainer.cli import demo_from_scratch, demo_of_speaker
from vits_trainer.config.tools import DemoConfig
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import Kind, is_ours, mark, remove

DEMO = Kind(
    "demo",
    re.compile(
        r"corpus/.*|training/((wavs|checkpoints|runs/demo)/.*|(metadata|rejected|sources)\.csv|dataset\.json)"
        r"|(before|after)/\d\.wav|sentences\.txt|speech\.wav|(report|listening)\.html|losses\.png|demo\.json",
        re.DOTALL,
    ),
    lambda folder: (folder / "demo.json").is_file(),
)


def run(config: DemoConfig) -> int:
    """Fine-tunes the packaged voice to the packaged recordings; ``from_scratch`` trains one on espeak-ng's speech.

    Raises:
        ConfigError: the output folder contains something other than an earlier demo.
    """
    folder = Path(config.output_dir)
    _clear(folder)
    reason = "" if config.from_scratch else demo_of_speaker.reason_against()
    if reason:
        print(f"{reason} A voice is trained from scratch instead, as with --from_scratch.")
    demo = demo_from_scratch if config.from_scratch or reason else demo_of_speaker
    demo.run(config, folder)
    return 0


def _clear(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not is_ours(folder, DEMO):
            raise ConfigError(
                f"--output_dir {folder} contains something other than an earlier demo. Choose another folder."
            )
        remove(folder, DEMO)
    folder.mkdir(parents=True, exist_ok=True)
    mark(folder, DEMO)
