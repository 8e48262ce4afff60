"""What may be wrong with what the trainer is given, a row each: how it is made, and what must come of it.

The rows of docs/reliability.md, in its order. ``python -m tests.reliability`` prints them with what really came of each.
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
from tests.support.limits import HANG_S
from tests.support.shards import damage, write_shards
from tests.support.voices import MINIATURE, train_flags

RATE_HZ = 16000
GOOD = voice(0.8, RATE_HZ)


@dataclass(frozen=True)
class Row:
    """One kind of bad input."""

    what: str
    outcome: str
    """``accepted``, ``accepted, text changed``, ``rejected: REASON``, ``exit 2`` or ``exit 1``."""
    said: str = ""
    """Part of the message."""


# Clips and texts of one data set that is prepared: file name, text, and how the file gets there


@dataclass(frozen=True)
class ClipRow(Row):
    """A clip among others in an audio folder."""

    content: bytes | Callable[[Path], None] = b""
    """Of its file; or what makes it, given its path."""
    text: str = "a word"
    name: str | None = None
    """In the metadata, where it is not the row's number."""


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    return encode(samples, rate_hz, kind, subtype)


def _announcing(size_bytes: int) -> bytes:
    """A WAV file that announces so many bytes of audio."""
    content = bytearray(wav(GOOD))
    struct.pack_into("<I", content, 40, size_bytes)
    return bytes(content)


def _an_hour(path: Path) -> None:
    """An hour at 8 kHz and 8 bits, sparse on the disk."""
    samples = 3600 * 8000
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + samples, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", samples)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + samples)


def _outside(path: Path) -> Path:
    other = path.parents[2] / "elsewhere.wav"
    other.write_bytes(wav(GOOD))
    return other


def _circle(path: Path) -> None:
    path.symlink_to(path)


NAN, INF = GOOD.copy(), GOOD.copy()
NAN[100], INF[100] = np.nan, np.inf
SEVERAL = np.stack([GOOD] * 9, axis=1)
LOUD = np.sign(GOOD).astype(np.float32)

AUDIO = (
    ClipRow("WAV that ends too early, which libsndfile reads happily", "rejected: truncated-audio", "bytes of audio", wav(GOOD)[:9000]),
    ClipRow("WAV with zero frames", "rejected: empty-audio", "no samples", wav(GOOD[:0])),
    ClipRow("file of 0 bytes", "rejected: empty-audio", "0 bytes", b""),
    ClipRow("NaN among the samples", "rejected: non-finite-audio", "1 samples", wav(NAN, subtype="FLOAT")),
    ClipRow("infinity among the samples", "rejected: non-finite-audio", "1 samples", wav(INF, subtype="FLOAT")),
    ClipRow("clipped all along", "accepted", content=wav(LOUD)),
    ClipRow("float samples far beyond full scale", "accepted", content=wav(GOOD * 1e6, subtype="FLOAT")),
    ClipRow("constant offset (DC)", "accepted", content=wav(GOOD / 2 + 0.4)),
    ClipRow("digital silence", "accepted", content=wav(GOOD * 0)),
    ClipRow("8 bits", "accepted", content=wav(GOOD, subtype="PCM_U8")),
    ClipRow("24 bits", "accepted", content=wav(GOOD, subtype="PCM_24")),
    ClipRow("32 bits", "accepted", content=wav(GOOD, subtype="PCM_32")),
    ClipRow("64-bit floats", "accepted", content=wav(GOOD, subtype="DOUBLE")),
    ClipRow("8 channels", "accepted", content=wav(SEVERAL[:, :8])),
    ClipRow("9 channels", "rejected: unsupported-audio", "9 channel(s)", wav(SEVERAL)),
    ClipRow("192 kHz", "accepted", content=wav(voice(0.8, 192_000), 192_000)),
    ClipRow("384 kHz", "rejected: unsupported-audio", "384000 Hz", wav(voice(0.3, 384_000), 384_000)),
    ClipRow("text called .wav", "rejected: unreadable-audio", "", b"these are words, not sounds\n" * 99),
    ClipRow("zeros called .wav", "rejected: unreadable-audio", "", bytes(5000)),
    ClipRow("MP3 called .wav", "accepted", content=encode(GOOD, RATE_HZ, "MP3")),
    ClipRow("FLAC that ends too early", "rejected: unreadable-audio", "", wav(GOOD, kind="FLAC")[:4000]),
    ClipRow("WAV that announces more than there can be, as a pipe writes it", "accepted", content=_announcing(0xFFFFFFFF)),
    ClipRow("an hour long", "rejected: too-long", "at most 60 s", _an_hour),
    ClipRow("5 ms long", "rejected: too-short", "at least 0.1 s", wav(GOOD[:80])),
)  # fmt: skip

