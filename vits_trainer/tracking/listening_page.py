"""A page to compare voices by ear: the same sentences side by side, and a blind test of pairs with a tally to save.

The page is one file without network access. Its script shuffles the pairs and their sides in the browser, at random.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from vits_trainer.config.selection import ClipSelection
from vits_trainer.config.tools import ReportConfig
from vits_trainer.data.audio import RecordingError, read_pcm16_wav, to_pcm16
from vits_trainer.data.prepared import open_selected, train_validation_split
from vits_trainer.evaluation.comparison import read_prepared_clip
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.models.voice_versions import read_selection
from vits_trainer.utils import records
from vits_trainer.utils.errors import ConfigError, DataError

_LOUDNESS_RMS = 0.05
"""-26 dB of full scale, as in tests of speech quality (ITU-T P.56)."""
_PEAK = 0.98
_MAX_TEXT_BYTES = 2**20


class Take(NamedTuple):
    """A sentence as one voice speaks it."""

    samples: NDArray[np.float32]
    """(T,), full scale at 1."""
    sampling_rate: int
    """In Hz."""


@dataclass(frozen=True)
class Prompt:
    """A sentence to speak."""

    text: str
    speaker: str = ""
    """Of multi-speaker voices; the first if it is empty."""
    recorded: Take | None = None


@dataclass(frozen=True)
class SpokenSentence:
    """A sentence, as each voice speaks it."""

    text: str
    takes: tuple[Take, ...]
    """One per voice, in their order."""
    recorded: Take | None = None


def is_run(name: str) -> bool:
    """Returns whether a name is the folder of a run, rather than a voice."""
    return (Path(name) / "metrics.jsonl").is_file() or (Path(name) / "config.yaml").is_file()


def short_names(names: Sequence[str]) -> list[str]:
    """Returns the last parts of paths, as few as make them differ: a page is shared, and its paths are private."""
    parts = [Path(name).parts for name in names]
    endings = [["/".join(one[-count:]) for count in range(1, len(one) + 1)] for one in parts]
    of_others = [{ending for other in endings if other is not mine for ending in other} for mine in endings]
    return [
        next((ending for ending in mine if ending not in others), name)
        for name, mine, others in zip(names, endings, of_others, strict=True)
    ]


def speak_all(config: ReportConfig) -> list[SpokenSentence]:
    """Collects the sentences of ``config.compare``: runs contribute the samples of their last validation.

    Raises:
        ConfigError: ``sentences`` is given, but a run has only its validation sentences.
        DataError: there are no sentences, runs have none in common, or voices cannot speak one.
        ModelError: a name is neither a run nor a voice.
    """
    samples = {name: _run_samples(Path(name)) for name in config.compare if is_run(name)}
    if config.sentences and samples:
        raise ConfigError(
            f"--sentences: {next(iter(samples))} is a run, which contains only its validation sentences. Give the "
            "voice that it trained (its output_dir), or omit --sentences."
        )
    prompts = _common(samples) if samples else _read_prompts(config)
    prompts = prompts[: config.max_sentences]
    takes = [_takes(name, samples.get(name), prompts, config.seed) for name in config.compare]
    return [
        SpokenSentence(prompt.text, spoken, prompt.recorded)
        for prompt, spoken in zip(prompts, zip(*takes, strict=True), strict=True)
    ]


def _takes(
    name: str, samples: dict[str, tuple[Take, Take | None]] | None, prompts: Sequence[Prompt], seed: int
) -> list[Take]:
    if samples is not None:
        return [samples[prompt.text][0] for prompt in prompts]
    voice = Voice.load(name)
    several = voice.model.config.num_speakers > 1
    options = [SynthesisOptions(speaker=(prompt.speaker or None) if several else None, seed=seed) for prompt in prompts]
    return [
        Take(voice.synthesize(prompt.text, one), voice.sampling_rate)
        for prompt, one in zip(prompts, options, strict=True)
    ]


def _run_samples(run_dir: Path) -> dict[str, tuple[Take, Take | None]]:
    """Returns speech and, if it is there, the recording of the last validation's samples, by text."""
    folders = {
        int(match[1]): path.parent
        for path in run_dir.glob("samples/*/texts.json")
        if (match := re.fullmatch(r"update-(\d{1,15})", path.parent.name))
    }
    if not folders:
        raise DataError(
            f"{run_dir} contains no samples (each validation adds --validation_samples). Compare the voices instead: "
            "give their folders."
        )
    folder = folders[max(folders)]
    texts = records.read_json(folder / "texts.json", list[str], DataError, "Compare the voices instead.")
    samples = {}
    for number, text in enumerate(texts):
        recorded = folder / f"{number}_recorded.wav"
        samples[text] = _read(folder / f"{number}_speech.wav"), _read(recorded) if recorded.is_file() else None
    return samples


