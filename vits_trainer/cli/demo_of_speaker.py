"""The demo of fine-tuning: the packaged English voice learns to sound like the speaker of 20 packaged recordings."""

import shutil
import subprocess  # nosec B404 - a player of the system
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vits_trainer.cli import report
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.selection import ClipSelection
from vits_trainer.config.tools import DemoConfig, ReportConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import open_prepared, train_validation_split
from vits_trainer.evaluation.comparison import evaluate_voice, voice_synthesizer
from vits_trainer.evaluation.optional_packages import is_installed
from vits_trainer.evaluation.recognizers import choose_judge
from vits_trainer.evaluation.speech_metrics import ClipMetrics, ClipScore, SpeechMetrics, means
from vits_trainer.evaluation.synthesis import Voice
from vits_trainer.models.pretrained import read_config
from vits_trainer.training.run import train
from vits_trainer.utils.installation import install_command
from vits_trainer.utils.packaged import BASE_VOICE, HUMAN_CLIPS

_UPDATES = 160
_SENTENCES = (
    "Good morning, how are you today?",
    "I would like a cup of coffee with milk.",
    "The children are playing football in the park.",
    "The weather will be warm and sunny tomorrow.",
)
"""Neither voice was trained on them."""
_HELD_OUT = ClipSelection(validation_fraction=0.25)
_PLAYERS = (("afplay",), ("paplay",), ("aplay", "-q"), ("ffplay", "-v", "error", "-nodisp", "-autoexit"))
"""Of macOS, PulseAudio, ALSA and FFmpeg."""


def reason_against() -> str:
    """Returns why this demo cannot run, as a sentence; empty if it can."""
    if not (BASE_VOICE / "config.json").is_file():
        return f"The base voice is not in this source tree ({BASE_VOICE})."
    if find_spec("phonemizer") is None:
        return f"The base voice reads phonemes: {install_command('text')}."
    return ""


