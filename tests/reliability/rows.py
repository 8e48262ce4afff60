"""Invalid inputs, one row each: how the input is created, and the expected outcome and message.

``python -m tests.reliability`` prints them with the actual outcomes and messages.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from tests.support.audio import encode, voice, write_lj_speech, write_release
from tests.support.fork_server import python
from tests.support.launch import ROOT, command_of, environment
from tests.support.limits import HANG_S
from tests.support.shards import damage, write_shards
from tests.support.voices import MINIATURE, train_flags

RATE_HZ = 16000
GOOD = voice(0.8, RATE_HZ)


@dataclass(frozen=True)
class Row:
    """One kind of invalid input."""

    title: str
    outcome: str
    """``accepted``, ``accepted, text changed``, ``rejected: REASON``, ``exit 2`` or ``exit 1``."""
    message: str = ""
    """Part of the expected message."""


# Clips and texts of one data set for prepare_data


@dataclass(frozen=True)
class ClipRow(Row):
    """A clip of an audio folder."""

    content: bytes | Callable[[Path], None] = b""
    """Content of its file, or a function that creates the file at a path."""
    text: str = "a word"
    name: str | None = None
    """Path in the metadata; None for the row's number."""


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    return encode(samples, rate_hz, kind, subtype)


def _wav_with_declared_size(size_bytes: int) -> bytes:
    """Returns a WAV file whose header declares ``size_bytes`` of audio."""
    content = bytearray(wav(GOOD))
    struct.pack_into("<I", content, 40, size_bytes)
    return bytes(content)


def _an_hour(path: Path) -> None:
    """Writes an hour at 8 kHz and 8 bits, as a sparse file."""
    samples = 3600 * 8000
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + samples, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", samples)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + samples)


def _outside(path: Path) -> Path:
    other = path.parents[2] / "elsewhere.wav"
    other.write_bytes(wav(GOOD))
    return other


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


NAN, INF = GOOD.copy(), GOOD.copy()
NAN[100], INF[100] = np.nan, np.inf
NINE_CHANNELS = np.stack([GOOD] * 9, axis=1)
LOUD = np.sign(GOOD).astype(np.float32)

AUDIO = (
    ClipRow("truncated WAV, which libsndfile reads without an error", "rejected: truncated-audio", "bytes of audio", wav(GOOD)[:9000]),
    ClipRow("WAV with zero frames", "rejected: empty-audio", "no samples", wav(GOOD[:0])),
    ClipRow("file of 0 bytes", "rejected: empty-audio", "0 bytes", b""),
    ClipRow("NaN in the samples", "rejected: non-finite-audio", "1 samples", wav(NAN, subtype="FLOAT")),
    ClipRow("Inf in the samples", "rejected: non-finite-audio", "1 samples", wav(INF, subtype="FLOAT")),
    ClipRow("clipped throughout", "accepted", content=wav(LOUD)),
    ClipRow("float samples far beyond full scale", "accepted", content=wav(GOOD * 1e6, subtype="FLOAT")),
    ClipRow("constant offset (DC)", "accepted", content=wav(GOOD / 2 + 0.4)),
    ClipRow("digital silence", "rejected: too-quiet", "silence", wav(GOOD * 0)),
    ClipRow("8 bits", "accepted", content=wav(GOOD, subtype="PCM_U8")),
    ClipRow("24 bits", "accepted", content=wav(GOOD, subtype="PCM_24")),
    ClipRow("32 bits", "accepted", content=wav(GOOD, subtype="PCM_32")),
    ClipRow("64-bit floats", "accepted", content=wav(GOOD, subtype="DOUBLE")),
    ClipRow("8 channels", "accepted", content=wav(NINE_CHANNELS[:, :8])),
    ClipRow("9 channels", "rejected: unsupported-audio", "9 channels", wav(NINE_CHANNELS)),
    ClipRow("192 kHz", "accepted", content=wav(voice(0.8, 192_000), 192_000)),
    ClipRow("384 kHz", "rejected: unsupported-audio", "384000 Hz", wav(voice(0.3, 384_000), 384_000)),
    ClipRow("text named .wav", "rejected: unreadable-audio", "", b"these are words, not sounds\n" * 99),
    ClipRow("zeros named .wav", "rejected: unreadable-audio", "", bytes(5000)),
    ClipRow("MP3 named .wav", "accepted", content=encode(GOOD, RATE_HZ, "MP3")),
    ClipRow("truncated FLAC", "rejected: truncated-audio", "declared samples", wav(GOOD, kind="FLAC")[:4000]),
    ClipRow("WAV header with an impossible size, as written to a pipe", "accepted", content=_wav_with_declared_size(0xFFFFFFFF)),
    ClipRow("an hour long", "rejected: too-long", "at most 60 s", _an_hour),
    ClipRow("5 ms long", "rejected: too-short", "at least 0.1 s", wav(GOOD[:80])),
)  # fmt: skip