def _read(path: Path) -> Take:
    try:
        pcm, rate_hz = read_pcm16_wav(path)
    except RecordingError as error:
        raise DataError(f"{path} cannot be read ({error}). Compare the voices instead: give their folders.") from error
    return Take(pcm.astype(np.float32) / np.float32(32768), rate_hz)


def _common(samples: dict[str, dict[str, tuple[Take, Take | None]]]) -> list[Prompt]:
    first, *others = samples.values()
    prompts = [Prompt(text, recorded=first[text][1]) for text in first if all(text in other for other in others)]
    if not prompts:
        raise DataError(
            f"{', '.join(samples)} have no validation sentence in common: their data or seeds differ. Compare the "
            "voices instead: give their folders."
        )
    return prompts


def _read_prompts(config: ReportConfig) -> list[Prompt]:
    if config.sentences:
        content = records.read_bytes(Path(config.sentences), ConfigError, "Give a text file.", _MAX_TEXT_BYTES)
        lines = [line.strip() for line in content.decode("utf-8-sig", errors="replace").splitlines()]
        if not any(lines):
            raise ConfigError(f"--sentences {config.sentences}: is empty. Write one sentence per line.")
        return [Prompt(line) for line in lines if line]
    stored = [read_selection(Path(name)) for name in config.compare]
    selection = next((one for one in stored if one), ClipSelection())
    prepared = open_selected(Path(config.data_dir), selection, names_speaker=True)
    split = (selection.validation_fraction, selection.validation_max_clips, selection.seed)
    rows = train_validation_split(prepared, *split)[1][: config.max_sentences]
    if not rows:
        raise DataError(f"{config.data_dir} contains no validation clips. Give --sentences FILE.")
    return [
        Prompt(
            prepared.rows.text[row],
            prepared.rows.speaker[row],
            Take(read_prepared_clip(prepared, row), prepared.sampling_rate),
        )
        for row in rows
    ]


def equally_loud(takes: Sequence[Take]) -> list[Take]:
    """Scales speech to equal RMS, below clipping, because listeners prefer the louder of two equal sounds."""
    rms = [
        float(np.sqrt(np.square(take.samples, dtype=np.float64).mean())) if take.samples.size else 0 for take in takes
    ]
    crest = [np.abs(take.samples).max() / level for take, level in zip(takes, rms, strict=True) if level]
    target = min([_LOUDNESS_RMS, *(_PEAK / one for one in crest)])
    return [
        Take((take.samples * (target / level if level else 1)).astype(np.float32), take.sampling_rate)
        for take, level in zip(takes, rms, strict=True)
    ]


def render_listening_page(title: str, voices: Sequence[str], sentences: Sequence[SpokenSentence]) -> str:
    """Renders the page."""
    shown = []
    for sentence in sentences:
        with_recording = [*sentence.takes, *([sentence.recorded] if sentence.recorded else [])]
        uris = [_flac_uri(take) for take in equally_loud(with_recording)]
        takes = uris[: len(voices)]
        shown.append({"text": sentence.text, "takes": takes, "recorded": "".join(uris[len(voices) :])})
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = (folder / "listening.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page_id = hashlib.sha256(json.dumps([voices, shown]).encode()).hexdigest()[:16]
    pairs = list(combinations(range(len(voices)), 2))
    content = {
        "page": page_id,
        "title": title,
        "voices": list(voices),
        "pairs": pairs,
        "texts": [s.text for s in sentences],
    }
    return environment.get_template("listening.html.j2").render(
        title=title, voices=voices, sentences=shown, script=script, digest=digest, content=content
    )


def _flac_uri(take: Take) -> str:
    content = io.BytesIO()
    sf.write(content, to_pcm16(take.samples), take.sampling_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(content.getvalue()).decode()}"
