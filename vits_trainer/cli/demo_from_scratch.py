"""The demo that needs nothing: a tiny voice, trained from scratch on a corpus that espeak-ng synthesizes."""

from pathlib import Path
from typing import Any

from vits_trainer.cli import report, synthesize
from vits_trainer.config.parser import parse
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.tools import DemoConfig, ReportConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.config.voices import SynthesizeConfig
from vits_trainer.data.preparation.espeak_corpus import speak_corpus
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.training.run import train
from vits_trainer.utils.records import parse_json_line, read_lines

_UPDATES = 120


def run(config: DemoConfig, folder: Path) -> None:
    """Synthesizes a corpus, prepares it, trains a voice, synthesizes speech and prints the results."""
    speak_corpus(folder / "corpus")
    training = folder / "training"
    prepare(PrepareConfig(dataset=str(folder / "corpus"), output_dir=str(training)))
    updates = config.updates or _UPDATES
    settings = {
        "config": "tiny",
        "data_dir": training,
        "checkpoint_dir": training / "checkpoints",
        "output_dir": training / "final_model",
        "run_name": "demo",
        "max_updates": updates,
        "validate_every_updates": max(1, updates // 4),
        "save_every_updates": 0,
    }
    flags = [arg for name, value in settings.items() for arg in (f"--{name}", str(value))]
    train(parse("train_vits", TrainConfig, flags))
    voice = training / "final_model"
    synthesize.run(SynthesizeConfig(model=str(voice), text=config.text, output=str(folder / "speech.wav"), seed=0))
    run_dir = training / "runs" / "demo"
    parsed = (parse_json_line(line, dict[str, Any]) for line in read_lines(run_dir / "metrics.jsonl"))
    lines = [line for line in parsed if line is not None]
    last = next(line for line in reversed(lines) if "validation/mel" in line)
    report.run(ReportConfig(str(run_dir), str(folder / "report.html")))
    print(_results(folder, run_dir, last))


def _results(folder: Path, run_dir: Path, last: dict[str, float]) -> str:
    samples = run_dir / "samples" / f"update-{int(last['update']):06}"
    mel, baseline = last["validation/mel"], last["validation/constant_frame_mel"]
    comparison = "mel L1 is below: the voice has learnt" if mel < baseline else "mel L1 is NOT below: it has not learnt"
    return "\n".join(
        [
            "",
            f"validation mel L1       {mel:.4f}",
            f"best constant frame     {baseline:.4f}   ({comparison})",
            f"mel L1 from text alone  {last['validation/mel_from_text']:.4f}",
            "",
            f"the voice        {folder / 'training' / 'final_model'}",
            f"speech           {folder / 'speech.wav'}",
            f"report           {folder / 'report.html'}",
            f"spectrograms     {samples / '0_mel.png'}",
            f"alignment        {samples / '0_alignment.png'}",
            f"the run          {run_dir}",
            "",
            "This tiny voice only shows that everything works. With your own recordings:",
            "  vits-trainer prepare_data --dataset YOUR_RECORDINGS --output_dir training",
            "  vits-trainer train_vits --data_dir training --model_name facebook/mms-tts-eng",
        ]
    )