TEXT = (
    ClipRow("empty text", "rejected: empty-text", "''", wav(GOOD), ""),
    ClipRow("text of only white space and line separators", "rejected: empty-text", "", wav(GOOD), " \u2028\t "),
    ClipRow("NUL in the text", "accepted, text changed", content=wav(GOOD), text="a\0b"),
    ClipRow("pipe in the text", "accepted, text changed", content=wav(GOOD), text="a | b"),
    ClipRow("line end in the text", "accepted, text changed", content=wav(GOOD), text="a\nb"),
    ClipRow("right-to-left text", "accepted", content=wav(GOOD), text="سڵاو دنیا"),
    ClipRow("letters with combining accents", "accepted", content=wav(GOOD), text="e\u0301te\u0301"),
    ClipRow("text with characters outside the basic plane", "accepted", content=wav(GOOD), text="😀 a"),
    ClipRow("text of 100 kB", "rejected: text-too-long", "tokens", wav(GOOD), "word " * 20_000),
)

PATHS = (
    ClipRow("missing file", "rejected: missing-file", "is not in", lambda path: None),
    ClipRow("directory instead of a file", "rejected: missing-file", "is not in", Path.mkdir),
    ClipRow("path outside the folder with ../", "rejected: path-outside", "is outside the data set", lambda path: _outside(path) and None, name="../../elsewhere.wav"),
    ClipRow("absolute path", "rejected: path-outside", "is outside the data set", lambda path: None, name="/etc/passwd"),
    ClipRow("symbolic link to a file outside the folder", "rejected: path-outside", "is outside the data set", lambda path: path.symlink_to(_outside(path))),
    ClipRow("symbolic link to itself", "rejected: missing-file", "is not a valid file name", _link_to_itself),
    ClipRow("same file twice", "rejected: duplicate", "occurs earlier", lambda path: None, name="good.wav"),
    ClipRow("name that differs from another only in case", "accepted", content=lambda path: path.with_name("GOOD.wav").write_bytes(wav(GOOD)) and None, name="GOOD.wav"),
    ClipRow("name with spaces and accents", "accepted", content=lambda path: path.with_name("dû kilam.wav").write_bytes(wav(GOOD)) and None, name="dû kilam.wav"),
    ClipRow("name of 300 characters", "rejected: missing-file", "is not in . or clips", lambda path: None, name="x" * 300),
    ClipRow("NUL in the name", "rejected: missing-file", "is not in . or clips", lambda path: None, name="a\0b.wav"),
)  # fmt: skip

CLIPS = (*AUDIO, *TEXT, *PATHS)


# Commands


@dataclass(frozen=True)
class CallRow(Row):
    """A command that must fail with a one-line message, or succeed despite unusual input."""

    call: Callable[[Path], list[str]] = lambda root: []
    """Creates the inputs in an empty directory and returns the arguments of the command."""


def _lj(lines: list[str] | bytes, *flags: str) -> Callable[[Path], list[str]]:
    def call(root: Path) -> list[str]:
        folder = write_lj_speech(root / "source", [], {"wavs/a.wav": wav(GOOD), "wavs/b.wav": wav(GOOD)})
        content = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        (folder / "metadata.csv").write_bytes(content)
        return ["prepare_data", "--dataset", str(folder), "--output_dir", str(root / "out"), *flags]

    return call


def _release(change: Callable[[str], str]) -> Callable[[Path], list[str]]:
    def call(root: Path) -> list[str]:
        from tests.support.audio import good_utterances

        folder = write_release(root / "source", good_utterances(2))
        tsv = folder / "validated.tsv"
        tsv.write_text(change(tsv.read_text(encoding="utf-8")), encoding="utf-8")
        return ["prepare_data", "--dataset", str(folder), "--output_dir", str(root / "out")]

    return call


