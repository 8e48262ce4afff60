"""A voice's model card, written from the run that made it, and its way to the Hugging Face Hub."""

import html
import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from vits_trainer.config.serialization import to_dict
from vits_trainer.config.train import TrainConfig
from vits_trainer.text.languages import espeak_name
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.redaction import redacted

CARD = "README.md"
_IN_SIGHT = 16
"""A longer table of speakers is folded away."""
_LICENCES = {"facebook/mms-tts": "cc-by-nc-4.0", "kakao-enterprise/vits": "mit"}
"""Of voices on the Hub by the beginnings of their names, as their cards say."""
_PYTHON = """```python
from transformers import pipeline

speech = pipeline("text-to-speech", model="{name}")("...")
```
"""
_PYTHON_OF_PHONEMES = """```python
from transformers import pipeline
from vits_trainer.text.tokenizer import load_tokenizer  # pip install 'vits-trainer[text]'

# Phonemes of {language}; transformers' own tokenizer would make American English ones.
speech = pipeline("text-to-speech", model="{name}", tokenizer=load_tokenizer("{name}"))("...")
```
"""
_OWN_AFFAIRS = (
    "data_dir", "checkpoint_dir", "output_dir", "keep_versions", "runs_dir", "run_name", "resume_from_checkpoint",
    "report_to", "push_to_hub", "hub_private", "model_name",
)  # fmt: skip
"""Settings that tell of a machine or an account, and nothing of the voice; with wandb_*."""


@dataclass(frozen=True)
class ModelCardInfo:
    """What a card tells of the run that made a voice."""

    config: TrainConfig
    data: Mapping[str, Any]
    """dataset.json."""
    training_clips: int
    """0 where they are not counted: of a stream."""
    speakers: tuple[str, ...]
    """Names in the order of their ids; empty where the voice has one."""
    phonemes_of: str | None
    """The language whose phonemes the voice reads; None where it reads letters."""
    sampling_rate: int
    update: int
    """Whose weights became the voice."""
    versions: Mapping[str, str]
    run_dir: Path


def write_model_card(voice: Path, story: ModelCardInfo) -> None:
    """Writes README.md into an exported voice, and speech of that update's validation as ``sample_<n>.wav``.

    Recordings are not among them: they are other people's.
    """
    texts = _take_samples(voice, story)
    atomic_write(voice / CARD, redacted(model_card(story, texts)))


def model_card(story: ModelCardInfo, samples: Mapping[str, str] | None = None) -> str:
    """The card: a header that the Hub reads, and what people want to know.

    Args:
        story: of the run.
        samples: what is said in each file, by its path within the voice.
    """
    base, licence = _origin(story.config)
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-to-speech", "tags": ["vits"]}
    header |= {"license": licence} if licence else {}
    header |= {"base_model": base} if base and "/" in base else {}
    name = story.config.push_to_hub or "path/to/this/folder"
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        "# A VITS voice\n",
        f"Text in, speech at {story.sampling_rate} Hz out. Made with vits_trainer.\n",
        _python(story, name),
        _samples(story, samples or {}),
        _data(story),
        _made(story, base, licence),
        _figures(story),
    ]
    return "\n".join(part for part in parts if part)


def _python(story: ModelCardInfo, name: str) -> str:
    if story.phonemes_of is None or espeak_name(story.phonemes_of) == espeak_name(None):
        return _PYTHON.format(name=name)
    return _PYTHON_OF_PHONEMES.format(name=name, language=story.phonemes_of)