TEXT = (
    ClipRow("empty text", "rejected: empty-text", "''", wav(GOOD), ""),
    ClipRow("text of white space and line separators", "rejected: empty-text", "", wav(GOOD), " \u2028\t "),
    ClipRow("NUL in the text", "accepted, text changed", content=wav(GOOD), text="a\0b"),
    ClipRow("pipe in the text", "accepted, text changed", content=wav(GOOD), text="a | b"),
    ClipRow("line end in the text", "accepted, text changed", content=wav(GOOD), text="a\nb"),
    ClipRow("right-to-left text", "accepted", content=wav(GOOD), text="سڵاو دنیا"),
    ClipRow("letters with combining accents", "accepted", content=wav(GOOD), text="e\u0301te\u0301"),
    ClipRow("text of signs outside the basic plane", "accepted", content=wav(GOOD), text="😀 a"),
    ClipRow("text of 100 kB", "rejected: text-too-long", "tokens", wav(GOOD), "word " * 20_000),
)

PATHS = (
    ClipRow("no such file", "rejected: missing-file", "is not in", lambda path: None),
    ClipRow("folder in the file's place", "rejected: missing-file", "is not in", Path.mkdir),
    ClipRow("path with ../ out of the folder", "rejected: path-outside", "is outside the data set", lambda path: _outside(path) and None, name="../../elsewhere.wav"),
    ClipRow("absolute path", "rejected: path-outside", "is outside the data set", lambda path: None, name="/etc/passwd"),
    ClipRow("symbolic link out of the folder", "rejected: path-outside", "is outside the data set", lambda path: path.symlink_to(_outside(path))),
    ClipRow("symbolic link in a circle", "rejected: missing-file", "is not a valid file name", _circle),
    ClipRow("the same file twice", "rejected: duplicate", "occurs earlier", lambda path: None, name="good.wav"),
    ClipRow("name that differs from another by case alone", "accepted", content=lambda path: path.with_name("GOOD.wav").write_bytes(wav(GOOD)) and None, name="GOOD.wav"),
    ClipRow("name with spaces and accents", "accepted", content=lambda path: path.with_name("dû kilam.wav").write_bytes(wav(GOOD)) and None, name="dû kilam.wav"),
    ClipRow("name of 300 characters", "rejected: missing-file", "is not a valid file name", lambda path: None, name="x" * 300),
    ClipRow("NUL in the name", "rejected: missing-file", "is not a valid file name", lambda path: None, name="a\0b.wav"),
)  # fmt: skip

CLIPS = (*AUDIO, *TEXT, *PATHS)


# Calls of the command line


@dataclass(frozen=True)
class CallRow(Row):
    """A command that must be refused, or that fails, with one clear line."""

    call: Callable[[Path], list[str]] = lambda place: []
    """Makes what it needs in an empty folder; gives the words of the command line."""


def _lj(lines: list[str] | bytes, *flags: str) -> Callable[[Path], list[str]]:
    def call(place: Path) -> list[str]:
        folder = write_lj_speech(place / "source", [], {"wavs/a.wav": wav(GOOD), "wavs/b.wav": wav(GOOD)})
        content = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        (folder / "metadata.csv").write_bytes(content)
        return ["prepare_data", "--dataset", str(folder), "--output_dir", str(place / "out"), *flags]

    return call


def _release(change: Callable[[str], str]) -> Callable[[Path], list[str]]:
    def call(place: Path) -> list[str]:
        from tests.support.audio import good_utterances

        folder = write_release(place / "source", good_utterances(2))
        tsv = folder / "validated.tsv"
        tsv.write_text(change(tsv.read_text(encoding="utf-8")), encoding="utf-8")
        return ["prepare_data", "--dataset", str(folder), "--output_dir", str(place / "out")]

    return call