def _parquet(root: Path) -> list[str]:
    (root / "damaged.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    return ["prepare_data", "--dataset", str(root / "damaged.parquet"), "--output_dir", str(root / "out")]


METADATA = (
    CallRow("one column", "exit 2", "metadata.csv line 1: one column", _lj(["a", "b"])),
    CallRow("four columns that are not clear", "exit 2", "--text_column 2 or 3 or 4", _lj(["a|b|c|d"])),
    CallRow("semicolons", "accepted", "clips             2", _lj(["a;text", "b;text"])),
    CallRow("ragged line", "exit 2", "line 2: 3 columns where the table has 2", _lj(["a|text", "b|te|xt"])),
    CallRow("line without a name", "exit 2", "metadata.csv: no column of texts", _lj(["|text"])),
    CallRow("UTF-16", "exit 2", "line 1: not UTF-8", _lj("a|text\n".encode("utf-16"))),
    CallRow("Latin-1", "exit 2", "line 2: not UTF-8", _lj(b"a|text\nb|caf\xe9\n")),
    CallRow("empty file", "exit 2", "contains no clips", _lj([])),
    CallRow("only a header", "exit 2", "contains no clips", _lj(["file_name,text"])),
    CallRow("unclosed quote", "exit 2", "metadata.csv", _lj(["file_name,text", 'wavs/a.wav,"a word'])),
    CallRow("no text column", "exit 2", "--text_column", _lj(["file_name,words", "wavs/a.wav,a word"])),
    CallRow("nonexistent column", "exit 2", "no column nope (--text_column)", _lj(["file_name,text", "wavs/a.wav,a word"], "--text_column", "nope")),
    CallRow("byte order mark", "accepted", "clips             2", _lj(b"\xef\xbb\xbfa|text\nb|text\n")),
    CallRow("CRLF line ends", "accepted", "clips             2", _lj(b"a|text\r\nb|text\r\n")),
    CallRow("Common Voice without votes", "exit 2", "no column up_votes", _release(lambda tsv: tsv.replace("up_votes", "upvotes"))),
    CallRow("Common Voice with text as votes", "exit 2", "'many' is not a number of votes", _release(lambda tsv: tsv.replace("\t2\t0\t", "\tmany\t0\t"))),
    CallRow("damaged Parquet", "exit 2", "damaged.parquet", _parquet),
    CallRow("nonexistent data set", "exit 2", "no such file or folder", lambda root: ["prepare_data", "--dataset", str(root / "nowhere/at/all")]),
    CallRow("folder in no known format", "exit 2", "the folder is in no known format", lambda root: ["prepare_data", "--dataset", str(root)]),
)  # fmt: skip


def _prepared(root: Path, lines: list[str], clips: int = 4) -> Path:
    """Writes a prepared folder with ``clips`` recordings and ``lines`` as its metadata."""
    from vits_trainer.data.audio import to_pcm16, write_pcm16_wav

    (root / "training/wavs").mkdir(parents=True)
    for number in range(clips):
        write_pcm16_wav(root / f"training/wavs/{number}.wav", to_pcm16(GOOD), RATE_HZ)
    (root / "training/metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (root / "training/dataset.json").write_text(json.dumps({"sampling_rate": RATE_HZ}))
    return root / "training"


FOUR = ["0.wav|a word", "1.wav|a word", "2.wav|a word", "3.wav|a word"]


def _trained(change: Callable[[Path], object], lines: list[str] = FOUR, **settings: object) -> Callable[[Path], list[str]]:
    """train_vits on a prepared folder modified by ``change``."""

    def call(root: Path) -> list[str]:
        folder = _prepared(root, lines)
        change(folder)
        return ["train_vits", *train_flags(root, **settings)]

    return call


def _nothing(folder: Path) -> None:
    pass


PREPARED = (
    CallRow("path outside the folder with ../ in metadata.csv", "exit 2", "line 5: '../x.wav' is outside", _trained(_nothing, [*FOUR, "../x.wav|a word"])),
    CallRow("absolute path in metadata.csv", "exit 2", "line 5: '/etc/passwd' is outside", _trained(_nothing, [*FOUR, "/etc/passwd|a word"])),
    CallRow("clip listed twice", "exit 2", "line 5: 0.wav is already in line 1", _trained(_nothing, [*FOUR, "0.wav|a word"])),
    CallRow("ragged line in metadata.csv", "exit 2", "line 5: expected filename|text", _trained(_nothing, [*FOUR, "a|b|c|d"])),
    CallRow("missing metadata.csv", "exit 2", "Create it with: vits-trainer prepare_data", _trained(lambda folder: (folder / "metadata.csv").unlink())),
    CallRow("metadata.csv in UTF-16", "exit 2", "cannot be read", _trained(lambda folder: (folder / "metadata.csv").write_text("0.wav|a", encoding="utf-16"))),
    CallRow("damaged dataset.json", "exit 2", "dataset.json: cannot be read", _trained(lambda folder: (folder / "dataset.json").write_text("{"))),
    CallRow("clips with another sampling rate than the voice", "exit 2", "--target_sr 16000", _trained(lambda folder: (folder / "dataset.json").write_text('{"sampling_rate": 22050}'))),
    CallRow("too few clips for a validation split", "exit 2", "too few to hold out", _trained(_nothing, FOUR[:1])),
    CallRow("selected speaker without clips", "exit 2", "has no clip of zin. Its speakers: ava.", _trained(_nothing, [f"{line}|ava" for line in FOUR], only_speakers="ava,zin")),
)  # fmt: skip


# Streamed shards


def _streamed(change: Callable[[Path], object], **settings: object) -> Callable[[Path], list[str]]:
    """train_vits on shards modified by ``change``."""

    def call(root: Path) -> list[str]:
        folder = write_shards(root / "set", [6, 5], group_clips=3, base_s=0.8)
        change(folder)
        changes = {"validation_fraction": 0, **settings}
        return ["train_vits", *train_flags(root, **{"data_dir": folder, "streaming": "true", **changes})]

    return call


def _shard(number: int) -> str:
    return f"shards/shard_{number:05d}.parquet"


STREAMED = (
    CallRow("folder without shards", "exit 2", "contains no shards.json. Create shards with", _streamed(lambda folder: (folder / "shards.json").unlink())),
    CallRow("truncated manifest", "exit 2", "shards.json: cannot be read", _streamed(lambda folder: os.truncate(folder / "shards.json", 200))),
    CallRow("path outside the folder in the manifest", "exit 2", "is not a valid name", _streamed(lambda folder: (folder / "shards.json").write_text((folder / "shards.json").read_text().replace("shard_00001", "../shard_00001")))),
    CallRow("missing shard", "exit 1", "shard_00001.parquet: cannot be read", _streamed(lambda folder: (folder / _shard(1)).unlink())),
    CallRow("truncated shard", "exit 1", "shard_00001.parquet: cannot be read", _streamed(lambda folder: os.truncate(folder / _shard(1), 9000))),
    CallRow("shard with a flipped bit", "exit 1", "shard_00000.parquet: cannot be read", _streamed(lambda folder: damage(folder / _shard(0)))),
    CallRow("pattern without matches", "exit 2", "matches no file", _streamed(_nothing, data_dir="nowhere/*.parquet")),
    CallRow("URL with an unknown protocol", "exit 2", "Protocol not known", _streamed(_nothing, data_dir="gopher://speech/shards")),
    CallRow("shards with another sampling rate than the voice", "exit 2", "--target_sr 16000", _streamed(lambda folder: (folder / "shards.json").write_text((folder / "shards.json").read_text().replace("16000", "22050")))),
    CallRow("--streaming with --batch_seconds", "exit 2", "--streaming and --batch_seconds exclude each other", _streamed(_nothing, batch_seconds=60)),
)  # fmt: skip


# Models


def write_voice(root: Path) -> Path:
    from vits_trainer.config.architecture import Architecture, DiscriminatorShape
    from vits_trainer.models import initialization, pretrained
    from vits_trainer.models.discriminator import Discriminator
    from vits_trainer.text.tokenizer import build_tokenizer

    torch.manual_seed(0)
    sizes = {name: _tuples(value) for name, value in MINIATURE["architecture"].items()}
    tokenizer = build_tokenizer(["a word"])
    discriminator = Discriminator(DiscriminatorShape((2,), 16))
    pretrained.export(initialization.new_model(Architecture(**sizes), tokenizer, []), tokenizer, discriminator, root / "voice")
    return root / "voice"


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _tuned(change: Callable[[Path], object], **settings: object) -> Callable[[Path], list[str]]:
    """train_vits from a voice modified by ``change``."""

    def call(root: Path) -> list[str]:
        _prepared(root, FOUR)
        change(write_voice(root))
        return ["train_vits", *train_flags(root, config=write_tuning_config(root), **settings)]

    return call


def write_tuning_config(root: Path) -> Path:
    """Writes the miniature recipe for finetuning the voice in ``root``."""
    recipe = {key: value for key, value in MINIATURE.items() if key not in ("architecture", "discriminator")}
    (root / "tuned.yaml").write_text(yaml.safe_dump({**recipe, "model_name": str(root / "voice")}))
    return root / "tuned.yaml"


def _pickle(voice: Path) -> None:
    (voice / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, voice / "pytorch_model.bin")


class _CodeInPickle:
    """Unpickling it calls a function."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch PWNED",)


def _converted(content: object) -> Callable[[Path], list[str]]:
    """convert on a checkpoint with ``content``."""

    def call(root: Path) -> list[str]:
        torch.save(content, root / "G_1.pth")
        return ["convert", "--input", str(root / "G_1.pth"), "--output", str(root / "converted")]

    return call


def _bert(voice: Path) -> None:
    shutil.rmtree(voice)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    BertModel(config).save_pretrained(voice)


def _put_inf(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors[max(tensors)].view(-1)[0] = torch.inf
    save_file(tensors, file, metadata=metadata)


def _add_custom_code(voice: Path) -> None:
    (voice / "own.py").write_text("open('PWNED', 'w')\n")
    config = json.loads((voice / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (voice / "config.json").write_text(json.dumps(config))


def _damage_header(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[8:40] = bytes(32)  # inside the header
    file.write_bytes(content)


MODELS = (
    CallRow("nonexistent voice", "exit 2", "cannot load a voice", _tuned(shutil.rmtree)),
    CallRow("safetensors with a damaged header", "exit 2", "model.safetensors: cannot be read", _tuned(lambda voice: _damage_header(voice / "model.safetensors"))),
    CallRow("truncated safetensors", "exit 2", "model.safetensors: cannot be read", _tuned(lambda voice: os.truncate(voice / "model.safetensors", 5000))),
    CallRow("another kind of model", "exit 2", "not a VITS voice", _tuned(_bert)),
    CallRow("weights as a pickle", "exit 2", "cannot load a voice", _tuned(_pickle)),
    CallRow("damaged config.json", "exit 2", "config.json: cannot be read", _tuned(lambda voice: (voice / "config.json").write_text("{"))),
    CallRow("weights that do not match config.json", "exit 2", "do not match the configuration", _tuned(lambda voice: (voice / "config.json").write_text((voice / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 32').replace('"flow_size": 16', '"flow_size": 32')))),
    CallRow("Inf in the weights", "exit 2", "NaN or infinity in the weights", _tuned(lambda voice: _put_inf(voice / "model.safetensors"))),
    CallRow("code with the weights that config.json refers to", "exit 2", "not a VITS voice", _tuned(_add_custom_code)),
    CallRow("no vocabulary", "exit 2", "tokenizer", _tuned(lambda voice: (voice / "vocab.json").unlink())),
    CallRow("new speakers without names", "exit 2", "the data has clips without a speaker name", _tuned(_nothing, extend_speakers="true")),
    CallRow("nonexistent discriminators", "exit 2", "nowhere: cannot load a voice (no such folder", _tuned(lambda voice: (voice / "discriminator.safetensors").unlink(), discriminator_from="nowhere")),
    CallRow("checkpoint that would execute code", "exit 2", ".system, which no checkpoint needs", _converted({"model": _CodeInPickle()})),
    CallRow("checkpoint of another model", "exit 2", "are not those of a voice in original or coqui or piper layout", _converted({"model": {"weight": torch.zeros(2)}})),
    CallRow("damaged discriminators", "exit 2", "discriminator.safetensors: cannot be read", _tuned(lambda voice: (voice / "discriminator.safetensors").write_bytes(b"xx"))),
    CallRow("Inf in the discriminators", "exit 2", "NaN or infinity in the weights", _tuned(lambda voice: _put_inf(voice / "discriminator.safetensors"))),
)  # fmt: skip


# Configuration


def _configured(text: str, *flags: str) -> Callable[[Path], list[str]]:
    def call(root: Path) -> list[str]:
        (root / "own.yaml").write_text(text)
        return ["train_vits", "--config", str(root / "own.yaml"), *flags]

    return call


CONFIGURATION = (
    CallRow("unknown key", "exit 2", "own.yaml: unknown key learning_rat: did you mean learning_rate?", _configured("learning_rat: 1e-4")),
    CallRow("unknown flag", "exit 2", "unknown flag --batch_sise: did you mean --batch_size 4?", lambda root: ["train_vits", "--batch_sise", "4"]),
    CallRow("unknown command", "exit 2", "unknown command train: did you mean train_vits?", lambda root: ["train"]),
    CallRow("text instead of a number", "exit 2", "--batch_size", _configured("batch_size: many")),
    CallRow("number out of range", "exit 2", "--validation_fraction 2.0: must be at least 0 and below 1", _configured("validation_fraction: 2")),
    CallRow("NaN as a value", "exit 2", "--learning_rate nan", _configured("learning_rate: .nan")),
    CallRow("phonemes for a voice trained on characters", "exit 2", "--phonemes requires training from scratch", _configured("phonemes: true")),
    CallRow("nonexistent module to freeze", "exit 2", "vocoder is not one of text_encoder", _configured("freeze: vocoder")),
    CallRow("upsampling to frames of 32 ms", "exit 2", "512 samples or 32.0 ms, but must be 8 to 20 ms", _configured("model_name: null\narchitecture:\n  upsample_rates: [8, 8, 4, 2]\n  upsample_kernel_sizes: [16, 16, 4, 4]")),
    CallRow("contradictory settings", "exit 2", "exclude each other", _configured("target_hours: 1\nmax_updates: 5")),
    CallRow("YAML that would execute code", "exit 2", "own.yaml", _configured("run_name: !!python/object/apply:os.system ['touch PWNED']")),
    CallRow("invalid YAML", "exit 2", "own.yaml", _configured("a: b: c: [")),
    CallRow("YAML that is not a mapping", "exit 2", "own.yaml", _configured("- 1\n- 2")),
    CallRow("nonexistent recipe", "exit 2", "Recipes: ", lambda root: ["train_vits", "--config", "gigantic"]),
)  # fmt: skip


# Evaluation, reports and corrections


def _correcting(*argv: str) -> Callable[[Path], list[str]]:
    """train_feedback with a valid correction of a voice."""

    def call(root: Path) -> list[str]:
        write_voice(root)
        (root / "feedback").mkdir()
        (root / "feedback/one.wav").write_bytes(wav(GOOD))
        (root / "feedback/one.txt").write_text("a word")
        flags = ["--feedback_dir", "feedback", "--model_dir", "voice", "--output_dir", "new"]
        flags = [flag if flag.startswith("--") else str(root / flag) for flag in flags]
        return ["train_feedback", *flags, *(word.format(root=root) for word in argv)]

    return call


def _evaluated(**changes: str) -> Callable[[Path], list[str]]:
    def call(root: Path) -> list[str]:
        _prepared(root, ["0.wav|a word", "1.wav|a word"], clips=2)
        settings = {"models": "{root}/training/wavs", "data_dir": "{root}/training", "clips": "all", "scores": "duration"}
        settings |= {"output_dir": "{root}/evaluation", **changes}
        return ["evaluate", *(word.format(root=root) for key, value in settings.items() for word in (f"--{key}", value))]

    return call


def _damaged_list_of_corrections(root: Path) -> list[str]:
    argv = _correcting()(root)
    (root / "voice/learnt.json").write_text("{")
    return argv


EVALUATION = (
    CallRow("feedback without corrections", "exit 2", "holds no correction", lambda root: ["train_feedback", "--feedback_dir", str(root)]),
    CallRow("served voice as output", "exit 2", "Choose another folder for the new voice", _correcting("--output_dir", "{root}/voice")),
    CallRow("rollback without an earlier voice", "exit 2", "contains no earlier version", _correcting("--rollback", "true")),
    CallRow("damaged list of learnt corrections", "exit 2", "Delete it to train on all corrections again", _damaged_list_of_corrections),
    CallRow("nonexistent training clips", "exit 2", "does not exist", _correcting("--data_dir", "{root}/nowhere")),
    CallRow("unknown metric in --scores", "exit 2", "mdc is not one of mcd, f0", _evaluated(scores="mdc")),
    CallRow("recordings with missing clips", "exit 2", "lacks 2 of 2 clips", _evaluated(models="{root}/training")),
    CallRow("nonexistent speech recognizer", "exit 2", "could not be loaded", _evaluated(scores="cer", asr="{root}/nowhere")),
    CallRow("unknown --best_metric", "exit 2", "--best_metric quality: must be one of auto, mel", _configured("best_metric: quality")),
    CallRow("unknown tracker", "exit 2", "mlfow is not one of aim, clearml, comet_ml", _configured("report_to: mlfow")),
    CallRow("report of a folder that is not a run", "exit 2", "is not a run", lambda root: ["report", str(root)]),
    CallRow("feedback page on the network without a password", "exit 2", "--password_file", lambda root: ["feedback_app", "--host", "192.168.1.2"]),
)  # fmt: skip


# Output paths


def _into(output: str, command: str = "train_vits") -> Callable[[Path], list[str]]:
    """Writes a voice to ``output``, in a directory with data, a checkpoint, notes and links."""

    def call(root: Path) -> list[str]:
        training = _prepared(root, FOUR)
        checkpoint = training / "checkpoints/checkpoint-5"
        (checkpoint / "voice").mkdir(parents=True)
        for name in ("state.json", "manifest.json", "voice/config.json"):
            (checkpoint / name).write_text("{}")
        (training / "thesis").write_text("precious")
        (root / "notes").mkdir()
        (root / "notes/ideas.txt").write_text("precious")
        (root / "circle").symlink_to("circle")
        (root / "link").symlink_to("training")
        if command == "export":
            return ["export", str(checkpoint), "--output_dir", str(root / output)]
        return ["train_vits", *train_flags(root, output_dir=root / output)]

    return call


def _other_files_in_work_folder(root: Path) -> list[str]:
    argv = _correcting()(root)
    (root / "new_work").mkdir()
    (root / "new_work/verdict.json").write_text("precious")
    return argv


def _names_of_prepared_clips(root: Path) -> list[str]:
    argv = _lj(["a|text", "b|text"])(root)
    (root / "out/wavs").mkdir(parents=True)
    (root / "out/wavs/audio_000000.wav").write_bytes(b"precious")
    return argv


def _other_files_in_run_folder(folder: Path) -> None:
    (folder / "runs/run").mkdir(parents=True)
    (folder / "runs/run/config.yaml").write_text("precious")


OUTPUT_PATHS = (
    CallRow("output to the data folder", "exit 2", "training is or contains --data_dir", _into("training")),
    CallRow("output to a parent of the data folder", "exit 2", "is or contains --data_dir", _into(".")),
    CallRow("output inside wavs/", "exit 2", "from which this program deletes files", _into("training/wavs/voice")),
    CallRow("output inside a checkpoint", "exit 2", "from which this program deletes files", _into("training/checkpoints/checkpoint-5/new")),
    CallRow("output to an existing file", "exit 2", "is a file", _into("training/thesis")),
    CallRow("output to a link to the data folder", "exit 2", "link is or contains --data_dir", _into("link")),
    CallRow("output to a link to itself", "exit 2", "is a circular symbolic link", _into("circle")),
    CallRow("export to the checkpoint itself", "exit 2", "is or contains the checkpoint", _into("training/checkpoints/checkpoint-5", "export")),
    CallRow("export to the data folder", "exit 2", "is or contains the checkpoint", _into("training", "export")),
    CallRow("export to a folder of other files", "exit 2", "and is not a voice", _into("notes", "export")),
    CallRow("output to a parent of the feedback folder", "exit 2", "is or contains --feedback_dir", _correcting("--output_dir", "{root}")),
    CallRow("work folder with other files", "exit 2", "was not made by it", _other_files_in_work_folder),
    CallRow("run folder with other files", "exit 2", "contains config.yaml, but is not a run folder", _trained(_other_files_in_run_folder)),
    CallRow("other recordings with names of prepared clips in the output folder", "exit 2", "wavs was not written by prepare_data", _names_of_prepared_clips),
)  # fmt: skip


# The machine, in a separate process


@dataclass(frozen=True)
class MachineRow(Row):
    """A process under some limit of the machine."""

    run: Callable[[Path], "subprocess.CompletedProcess[str] | str"] = lambda root: ""
    """Returns the completed process, or the reason to skip the row on this machine."""


def _process(argv: list[str], prefix: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    program = [*prefix, sys.executable] if prefix else [python()]  # a prefix changes the process
    command = [*program, "-m", "vits_trainer", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment(**variables))


def _read_only(root: Path) -> subprocess.CompletedProcess[str] | str:
    argv = _lj(["a|text", "b|text"])(root)
    (root / "out").mkdir(mode=0o555)
    if os.getuid():
        return _process(argv)
    if shutil.which("setpriv") is None:
        return "needs setpriv, as root may write everywhere"
    return _process(argv, ("setpriv", "--bounding-set=-dac_override,-dac_read_search"))


def _full_disk(root: Path) -> subprocess.CompletedProcess[str] | str:
    """Trains on a file system with space for one checkpoint of the miniature voice, not for two."""
    from vits_trainer.training.checkpoint_record import list_newest_first, verify_checkpoint

    small = root / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        return "needs root, to mount a small file system"
    try:
        flags = _trained(_nothing, checkpoint_dir=small / "checkpoints", save_every_updates=1, keep_checkpoints=1)(root)
        process = _process(flags)
        kept = list_newest_first(small / "checkpoints")
        assert kept, process.stderr
        verify_checkpoint(kept[0])  # the previous one is intact
        return process
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _port_in_use(root: Path) -> subprocess.CompletedProcess[str]:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        options = ["--main_process_port", str(server.getsockname()[1]), "-m", "vits_trainer", *_trained(_nothing)(root)]
        command = command_of("cpu_2proc", *options)
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, cwd=ROOT, env=environment())


MACHINE = (
    MachineRow("read-only output folder, as a regular user", "exit 2", "cannot be written (Permission denied)", _read_only),
    MachineRow("disk full while saving a checkpoint", "exit 1", "could not be written", _full_disk),
    MachineRow("--fp16 without a GPU", "exit 2", "fp16 needs a GPU", lambda root: _process([*_trained(_nothing)(root), "--fp16"], CUDA_VISIBLE_DEVICES="")),
    MachineRow("launcher's port in use: another one is chosen", "accepted", "already in use", _port_in_use),
    MachineRow("launcher that announces two processes and starts one", "exit 2", "cannot connect", lambda root: _process(_trained(_nothing)(root), WORLD_SIZE="2")),
    MachineRow("launcher with another precision", "exit 2", "but the launcher sets fp16", lambda root: _process([*_trained(_nothing)(root), "--precision", "bf16"], ACCELERATE_MIXED_PRECISION="fp16")),
    MachineRow("existing checkpoints of another run", "exit 2", "already contains checkpoint-3", lambda root: ((root / "checkpoints/checkpoint-3").mkdir(parents=True), _process(_trained(_nothing)(root)))[1]),
)  # fmt: skip


# Clips damaged between preparation and training

TRAINING = (
    Row("missing clip", "rejected: missing-file"),
    Row("truncated clip", "rejected: truncated-audio"),
    Row("clip that is not audio", "rejected: unreadable-audio"),
    Row("clip with another sampling rate", "rejected: wrong-rate"),
    Row("clip with two channels", "rejected: unsupported-audio"),
    Row("clip that links to a file outside the folder", "rejected: path-outside"),
    Row("text of unknown characters only", "rejected: no-known-characters"),
    Row("text with more tokens than the clip has frames", "rejected: text-too-long"),
    Row("clip shorter than three frames", "rejected: too-short"),
)


def damaged_training_set(root: Path) -> list[str]:
    """train_vits on a prepared folder with one clip per row of TRAINING, 1.wav to 9.wav, among valid ones."""
    from vits_trainer.data.audio import to_pcm16, write_pcm16_wav

    lines = [f"{number}.wav|a word" for number in range(20)]
    lines[7], lines[8] = "7.wav|€€€", "8.wav|" + "a word " * 40
    wavs = _prepared(root, lines, clips=20) / "wavs"
    (wavs / "1.wav").unlink()
    os.truncate(wavs / "2.wav", 5000)
    (wavs / "3.wav").write_bytes(b"RIFF, but not for long")
    write_pcm16_wav(wavs / "4.wav", to_pcm16(GOOD), 8000)
    (wavs / "5.wav").write_bytes(wav(np.stack([GOOD, GOOD], axis=1)))
    (root / "secret.wav").write_bytes((wavs / "6.wav").read_bytes())
    (wavs / "6.wav").unlink()
    (wavs / "6.wav").symlink_to(root / "secret.wav")
    write_pcm16_wav(wavs / "9.wav", to_pcm16(GOOD[:500]), RATE_HZ)
    write_voice(root)
    settings = {"max_updates": 0, "epochs": 1, "max_rejected_fraction": 1, "validation_fraction": 0, "config": write_tuning_config(root)}
    return ["train_vits", *train_flags(root, **settings)]


PARTS: dict[str, tuple[Row, ...]] = {
    "Preparation: audio": AUDIO,
    "Preparation: texts": TEXT,
    "Preparation: paths": PATHS,
    "Preparation: metadata": METADATA,
    "Training: prepared folder": PREPARED,
    "Training: clips damaged after preparation": TRAINING,
    "Training: streamed shards": STREAMED,
    "Models": MODELS,
    "Configuration": CONFIGURATION,
    "Evaluation, reports and corrections": EVALUATION,
    "Output paths": OUTPUT_PATHS,
    "Machine and launcher": MACHINE,
}