def run(config: DemoConfig, folder: Path) -> None:
    """Speaks, fine-tunes, speaks again, and prints what changed."""
    training, voice = folder / "training", folder / "training" / "final_model"
    rate_hz = read_config(str(BASE_VOICE)).sampling_rate
    prepare(PrepareConfig(dataset=str(HUMAN_CLIPS), output_dir=str(training), target_sr=rate_hz))
    sentences = (" ".join(config.text.split()), *_SENTENCES)
    listener = _Listener.create(rate_hz)
    before = listener.listen(str(BASE_VOICE), sentences, folder / "before")
    result = train(_training_config(training, voice, config.updates or _UPDATES))
    if result.voice is None:  # stopped by a signal, which the log reports
        return
    after = listener.listen(str(voice), sentences, folder / "after")
    report.run(ReportConfig(str(result.run_dir), str(folder / "report.html")))
    (folder / "sentences.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    voices, page = (str(BASE_VOICE), str(voice)), str(folder / "listening.html")
    report.run(ReportConfig(compare=voices, sentences=str(folder / "sentences.txt"), output=page))
    samples = max((result.run_dir / "samples").glob("update-*"))
    lines = [
        *_heard(sentences, before, after, listener.missing),
        "",
        _distance(training, voices),
        "",
        f"the voice        {voice}",
        f"before, after    {folder / 'before'}, {folder / 'after'}",
        f"by ear           {page}",
        f"report, curves   {folder / 'report.html'}",
        f"spectrograms     {samples / '0_mel.png'}",
        f"alignment        {samples / '0_alignment.png'}",
        "",
        "With your own recordings:",
        "  vits-trainer prepare_data --dataset YOUR_RECORDINGS --output_dir training",
        "  vits-trainer train_vits --data_dir training --model_name facebook/mms-tts-eng",
    ]
    print("", *lines, sep="\n")
    _play([folder / "before/1.wav", folder / "after/1.wav"])


def _training_config(training: Path, voice: Path, updates: int) -> TrainConfig:
    return TrainConfig(
        data_dir=str(training),
        checkpoint_dir=str(training / "checkpoints"),
        output_dir=str(voice),
        run_name="demo",
        model_name=str(BASE_VOICE),
        segment_frames=16,  # as in the training of the base voice
        batch_size=4,
        gradient_accumulation_steps=1,
        learning_rate=3e-4,
        freeze="text_encoder",  # 15 clips would make it forget words that they lack
        schedule="cosine",
        ema_decay=0.97,
        max_updates=updates,
        precision="fp32",
        validation_fraction=_HELD_OUT.validation_fraction,
        validate_every_updates=max(1, updates // 4),
        best_metric="mel",  # the recognizer listens at the end
        save_every_updates=0,
    )


@dataclass(frozen=True)
class _Listener:
    """Writes what a voice speaks, and what a recognizer hears."""

    metrics: SpeechMetrics | None
    missing: str
    """Why there is no recognizer."""

    @classmethod
    def create(cls, rate_hz: int) -> "_Listener":
        judge = choose_judge("auto", "en")
        metrics = None if judge.recognizer is None else SpeechMetrics(["cer"], rate_hz, judge.recognizer, "en")
        return cls(metrics, judge.reason)

    def listen(self, name_or_dir: str, sentences: Sequence[str], folder: Path) -> list[ClipMetrics]:
        voice = Voice.load(name_or_dir)
        folder.mkdir(exist_ok=True)
        heard = []
        for number, sentence in enumerate(sentences, start=1):
            spoken = voice.synthesize(sentence)
            write_pcm16_wav(folder / f"{number}.wav", to_pcm16(spoken), voice.sampling_rate)
            if self.metrics is not None:
                heard.append(self.metrics.measure(sentence, spoken, spoken))
        return heard


def _heard(
    sentences: Sequence[str], before: Sequence[ClipMetrics], after: Sequence[ClipMetrics], missing: str
) -> list[str]:
    """Lines with what the recognizer heard of each sentence."""
    if missing:
        return [f"character error rates are not measured: {missing}"]
    lines = []
    for sentence, *clips in zip(sentences, before, after, strict=True):
        lines.append(f"text             {sentence}")
        for name, clip in zip(("heard before", "heard after"), clips, strict=True):
            lines.append(f"{name:16} {clip.transcript}   (CER {clip.metrics.get('cer', 0):.0%})")
    rates = [
        means([ClipScore("", "", None, clip.metrics) for clip in clips]).get("cer", 0) for clips in (before, after)
    ]
    return [*lines, "", f"CER of {len(sentences)} unseen sentences   before {rates[0]:.1%}, after {rates[1]:.1%}"]


def _distance(training: Path, voices: tuple[str, str]) -> str:
    """The line with the distance of both voices to the speaker."""
    if not is_installed("mcd"):
        return f"the distance to the speaker is not measured: {install_command('evaluate')}"
    prepared = open_prepared(training)
    rows = train_validation_split(
        prepared, _HELD_OUT.validation_fraction, _HELD_OUT.validation_max_clips, _HELD_OUT.seed
    )[1]
    metrics = SpeechMetrics(["mcd"], prepared.sampling_rate)
    before, after = (
        evaluate_voice(name, voice_synthesizer(Voice.load(name), prepared, 0), prepared, rows, metrics, timed=False)
        for name in voices
    )
    old, new = (evaluation.summary(["mcd_db"])["mcd_db"]["mean"] for evaluation in (before, after))
    change = after.difference_to(before, ["mcd_db"])["mcd_db"]
    result = "nearer to the speaker" if change["high"] < 0 else "NOT nearer to the speaker beyond chance"
    return (
        f"MCD to {len(rows)} held-out clips     before {old:.2f} dB, after {new:.2f} dB   ({change['mean']:+.2f} dB, "
        f"95 % interval {change['low']:+.2f} to {change['high']:+.2f}: {result})"
    )


def _play(files: Sequence[Path]) -> None:
    """Plays files if somebody sits at the terminal, and says so if this machine cannot."""
    if not sys.stdout.isatty():
        return
    player = next((command for command in _PLAYERS if shutil.which(command[0])), None)
    for file in files:
        print(f"playing {file}")
        if player is None or subprocess.run([*player, str(file)], check=False).returncode:  # noqa: S603  # nosec B603
            print("No sound on this machine: open listening.html in a browser.")
            return
