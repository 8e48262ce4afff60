"""Writes the model card of a trained voice."""

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
_MAX_VISIBLE_SPEAKERS = 16
"""Longer tables of speakers are collapsed."""
_LICENCES = {"facebook/mms-tts": "cc-by-nc-4.0", "kakao-enterprise/vits": "mit"}
"""Licences of voices on the Hub, by prefix of their names, according to their cards."""
_USAGE = """```python
from transformers import pipeline

speech = pipeline("text-to-speech", model="{name}")("...")
```
"""
_USAGE_WITH_PHONEMES = """```python
from transformers import pipeline
from vits_trainer.text.tokenizer import load_tokenizer  # pip install 'vits-trainer[text]'

# Phonemes of {language}; the tokenizer of transformers would produce American English ones.
speech = pipeline("text-to-speech", model="{name}", tokenizer=load_tokenizer("{name}"))("...")
```
"""
_EXCLUDED_SETTINGS = (
    "data_dir", "checkpoint_dir", "output_dir", "keep_versions", "runs_dir", "run_name", "resume_from_checkpoint",
    "report_to", "push_to_hub", "hub_private", "model_name",
)  # fmt: skip
"""Settings that concern a machine or an account, not the voice; wandb_* are excluded too."""


@dataclass(frozen=True)
class ModelCardInfo:
    """Facts about the run that trained a voice, for its card."""

    config: TrainConfig
    data: Mapping[str, Any]
    """Content of dataset.json."""
    training_clips: int
    """0 if not counted, as for streamed data."""
    speakers: tuple[str, ...]
    """Names in the order of their ids; empty for a single-speaker voice."""
    phonemes_of: str | None
    """Language of the phonemes that the voice reads; None if it reads letters."""
    sampling_rate: int
    update: int
    """Update of the exported weights."""
    versions: Mapping[str, str]
    run_dir: Path


def write_model_card(voice: Path, info: ModelCardInfo) -> None:
    """Writes README.md into an exported voice, and copies speech of its validation as ``sample_<n>.wav``.

    Recordings are not copied, as they belong to others.
    """
    texts = _copy_samples(voice, info)
    atomic_write(voice / CARD, redacted(model_card(info, texts)))


def model_card(info: ModelCardInfo, samples: Mapping[str, str] | None = None) -> str:
    """Returns the card, with a metadata header for the Hub.

    Args:
        info: facts about the run.
        samples: texts of the sample files, by path within the voice.
    """
    base, licence = _origin(info.config)
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-to-speech", "tags": ["vits"]}
    header |= {"license": licence} if licence else {}
    header |= {"base_model": base} if base and "/" in base else {}
    name = info.config.push_to_hub or "path/to/this/folder"
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        "# VITS voice\n",
        f"Text to speech at {info.sampling_rate} Hz. Made with vits_trainer.\n",
        _usage(info, name),
        _samples(info, samples or {}),
        _data(info),
        _training(info, base, licence),
        _metrics(info),
    ]
    return "\n".join(part for part in parts if part)


def _usage(info: ModelCardInfo, name: str) -> str:
    if info.phonemes_of is None or espeak_name(info.phonemes_of) == espeak_name(None):
        return _USAGE.format(name=name)
    return _USAGE_WITH_PHONEMES.format(name=name, language=info.phonemes_of)