def _parquet(place: Path) -> list[str]:
    (place / "damaged.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    return ["prepare_data", "--dataset", str(place / "damaged.parquet"), "--output_dir", str(place / "out")]


METADATA = (
    CallRow("one column", "exit 2", "metadata.csv line 1: 1 column(s) separated by '|'", _lj(["a", "b"])),
    CallRow("four columns", "exit 2", "line 1: 4 column(s)", _lj(["a|b|c|d"])),
    CallRow("semicolons", "exit 2", "line 1: 1 column(s) separated by '|'", _lj(["a;text", "b;text"])),
    CallRow("ragged line", "exit 2", "line 2: expected 2 columns like the first line", _lj(["a|text", "b|te|xt"])),
    CallRow("line without a name", "exit 2", "line 1: expected 2 columns", _lj(["|text"])),
    CallRow("UTF-16", "exit 2", "line 1: not UTF-8", _lj("a|text\n".encode("utf-16"))),
    CallRow("Latin-1", "exit 2", "line 2: not UTF-8", _lj(b"a|text\nb|caf\xe9\n")),
    CallRow("empty file", "exit 2", "contains no clips", _lj([])),
    CallRow("header alone", "exit 2", "contains no clips", _lj(["file_name,text"])),
    CallRow("quote that never ends", "exit 2", "metadata.csv", _lj(["file_name,text", 'wavs/a.wav,"a word'])),
    CallRow("no column of texts", "exit 2", "--text_column", _lj(["file_name,words", "wavs/a.wav,a word"])),
    CallRow("column that is not there", "exit 2", "no column nope (--text_column)", _lj(["file_name,text", "wavs/a.wav,a word"], "--text_column", "nope")),
    CallRow("byte order mark", "accepted", "clips             2", _lj(b"\xef\xbb\xbfa|text\nb|text\n")),
    CallRow("CRLF at the line ends", "accepted", "clips             2", _lj(b"a|text\r\nb|text\r\n")),
    CallRow("Common Voice without its votes", "exit 2", "no column up_votes", _release(lambda tsv: tsv.replace("up_votes", "upvotes"))),
    CallRow("Common Voice with words as votes", "exit 2", "integers as votes", _release(lambda tsv: tsv.replace("\t2\t0\t", "\tmany\t0\t"))),
    CallRow("damaged Parquet", "exit 2", "damaged.parquet", _parquet),
    CallRow("data set that is not there", "exit 2", "no such file or folder", lambda place: ["prepare_data", "--dataset", str(place / "nowhere/at/all")]),
    CallRow("folder with nothing known in it", "exit 2", "the folder is in no known format", lambda place: ["prepare_data", "--dataset", str(place)]),
)  # fmt: skip


def _prepared(place: Path, lines: list[str], clips: int = 4) -> Path:
    """A prepared folder, written by hand."""
    from vits_trainer.data.audio import to_pcm16, write_pcm16_wav

    (place / "training/wavs").mkdir(parents=True)
    for number in range(clips):
        write_pcm16_wav(place / f"training/wavs/{number}.wav", to_pcm16(GOOD), RATE_HZ)
    (place / "training/metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (place / "training/dataset.json").write_text(json.dumps({"sampling_rate": RATE_HZ}))
    return place / "training"


FOUR = ["0.wav|a word", "1.wav|a word", "2.wav|a word", "3.wav|a word"]


def _trained(change: Callable[[Path], object], lines: list[str] = FOUR, **settings: object) -> Callable[[Path], list[str]]:
    """train_vits on a folder to which ``change`` has been done."""

    def call(place: Path) -> list[str]:
        folder = _prepared(place, lines)
        change(folder)
        return ["train_vits", *train_flags(place, **settings)]

    return call


def _nothing(folder: Path) -> None:
    pass


PREPARED = (
    CallRow("line that leads out with ../", "exit 2", "line 5: '../x.wav' is outside", _trained(_nothing, [*FOUR, "../x.wav|a word"])),
    CallRow("line with an absolute path", "exit 2", "line 5: '/etc/passwd' is outside", _trained(_nothing, [*FOUR, "/etc/passwd|a word"])),
    CallRow("clip that stands there twice", "exit 2", "line 5: 0.wav is already in line 1", _trained(_nothing, [*FOUR, "0.wav|a word"])),
    CallRow("ragged line in metadata.csv", "exit 2", "line 5: expected filename|text", _trained(_nothing, [*FOUR, "a|b|c|d"])),
    CallRow("metadata.csv that is not there", "exit 2", "Make it with: vits-trainer prepare_data", _trained(lambda folder: (folder / "metadata.csv").unlink())),
    CallRow("metadata.csv in UTF-16", "exit 2", "cannot be read", _trained(lambda folder: (folder / "metadata.csv").write_text("0.wav|a", encoding="utf-16"))),
    CallRow("damaged dataset.json", "exit 2", "dataset.json cannot be read", _trained(lambda folder: (folder / "dataset.json").write_text("{"))),
    CallRow("clips at another rate than the voice", "exit 2", "--target_sr 16000", _trained(lambda folder: (folder / "dataset.json").write_text('{"sampling_rate": 22050}'))),
    CallRow("too few clips to hold one out", "exit 2", "too few to hold out", _trained(_nothing, FOUR[:1])),
    CallRow("chosen speaker without a clip", "exit 2", "has no clip of zin. Its speakers: ava.", _trained(_nothing, [f"{line}|ava" for line in FOUR], only_speakers="ava,zin")),
)  # fmt: skip


# Shards that are streamed


def _streamed(change: Callable[[Path], object], **settings: object) -> Callable[[Path], list[str]]:
    """train_vits on shards to which ``change`` has been done."""

    def call(place: Path) -> list[str]:
        folder = write_shards(place / "set", [6, 5], group_clips=3, base_s=0.8)
        change(folder)
        changes = {"validation_fraction": 0, **settings}
        return ["train_vits", *train_flags(place, **{"data_dir": folder, "streaming": "true", **changes})]

    return call


def _shard(number: int) -> str:
    return f"shards/shard_{number:05d}.parquet"


STREAMED = (
    CallRow("folder without shards", "exit 2", "contains no shards.json. Create shards with", _streamed(lambda folder: (folder / "shards.json").unlink())),
    CallRow("manifest that is cut short", "exit 2", "is not a shard manifest", _streamed(lambda folder: os.truncate(folder / "shards.json", 200))),
    CallRow("manifest that leads out of the folder", "exit 2", "is not a valid name", _streamed(lambda folder: (folder / "shards.json").write_text((folder / "shards.json").read_text().replace("shard_00001", "../shard_00001")))),
    CallRow("shard that is gone", "exit 1", "shard_00001.parquet: cannot be read", _streamed(lambda folder: (folder / _shard(1)).unlink())),
    CallRow("shard that ends too early", "exit 1", "shard_00001.parquet: cannot be read", _streamed(lambda folder: os.truncate(folder / _shard(1), 9000))),
    CallRow("shard with a flipped bit", "exit 1", "shard_00000.parquet: cannot be read", _streamed(lambda folder: damage(folder / _shard(0)))),
    CallRow("pattern that no shard matches", "exit 2", "matches no file", _streamed(_nothing, data_dir="nowhere/*.parquet")),
    CallRow("address of an unknown kind", "exit 2", "Protocol not known", _streamed(_nothing, data_dir="gopher://speech/shards")),
    CallRow("shards at another rate than the voice", "exit 2", "--target_sr 16000", _streamed(lambda folder: (folder / "shards.json").write_text((folder / "shards.json").read_text().replace("16000", "22050")))),
    CallRow("--streaming with --batch_seconds", "exit 2", "--streaming and --batch_seconds exclude one another", _streamed(_nothing, batch_seconds=60)),
)  # fmt: skip


# Models


def _voice(place: Path) -> Path:
    from vits_trainer.config.architecture import Architecture, DiscriminatorShape
    from vits_trainer.models import initialization, pretrained
    from vits_trainer.models.discriminator import Discriminator
    from vits_trainer.text.tokenizer import build_tokenizer

    torch.manual_seed(0)
    sizes = {name: _tuples(value) for name, value in MINIATURE["architecture"].items()}
    tokenizer = build_tokenizer(["a word"])
    judges = Discriminator(DiscriminatorShape((2,), 16))
    pretrained.export(initialization.new_model(Architecture(**sizes), tokenizer, []), tokenizer, judges, place / "voice")
    return place / "voice"


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _tuned(change: Callable[[Path], object], **settings: object) -> Callable[[Path], list[str]]:
    """train_vits from a voice to which ``change`` has been done."""

    def call(place: Path) -> list[str]:
        _prepared(place, FOUR)
        change(_voice(place))
        return ["train_vits", *train_flags(place, config=_tuning(place), **settings)]

    return call


def _tuning(place: Path) -> Path:
    """The miniature recipe, from the voice in ``place``."""
    recipe = {key: value for key, value in MINIATURE.items() if key not in ("architecture", "discriminator")}
    (place / "tuned.yaml").write_text(yaml.safe_dump({**recipe, "model_name": str(place / "voice")}))
    return place / "tuned.yaml"


def _pickle(voice: Path) -> None:
    (voice / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, voice / "pytorch_model.bin")


class _Program:
    """What a pickle may be: a call of any function."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch PWNED",)


def _converted(content: object) -> Callable[[Path], list[str]]:
    """convert of a checkpoint with that in it."""

    def call(place: Path) -> list[str]:
        torch.save(content, place / "G_1.pth")
        return ["convert", "--input", str(place / "G_1.pth"), "--output", str(place / "converted")]

    return call


def _bert(voice: Path) -> None:
    shutil.rmtree(voice)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    BertModel(config).save_pretrained(voice)


def _infinite(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors[max(tensors)].view(-1)[0] = torch.inf
    save_file(tensors, file, metadata=metadata)


def _program_of_its_own(voice: Path) -> None:
    (voice / "own.py").write_text("open('PWNED', 'w')\n")
    stated = json.loads((voice / "config.json").read_text())
    stated |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (voice / "config.json").write_text(json.dumps(stated))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[8:40] = bytes(32)  # of the header
    file.write_bytes(content)


MODELS = (
    CallRow("voice that is not there", "exit 2", "no voice could be loaded", _tuned(shutil.rmtree)),
    CallRow("safetensors with a damaged header", "exit 2", "no voice could be loaded", _tuned(lambda voice: _flip(voice / "model.safetensors"))),
    CallRow("safetensors that end too early", "exit 2", "no voice could be loaded", _tuned(lambda voice: os.truncate(voice / "model.safetensors", 5000))),
    CallRow("another kind of model", "exit 2", "not a VITS voice", _tuned(_bert)),
    CallRow("weights as a pickle", "exit 2", "no voice could be loaded", _tuned(_pickle)),
    CallRow("damaged config.json", "exit 2", "no voice could be loaded", _tuned(lambda voice: (voice / "config.json").write_text("{"))),
    CallRow("weights that do not fit config.json", "exit 2", "do not match its configuration", _tuned(lambda voice: (voice / "config.json").write_text((voice / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 32').replace('"flow_size": 16', '"flow_size": 32')))),
    CallRow("infinity in a weight", "exit 2", "NaN or infinity in the weights", _tuned(lambda voice: _infinite(voice / "model.safetensors"))),
    CallRow("program beside the weights, which config.json asks to run", "exit 2", "not a VITS voice", _tuned(_program_of_its_own)),
    CallRow("no vocabulary", "exit 2", "tokenizer", _tuned(lambda voice: (voice / "vocab.json").unlink())),
    CallRow("new speakers without a name", "exit 2", "the data have clips without a speaker's name", _tuned(_nothing, extend_speakers="true")),
    CallRow("discriminators that are not there", "exit 2", "there are no discriminators", _tuned(lambda voice: (voice / "discriminator.safetensors").unlink(), discriminator_from="nowhere")),
    CallRow("checkpoint that would run a program", "exit 2", ".system, which a checkpoint needs for nothing", _converted({"model": _Program()})),
    CallRow("checkpoint of something else", "exit 2", "are not those of a voice of original or coqui or piper", _converted({"model": {"weight": torch.zeros(2)}})),
    CallRow("damaged discriminators", "exit 2", "no discriminators could be loaded", _tuned(lambda voice: (voice / "discriminator.safetensors").write_bytes(b"xx"))),
    CallRow("infinity in the discriminators", "exit 2", "NaN or infinity in the weights", _tuned(lambda voice: _infinite(voice / "discriminator.safetensors"))),
)  # fmt: skip


# Configuration


def _configured(text: str, *flags: str) -> Callable[[Path], list[str]]:
    def call(place: Path) -> list[str]:
        (place / "own.yaml").write_text(text)
        return ["train_vits", "--config", str(place / "own.yaml"), *flags]

    return call


CONFIGURATION = (
    CallRow("unknown key", "exit 2", "own.yaml: unknown key learning_rat: did you mean learning_rate?", _configured("learning_rat: 1e-4")),
    CallRow("unknown flag", "exit 2", "unknown flag --batch_sise: did you mean --batch_size?", lambda place: ["train_vits", "--batch_sise", "4"]),
    CallRow("unknown command", "exit 2", "unknown command train: did you mean train_vits?", lambda place: ["train"]),
    CallRow("word where a number belongs", "exit 2", "--batch_size", _configured("batch_size: many")),
    CallRow("number out of its range", "exit 2", "--validation_fraction 2.0: give a number from 0 to below 1", _configured("validation_fraction: 2")),
    CallRow("not a number", "exit 2", "--learning_rate nan", _configured("learning_rate: .nan")),
    CallRow("phonemes for a voice that has learnt letters", "exit 2", "--phonemes belongs to a voice from scratch", _configured("phonemes: true")),
    CallRow("part that is not there to freeze", "exit 2", "vocoder is none of text_encoder", _configured("freeze: vocoder")),
    CallRow("upsampling that makes frames of 32 ms", "exit 2", "a frame 32.0 ms, where 8 to 20 are good", _configured("model_name: null\narchitecture:\n  upsample_rates: [8, 8, 4, 2]\n  upsample_kernel_sizes: [16, 16, 4, 4]")),
    CallRow("settings that clash", "exit 2", "give one of them", _configured("target_hours: 1\nmax_updates: 5")),
    CallRow("YAML that would run code", "exit 2", "own.yaml", _configured("run_name: !!python/object/apply:os.system ['touch PWNED']")),
    CallRow("no YAML", "exit 2", "own.yaml", _configured("a: b: c: [")),
    CallRow("YAML of another shape", "exit 2", "own.yaml", _configured("- 1\n- 2")),
    CallRow("recipe that is not there", "exit 2", "Recipes: ", lambda place: ["train_vits", "--config", "gigantic"]),
)  # fmt: skip


# Judging, reporting and correcting


def _correcting(*words: str) -> Callable[[Path], list[str]]:
    """train_feedback with a good correction of a voice."""

    def call(place: Path) -> list[str]:
        _voice(place)
        (place / "feedback").mkdir()
        (place / "feedback/one.wav").write_bytes(wav(GOOD))
        (place / "feedback/one.txt").write_text("a word")
        flags = ["--feedback_dir", "feedback", "--model_dir", "voice", "--output_dir", "new"]
        flags = [flag if flag.startswith("--") else str(place / flag) for flag in flags]
        return ["train_feedback", *flags, *(word.format(place=place) for word in words)]

    return call


def _judged(**changes: str) -> Callable[[Path], list[str]]:
    def call(place: Path) -> list[str]:
        _prepared(place, ["0.wav|a word", "1.wav|a word"], clips=2)
        settings = {"models": "{place}/training/wavs", "data_dir": "{place}/training", "clips": "all", "scores": "duration"}
        settings |= {"output_dir": "{place}/evaluation", **changes}
        return ["evaluate", *(word.format(place=place) for key, value in settings.items() for word in (f"--{key}", value))]

    return call


def _damaged_ledger(place: Path) -> list[str]:
    words = _correcting()(place)
    (place / "voice/learnt.json").write_text("{")
    return words


JUDGING = (
    CallRow("feedback without a text or a recording", "exit 2", "holds no correction", lambda place: ["train_feedback", "--feedback_dir", str(place)]),
    CallRow("served voice as the output", "exit 2", "Name another folder", _correcting("--output_dir", "{place}/voice")),
    CallRow("rollback without an earlier voice", "exit 2", "holds no earlier voice", _correcting("--rollback", "true")),
    CallRow("damaged list of what was learnt", "exit 2", "Delete it to learn every correction again", _damaged_ledger),
    CallRow("training clips that are not there", "exit 2", "does not exist", _correcting("--data_dir", "{place}/nowhere")),
    CallRow("unknown score", "exit 2", "mdc is none of mcd, f0", _judged(scores="mdc")),
    CallRow("speech that lacks clips", "exit 2", "lacks 2 of 2 clips", _judged(models="{place}/training")),
    CallRow("recogniser that is not there", "exit 2", "could not be loaded", _judged(scores="cer", asr="{place}/nowhere")),
    CallRow("best metric that nothing gives", "exit 2", "--best_metric quality: give one of mel", _configured("best_metric: quality")),
    CallRow("tracker that is unknown", "exit 2", "mlflow is none of wandb, tensorboard, trackio", _configured("report_to: mlflow")),
    CallRow("report of a folder that is no run", "exit 2", "is not a run", lambda place: ["report", str(place)]),
    CallRow("page for others without a password", "exit 2", "--password_file", lambda place: ["feedback_app", "--host", "192.168.1.2"]),
)  # fmt: skip


# Where voices, runs and clips are to go


def _into(output: str, command: str = "train_vits") -> Callable[[Path], list[str]]:
    """A voice for ``output``, where there are data, a checkpoint, notes and links."""

    def call(place: Path) -> list[str]:
        training = _prepared(place, FOUR)
        checkpoint = training / "checkpoints/checkpoint-5"
        (checkpoint / "voice").mkdir(parents=True)
        for name in ("state.json", "manifest.json", "voice/config.json"):
            (checkpoint / name).write_text("{}")
        (training / "thesis").write_text("precious")
        (place / "notes").mkdir()
        (place / "notes/ideas.txt").write_text("precious")
        (place / "circle").symlink_to("circle")
        (place / "link").symlink_to("training")
        if command == "export":
            return ["export", str(checkpoint), "--output_dir", str(place / output)]
        return ["train_vits", *train_flags(place, output_dir=place / output)]

    return call


def _someone_elses_work(place: Path) -> list[str]:
    words = _correcting()(place)
    (place / "new_work").mkdir()
    (place / "new_work/verdict.json").write_text("precious")
    return words


def _named_like_ours(place: Path) -> list[str]:
    words = _lj(["a|text", "b|text"])(place)
    (place / "out/wavs").mkdir(parents=True)
    (place / "out/wavs/audio_000000.wav").write_bytes(b"precious")
    return words


def _config_of_someone_else(folder: Path) -> None:
    (folder / "runs/run").mkdir(parents=True)
    (folder / "runs/run/config.yaml").write_text("precious")


PLACES = (
    CallRow("voice in the data's place", "exit 2", "training is or holds --data_dir", _into("training")),
    CallRow("voice in the place of a folder around the data", "exit 2", "is or holds --data_dir", _into(".")),
    CallRow("voice among the clips", "exit 2", "from which this program deletes files", _into("training/wavs/voice")),
    CallRow("voice in a checkpoint", "exit 2", "from which this program deletes files", _into("training/checkpoints/checkpoint-5/new")),
    CallRow("voice in a file's place", "exit 2", "is a file", _into("training/thesis")),
    CallRow("voice by a link to the data", "exit 2", "link is or holds --data_dir", _into("link")),
    CallRow("voice by a link that leads in a circle", "exit 2", "is a link that leads in a circle", _into("circle")),
    CallRow("checkpoint exported onto itself", "exit 2", "is or holds the checkpoint", _into("training/checkpoints/checkpoint-5", "export")),
    CallRow("checkpoint exported over the data", "exit 2", "is or holds the checkpoint", _into("training", "export")),
    CallRow("checkpoint exported over other files", "exit 2", "and is no voice", _into("notes", "export")),
    CallRow("corrections learnt in the data's place", "exit 2", "is or holds --feedback_dir", _correcting("--output_dir", "{place}")),
    CallRow("work folder of somebody else", "exit 2", "is not its own", _someone_elses_work),
    CallRow("run folder of somebody else", "exit 2", "contains config.yaml, but is not a run folder", _trained(_config_of_someone_else)),
    CallRow("recordings named like ours in the output folder", "exit 2", "wavs was not written by prepare_data", _named_like_ours),
)  # fmt: skip


# The machine: in a process of its own


@dataclass(frozen=True)
class MachineRow(Row):
    """A process under a limit of the machine."""

    run: Callable[[Path], "subprocess.CompletedProcess[str] | str"] = lambda place: ""
    """The ended process; or why it cannot be tried here."""


def _process(words: list[str], prefix: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    program = [*prefix, sys.executable, "-m", "vits_trainer"] if prefix[-1:] != ("-m",) else list(prefix)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([*program, *words], capture_output=True, text=True, timeout=HANG_S, env=environment)


def _read_only(place: Path) -> subprocess.CompletedProcess[str] | str:
    words = _lj(["a|text", "b|text"])(place)
    (place / "out").mkdir(mode=0o555)
    if os.getuid():
        return _process(words)
    if shutil.which("setpriv") is None:
        return "root may write everywhere, and there is no setpriv to give that up"
    return _process(words, ("setpriv", "--bounding-set=-dac_override,-dac_read_search"))


def _full_disk(place: Path) -> subprocess.CompletedProcess[str] | str:
    """On a file system with room for one checkpoint of the miniature voice, not for two."""
    from vits_trainer.training.checkpoint import list_newest_first, verify

    small = place / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        return "only root may mount a small file system"
    try:
        flags = _trained(_nothing, checkpoint_dir=small / "checkpoints", save_every_updates=1, keep_checkpoints=1)(place)
        ended = _process(flags)
        kept = list_newest_first(small / "checkpoints")
        assert kept, ended.stderr
        verify(kept[0])  # the one before is whole
        return ended
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _port_taken(place: Path) -> subprocess.CompletedProcess[str]:
    import socket

    root = Path(__file__).parents[2]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        launcher += [str(root / "accelerate_configs/cpu_2proc.yaml"), "--main_process_port", str(taken.getsockname()[1])]
        return subprocess.run(
            [*launcher, "-m", "vits_trainer", *_trained(_nothing)(place)],
            capture_output=True, text=True, timeout=HANG_S, cwd=root,
        )  # fmt: skip


MACHINE = (
    MachineRow("read-only folder, as a plain user", "exit 2", "cannot be written (Permission denied)", _read_only),
    MachineRow("no space left while a checkpoint is saved", "exit 1", "could not be written", _full_disk),
    MachineRow("--fp16 without a GPU", "exit 2", "fp16 needs a GPU", lambda place: _process([*_trained(_nothing)(place), "--fp16"], CUDA_VISIBLE_DEVICES="")),
    MachineRow("launcher's port taken: it takes another", "accepted", "already in use", _port_taken),
    MachineRow("launcher that counts two processes and starts one", "exit 2", "cannot meet", lambda place: _process(_trained(_nothing)(place), WORLD_SIZE="2")),
    MachineRow("launcher's precision is another", "exit 2", "but the launcher says fp16", lambda place: _process([*_trained(_nothing)(place), "--precision", "bf16"], ACCELERATE_MIXED_PRECISION="fp16")),
    MachineRow("checkpoints in the way", "exit 2", "already holds checkpoint-3", lambda place: ((place / "checkpoints/checkpoint-3").mkdir(parents=True), _process(_trained(_nothing)(place)))[1]),
)  # fmt: skip


# Clips that went bad between preparation and training

TRAINING = (
    Row("clip that is gone", "rejected: missing-file"),
    Row("clip that ends too early", "rejected: truncated-audio"),
    Row("clip that is no recording", "rejected: unreadable-audio"),
    Row("clip at another rate than the rest", "rejected: wrong-rate"),
    Row("clip of two channels", "rejected: unsupported-audio"),
    Row("clip that links out of the folder", "rejected: path-outside"),
    Row("text of unknown characters only", "rejected: no-known-characters"),
    Row("text longer than its clip has frames", "rejected: text-too-long"),
    Row("clip shorter than three frames", "rejected: too-short"),
)


def spoiled(place: Path) -> list[str]:
    """A prepared folder with a clip for each row of TRAINING, 1.wav to 9.wav, among good ones; train_vits on it."""
    from vits_trainer.data.audio import to_pcm16, write_pcm16_wav

    lines = [f"{number}.wav|a word" for number in range(20)]
    lines[7], lines[8] = "7.wav|€€€", "8.wav|" + "a word " * 40
    wavs = _prepared(place, lines, clips=20) / "wavs"
    (wavs / "1.wav").unlink()
    os.truncate(wavs / "2.wav", 5000)
    (wavs / "3.wav").write_bytes(b"RIFF, but not for long")
    write_pcm16_wav(wavs / "4.wav", to_pcm16(GOOD), 8000)
    (wavs / "5.wav").write_bytes(wav(np.stack([GOOD, GOOD], axis=1)))
    (place / "secret.wav").write_bytes((wavs / "6.wav").read_bytes())
    (wavs / "6.wav").unlink()
    (wavs / "6.wav").symlink_to(place / "secret.wav")
    write_pcm16_wav(wavs / "9.wav", to_pcm16(GOOD[:500]), RATE_HZ)
    _voice(place)
    settings = {"max_updates": 0, "epochs": 1, "max_rejected_fraction": 1, "validation_fraction": 0, "config": _tuning(place)}
    return ["train_vits", *train_flags(place, **settings)]


PARTS: dict[str, tuple[Row, ...]] = {
    "Audio, prepared": AUDIO,
    "Texts, prepared": TEXT,
    "Paths, prepared": PATHS,
    "Metadata": METADATA,
    "A prepared folder": PREPARED,
    "Clips, trained on": TRAINING,
    "Shards, streamed": STREAMED,
    "Models": MODELS,
    "Configuration": CONFIGURATION,
    "Judging and correcting": JUDGING,
    "Where things are to go": PLACES,
    "The machine": MACHINE,
}
