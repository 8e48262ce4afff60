"""``check_data``: finds suspicious clips in prepared data."""

import logging
import re
import shlex
from collections import Counter
from pathlib import Path

from vits_trainer.config.check_data import CheckDataConfig
from vits_trainer.data.audio import Rejection
from vits_trainer.evaluation.alignment_scores import Aligner
from vits_trainer.evaluation.data_check import CheckedData, check, open_data
from vits_trainer.models import pretrained
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.tracking.check_page import ShownClip, render_check_page
from vits_trainer.training import checkpoint
from vits_trainer.training.checkpoint_record import verify_checkpoint
from vits_trainer.utils.files import Kind, atomic_write, open_results
from vits_trainer.utils.logging import log_to_console
from vits_trainer.utils.strings import counted, printable, shown_speaker

logger = logging.getLogger(__name__)

RESULTS = Kind("check_data", re.compile(r"suspicious\.csv|measurements\.csv|check_data\.html"))


def run(config: CheckDataConfig) -> int:
    """Checks the data, writes the results, and prints the number of suspicious clips by signal.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: the folder for the results cannot be written, or a score's package is missing.
        DataError: the data cannot be read.
        ModelError: the voice cannot be loaded.
    """
    log_to_console()
    data = open_data(config)
    clips = sum(piece.clips for piece in data.pieces)
    logger.info("Checking %s of %s ...", counted(clips, "clip"), config.data_dir)
    aligner = None if config.model_name is None else load_aligner(config.model_name)
    output = open_results(_folder(config), RESULTS)
    checked = check(config, data, aligner)
    counts = Counter(finding.signal for one in checked.suspicions for finding in one.findings)
    page = _page(checked, config, dict(counts.most_common()))
    for name, content in (
        ("suspicious.csv", checked.suspicious_csv()),
        ("measurements.csv", checked.measurements_csv()),
        ("check_data.html", page),
    ):
        atomic_write(output / name, content)
    print(printable(_summary(checked, counts, output)))
    return 0


def load_aligner(name: str) -> Aligner:
    """Loads a voice, or the averaged weights of a checkpoint."""
    if not (Path(name) / "state.json").is_file():
        return Aligner(pretrained.load_model(name), load_tokenizer(name))
    folder = Path(name)
    verify_checkpoint(folder)
    model = pretrained.model_from_config(folder / "voice")
    checkpoint.load_networks(folder, model, None)
    checkpoint.load_average(folder, model)
    return Aligner(model, load_tokenizer(str(folder / "voice")))


def _folder(config: CheckDataConfig) -> Path:
    data = Path(config.data_dir)
    return Path(config.output_dir or (data / "check_data" if data.is_dir() else "check_data"))


def _page(checked: CheckedData, config: CheckDataConfig, counts: dict[str, int]) -> str:
    survey, worst = checked.survey, checked.suspicions[: config.worst]
    sources = checked.data.source_names([survey.names[one.row] for one in worst])
    clips = checked.read(one.row for one in worst)
    shown = []
    for one in worst:
        clip = clips[one.row]
        shown.append(
            ShownClip(
                name=clip.name,
                source=sources.get(clip.name, ""),
                speaker=shown_speaker(clip.speaker),
                text=clip.text,
                transcript=checked.transcripts[one.row] or "",
                reasons=[finding.reason for finding in one.findings],
                signals=[finding.signal for finding in one.findings],
                pcm=None if isinstance(clip.pcm, Rejection) else clip.pcm,
            )
        )
    title = Path(config.data_dir).resolve().name if Path(config.data_dir).is_dir() else config.data_dir
    return render_check_page(title, shown, counts, len(survey), len(checked.suspicions), checked.data.sampling_rate)


def _summary(checked: CheckedData, counts: Counter[str], output: Path) -> str:
    total, survey = len(checked.survey), checked.survey
    rows = [
        ("clips", total),
        ("suspicious", len(checked.suspicions)),
        *((f"  {name}", n) for name, n in counts.most_common()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {count:>{len(str(total))}}" for name, count in rows]
    lines += [
        f"{survey.names[one.row]}: {'; '.join(finding.reason for finding in one.findings)}"
        for one in checked.suspicions[:3]
    ]
    lines += [
        f"Warning: {name} finds {count} of {total} clips. Listen before you drop them: its threshold, the voice or the "
        "language may not fit."
        for name, count in counts.items()
        if count > total / 2
    ]
    lines.append(f"Wrote {output}: check_data.html (listen, and save a list), suspicious.csv, measurements.csv")
    if checked.suspicions:
        lines.append(
            "Next: repeat prepare_data with another --output_dir and --drop LIST, the list that the page saves or "
            f"{shlex.quote(str(output / 'suspicious.csv'))}"
        )
    return "\n".join(lines)