def _origin(config: TrainConfig) -> tuple[str | None, str | None]:
    """The voice that training began with, by its name on the Hub, and its licence, as far as they are known.

    A voice in a folder has them from its own card.
    """
    if config.model_name is None:
        return None, None
    own_card = Path(config.model_name) / CARD
    if own_card.is_file():
        try:
            told = ModelCard(own_card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # as the header's words are, or its form
            told = {}
        base = told.get("base_model")
        return (base if isinstance(base, str) else Path(config.model_name).name), told.get("license")
    if Path(config.model_name).is_dir():
        return Path(config.model_name).resolve().name, None
    return config.model_name, next((by for of, by in _LICENCES.items() if config.model_name.startswith(of)), None)


def _take_samples(voice: Path, story: ModelCardInfo) -> dict[str, str]:
    """Copies speech of the update's validation into the voice: what is said, by path."""
    folder = story.run_dir / "samples" / f"update-{story.update:06}"
    if not (folder / "texts.json").is_file():
        return {}
    said = {}
    for number, text in enumerate(json.loads((folder / "texts.json").read_text(encoding="utf-8"))):
        path = f"sample_{number}.wav"
        shutil.copyfile(folder / f"{number}_speech.wav", voice / path)
        said[path] = str(text)
    return said


def _samples(story: ModelCardInfo, said: Mapping[str, str]) -> str:
    kind = "that it was trained on" if story.config.validate_on_training_clips else "that it was not trained on"
    lines = [
        f'- {html.escape(text, quote=False)}\n\n  <audio controls src="{path}"></audio> ([{path}]({path}))\n'
        for path, text in said.items()
    ]
    return "\n".join([f"## Samples\n\nSentences {kind}:\n", *lines]) if said else ""


def _data(story: ModelCardInfo) -> str:
    source = story.data.get("source") or {}
    counts = [f"{story.data['accepted']} clips"] if "accepted" in story.data else []
    counts += [f"{story.data['hours']:.2f} hours"] if "hours" in story.data else []
    counts += [f"{story.training_clips} of the clips trained on"] if story.training_clips else []
    revision = f" at revision {source['revision']}" if source.get("revision") else ""
    return f"## Data\n\n{_source(story)}{revision}: {', '.join(counts) or 'not counted'}.\n{_speakers(story)}"


def _speakers(story: ModelCardInfo) -> str:
    """Names and ids, as a table."""
    if not story.speakers:
        return ""
    rows = [f"| {number} | {_in_a_cell(name)} |" for number, name in enumerate(story.speakers)]
    table = "\n".join(["| speaker_id | speaker |", "|---|---|", *rows, ""])
    said = f"\nThe voice has {len(story.speakers)} speakers; `speaker_id` chooses one in transformers"
    if len(rows) <= _IN_SIGHT:
        return f"{said}:\n\n{table}"
    return f"{said}.\n\n<details><summary>Their names and ids</summary>\n\n{table}\n</details>\n"


def _in_a_cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")


def _made(story: ModelCardInfo, base: str | None, licence: str | None) -> str:
    if base is None:
        begun = "From scratch."
    else:
        begun = (
            f"Fine-tuned from {base}, whose licence is {licence or 'not known to the trainer'}; it binds this voice."
        )
    versions = ", ".join(f"{package} {version}" for package, version in story.versions.items())
    averaged = ", averaged" if story.config.ema_decay else ""
    return (
        f"## How it was made\n\n{begun} Weights after {story.update} updates{averaged}.\n\n"
        f"    vits-trainer prepare_data --dataset {shlex.quote(_source(story))} --output_dir training "
        f"--target_sr {story.sampling_rate}\n"
        f"    vits-trainer train_vits --data_dir training --config settings.yaml\n\nwith settings.yaml:\n\n"
        f"```yaml\n{_settings(story.config, base)}```\n\nVersions: {versions}.\n"
    )


def _settings(config: TrainConfig, base: str | None) -> str:
    """What differs from the defaults, as YAML for ``--config``."""
    given, defaults = to_dict(config), to_dict(TrainConfig())
    kept = {
        name: value
        for name, value in given.items()
        if value != defaults[name]
        and name not in _OWN_AFFAIRS
        and not name.startswith("wandb_")
        and not (isinstance(value, str) and Path(value).is_absolute())
    }
    text: str = yaml.safe_dump({"model_name": base, **kept}, sort_keys=False, allow_unicode=True)
    return text


def _source(story: ModelCardInfo) -> str:
    """Where the clips are from. Of a folder its name alone: the rest tells of somebody's machine."""
    source = story.data.get("source") or {}
    name = str(source.get("dataset") or "YOUR_RECORDINGS")
    return name if source.get("kind") == "hub" else Path(name).name


def _figures(story: ModelCardInfo) -> str:
    found: dict[str, float] = {}
    path = story.run_dir / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        values = json.loads(line)
        if values["update"] == story.update:
            found |= {name.partition("/")[2]: value for name, value in values.items() if name.startswith("validation/")}
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(found.items()) if "/" not in name]
    if not rows:
        return ""
    clips = "training clips" if story.config.validate_on_training_clips else "held-out clips"
    explained = (
        f"On {clips}. `mel` is the L1 distance of log-mel spectrograms in nats, less is better; "
        "`constant_frame_mel` is what no sound but a steady noise reaches."
    )
    return "\n".join(["## Figures\n", explained, "\n| figure | value |", "|---|---|", *rows]) + "\n"
