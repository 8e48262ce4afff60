"""Writes the model card of a trained voice."""

import html
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from vits_trainer.config.options import SCORES
from vits_trainer.config.serialization import to_dict
from vits_trainer.config.train import TrainConfig
from vits_trainer.text.languages import espeak_name
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.redaction import redacted
from vits_trainer.utils.strings import counted, shown_speaker

CARD = "README.md"
_MAX_VISIBLE_SPEAKERS = 16
"""Longer tables of speakers are collapsed."""
_LICENCES = {"facebook/mms-tts": "cc-by-nc-4.0", "kakao-enterprise/vits": "mit"}
"""Licences of voices on the Hub, by prefix of their names, according to their cards."""
_SHOWN_METRICS = (
    "mel",
    "mel_from_text",
    "mel_raw",
    "constant_frame_mel",
    *(name for score in SCORES.values() for name in score),
)
"""Not the adversarial and other training losses, which mean nothing without the discriminators."""
# Markdown: texts of others are escaped where they are filled in.
_TEMPLATES = jinja2.Environment(  # noqa: S701  # nosec B701
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
_EXCLUDED_SETTINGS = (
    "data_dir", "dataset", "checkpoint_dir", "output_dir", "keep_versions", "runs_dir", "run_name",
    "resume_from_checkpoint", "report_to", "push_to_hub", "hub_private", "model_name",
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
    language: str | None
    """Of the voice's tokenizer, such as kmr-script_latin."""
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
    name = info.config.push_to_hub or "path/to/this/folder"
    title = (info.config.push_to_hub or "VITS voice").rpartition("/")[2]
    source, metrics = info.data.get("source") or {}, _metrics(info)
    card_data = ModelCardData(
        language=_language(info, base),
        license=licence,
        library_name="transformers",
        pipeline_tag="text-to-speech",
        tags=["vits"],
        datasets=[source["dataset"]] if source.get("kind") == "hub" else None,
        base_model=base if base and "/" in base else None,
        model_name=title if metrics else None,
        eval_results=_eval_results(info, metrics) or None,
    )
    reads_english = info.phonemes_of is None or espeak_name(info.phonemes_of) == espeak_name(None)
    template = _TEMPLATES.from_string((Path(__file__).parent / "model_card.md.j2").read_text(encoding="utf-8"))
    text: str = template.render(
        card_data=card_data.to_yaml(),
        name=name,
        title=title,
        sampling_rate=info.sampling_rate,
        phonemes_of=info.phonemes_of,
        reads_english=reads_english,
        samples={path: html.escape(text, quote=False) for path, text in (samples or {}).items()},
        validates_on_training_clips=info.config.validate_on_training_clips,
        source=_source(info),
        quoted_source=shlex.quote(_source(info)),
        revision=source.get("revision"),
        counts=_counts(info),
        speakers=[_escape_cell(shown_speaker(speaker)) for speaker in info.speakers],
        folds_speakers=len(info.speakers) > _MAX_VISIBLE_SPEAKERS,
        base=base,
        licence=licence,
        update=info.update,
        is_averaged=bool(info.config.ema_decay),
        settings=_settings(info.config, base),
        versions=", ".join(f"{package} {version}" for package, version in info.versions.items()),
        metrics=metrics,
    )
    return text


def _language(info: ModelCardInfo, base: str | None) -> str | None:
    """ISO 639 code of the language: as set, as the voice states it, or as MMS names it."""
    if stated := info.config.language or info.language:
        return stated.partition("-")[0]
    mms = re.fullmatch(r"facebook/mms-tts-(\w{3})(-.*)?", base or "")
    return mms[1] if mms else None


def _eval_results(info: ModelCardInfo, metrics: Mapping[str, float]) -> list[EvalResult]:
    """Validation metrics as the Hub shows them."""
    source = _source(info)
    return [
        EvalResult("text-to-speech", source, f"{source} (validation clips)", metric, round(value, 4))
        for metric, value in metrics.items()
        if metric not in ("mel_raw", "constant_frame_mel")  # of other weights, and a baseline
    ]


def _origin(config: TrainConfig) -> tuple[str | None, str | None]:
    """Returns the base model's name on the Hub and its licence, each None if unknown.

    For a voice in a local folder, they are read from its card.
    """
    if config.model_name is None:
        return None, None
    base_card = Path(config.model_name) / CARD
    if base_card.is_file():
        metadata = _read_header(base_card)
        base, licence = metadata.get("base_model"), metadata.get("license")
        return (base if isinstance(base, str) else Path(config.model_name).name), (
            licence if isinstance(licence, str) else None
        )
    if Path(config.model_name).is_dir():
        return Path(config.model_name).resolve().name, None
    return config.model_name, next(
        (licence for prefix, licence in _LICENCES.items() if config.model_name.startswith(prefix)), None
    )


def _read_header(card: Path) -> dict[str, Any]:
    """Returns the metadata of another voice's card; empty if they are missing or invalid."""
    try:
        text = records.read_text(card, DataError, "", records.MAX_UNTYPED_BYTES)
        header = re.match(r"---\r?\n(.*?)^---", text, re.DOTALL | re.MULTILINE)
        return records.parse_yaml(header[1], card, DataError, "") if header else {}
    except DataError:
        return {}


def _copy_samples(voice: Path, info: ModelCardInfo) -> dict[str, str]:
    """Copies speech of the update's validation into the voice; returns the texts by path."""
    folder = info.run_dir / "samples" / f"update-{info.update:06}"
    if not (folder / "texts.json").is_file():
        return {}
    texts = {}
    for number, text in enumerate(records.read_json(folder / "texts.json", list[str], DataError, "Delete it.")):
        path = f"sample_{number}.wav"
        shutil.copyfile(folder / f"{number}_speech.wav", voice / path)
        texts[path] = text
    return texts


def _counts(info: ModelCardInfo) -> list[str]:
    counts = [f"{counted(info.data['accepted'], 'clip')}"] if "accepted" in info.data else []
    counts += [f"{info.data['hours']:.2f} hours"] if "hours" in info.data else []
    return counts + ([f"{info.training_clips} of the clips trained on"] if info.training_clips else [])


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


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


def _metrics(info: ModelCardInfo) -> dict[str, float]:
    """Validation metrics of the exported update that describe its speech, by name."""
    metrics: dict[str, float] = {}
    path = info.run_dir / "metrics.jsonl"
    for line in records.read_lines(path) if path.is_file() else ():
        values = records.parse_json_line(line, dict[str, float]) or {}
        if values.get("update") == info.update:
            metrics |= {
                name.partition("/")[2]: value for name, value in values.items() if name.startswith("validation/")
            }
    return {name: metrics[name] for name in _SHOWN_METRICS if name in metrics}