def _origin(config: TrainConfig) -> tuple[str | None, str | None]:
    """Returns the base model's name on the Hub and its licence, each None if unknown.

    For a voice in a local folder, they are read from its card.
    """
    if config.model_name is None:
        return None, None
    base_card = Path(config.model_name) / CARD
    if base_card.is_file():
        try:
            metadata = ModelCard(base_card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # invalid values in the header, or invalid YAML
            metadata = {}
        base = metadata.get("base_model")
        return (base if isinstance(base, str) else Path(config.model_name).name), metadata.get("license")
    if Path(config.model_name).is_dir():
        return Path(config.model_name).resolve().name, None
    return config.model_name, next(
        (licence for prefix, licence in _LICENCES.items() if config.model_name.startswith(prefix)), None
    )


def _copy_samples(voice: Path, info: ModelCardInfo) -> dict[str, str]:
    """Copies speech of the update's validation into the voice; returns the texts by path."""
    folder = info.run_dir / "samples" / f"update-{info.update:06}"
    if not (folder / "texts.json").is_file():
        return {}
    texts = {}
    for number, text in enumerate(json.loads((folder / "texts.json").read_text(encoding="utf-8"))):
        path = f"sample_{number}.wav"
        shutil.copyfile(folder / f"{number}_speech.wav", voice / path)
        texts[path] = str(text)
    return texts


def _samples(info: ModelCardInfo, texts: Mapping[str, str]) -> str:
    kind = "from the training clips" if info.config.validate_on_training_clips else "not used for training"
    lines = [
        f'- {html.escape(text, quote=False)}\n\n  <audio controls src="{path}"></audio> ([{path}]({path}))\n'
        for path, text in texts.items()
    ]
    return "\n".join([f"## Samples\n\nSentences {kind}:\n", *lines]) if texts else ""


def _data(info: ModelCardInfo) -> str:
    source = info.data.get("source") or {}
    counts = [f"{info.data['accepted']} clips"] if "accepted" in info.data else []
    counts += [f"{info.data['hours']:.2f} hours"] if "hours" in info.data else []
    counts += [f"{info.training_clips} of the clips trained on"] if info.training_clips else []
    revision = f" at revision {source['revision']}" if source.get("revision") else ""
    return f"## Data\n\n{_source(info)}{revision}: {', '.join(counts) or 'not counted'}.\n{_speakers(info)}"


def _speakers(info: ModelCardInfo) -> str:
    """Table of speaker names and ids."""
    if not info.speakers:
        return ""
    rows = [f"| {number} | {_escape_cell(name)} |" for number, name in enumerate(info.speakers)]
    table = "\n".join(["| speaker_id | speaker |", "|---|---|", *rows, ""])
    intro = f"\nThe voice has {len(info.speakers)} speakers; in transformers, `speaker_id` selects one"
    if len(rows) <= _MAX_VISIBLE_SPEAKERS:
        return f"{intro}:\n\n{table}"
    return f"{intro}.\n\n<details><summary>Names and ids</summary>\n\n{table}\n</details>\n"


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _training(info: ModelCardInfo, base: str | None, licence: str | None) -> str:
    if base is None:
        origin = "Trained from scratch."
    else:
        origin = f"Fine-tuned from {base}, whose licence ({licence or 'unknown'}) also applies to this voice."
    versions = ", ".join(f"{package} {version}" for package, version in info.versions.items())
    averaged = " (EMA)" if info.config.ema_decay else ""
    return (
        f"## Training\n\n{origin} Weights after {info.update} updates{averaged}.\n\n"
        f"    vits-trainer prepare_data --dataset {shlex.quote(_source(info))} --output_dir training "
        f"--target_sr {info.sampling_rate}\n"
        f"    vits-trainer train_vits --data_dir training --config settings.yaml\n\nwith settings.yaml:\n\n"
        f"```yaml\n{_settings(info.config, base)}```\n\nVersions: {versions}.\n"
    )


def _settings(config: TrainConfig, base: str | None) -> str:
    """Returns the settings that differ from the defaults, as YAML for ``--config``."""
    values, defaults = to_dict(config), to_dict(TrainConfig())
    kept = {
        name: value
        for name, value in values.items()
        if value != defaults[name]
        and name not in _EXCLUDED_SETTINGS
        and not name.startswith("wandb_")
        and not (isinstance(value, str) and Path(value).is_absolute())
    }
    text: str = yaml.safe_dump({"model_name": base, **kept}, sort_keys=False, allow_unicode=True)
    return text


def _source(info: ModelCardInfo) -> str:
    """Source of the clips. Of a local path only the last part, so that the card contains no local paths."""
    source = info.data.get("source") or {}
    name = str(source.get("dataset") or "YOUR_RECORDINGS")
    return name if source.get("kind") == "hub" else Path(name).name


def _metrics(info: ModelCardInfo) -> str:
    metrics: dict[str, float] = {}
    path = info.run_dir / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        values = json.loads(line)
        if values["update"] == info.update:
            metrics |= {
                name.partition("/")[2]: value for name, value in values.items() if name.startswith("validation/")
            }
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items()) if "/" not in name]
    if not rows:
        return ""
    clips = "training clips" if info.config.validate_on_training_clips else "validation clips"
    explanation = (
        f"On {clips}. `mel` is the L1 distance of log-mel spectrograms in nats, lower is better; "
        "`constant_frame_mel` is its baseline, the best constant frame."
    )
    return "\n".join(["## Metrics\n", explanation, "\n| metric | value |", "|---|---|", *rows]) + "\n"
