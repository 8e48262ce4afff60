"""Runs the commands on hostile files and flags, and counts how they end.

``python -m experiments.hostile FOLDER [--cases 300] [--seed 0]``

Each case damages one file of a working project (clips, tables, JSON, YAML, voices, checkpoints, shards), or sets one
flag to an odd value, and runs a command in a process of its own, which is forked from one that has imported the
libraries. A case should end with exit code 0 or 1 and a result, or with 2 and one line. Prints each case that does not,
and a summary: tracebacks, hangs, the slowest case, and the largest memory beyond the start of the process.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile as sf

from tests.reliability.rows import write_voice
from tests.support.audio import encode, voice
from tests.support.shards import write_shards
from tests.support.voices import prepared_folder, train_flags
from vits_trainer.cli.main import main

LIMIT_S, LIMIT_MIB = 120, 8192
RAW = ("[" * 100_000, '{"a":' * 5000, "1e999", "NaN", "-" * 9, "null", "[]", '"x"', "{}", "", b"\xed\xa0\x80")
ODD: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e300, "", "x", "../../x", "a" * 300, [], {}, [[]], {"x": 1})
NUMBERS = ("nan", "inf", "-1", "0", "1e400", "99999999999999999999", "x", "", "1e-400", "-0.0", "2.5", "[1]", "null")
PATHS = ("~nosuchuser/x", "/dev/null", "/proc/self/mem", ".", "", "/", "a\tb", "x" * 300, "https://u:w@127.0.0.1:9/x")


@dataclass(frozen=True)
class Case:
    """A change of a project, and the command that runs on it."""

    title: str
    change: Callable[[Path], object]
    argv: list[str]


def project(root: Path) -> None:
    """Makes a working project of each kind of folder that commands read."""
    prepared_folder(root)
    assert main(["train_vits", *train_flags(root, max_updates=2, save_every_updates=1, report_to="none")]) == 0
    write_voice(root)
    write_shards(root / "sharded", (6, 6), group_clips=3)
    feedback = root / "feedback"
    feedback.mkdir()
    (feedback / "one.wav").write_bytes(encode(voice(0.8, 16000), 16000))
    (feedback / "one.txt").write_text("number one\n")


def commands() -> dict[str, list[str]]:
    """Commands by name; ``{}`` is the project."""
    common = {"config": "{}/miniature.yaml", "run_name": "run", "report_to": "none"}
    new = {**common, "data_dir": "{}/training", "checkpoint_dir": "{}/new/checkpoints", "output_dir": "{}/new/voice"}
    new |= {"runs_dir": "{}/new/runs", "max_updates": 1, "validation_samples": 0}
    old = {**common, "data_dir": "{}/training", "checkpoint_dir": "{}/checkpoints", "output_dir": "{}/final_model"}
    old |= {"max_updates": 3, "resume_from_checkpoint": "latest"}
    shards = {**new, "data_dir": "{}/sharded"}
    streamed = {**shards, "streaming": "true", "validation_fraction": 0.2}
    prepared = {"output_dir": "{}/again", "processes": 1}
    learn = {"feedback_dir": "{}/feedback", "model_dir": "{}/final_model", "output_dir": "{}/learnt", "epochs": 1}
    learn |= {"data_dir": "{}/training", "report_to": "none"}
    judge = {
        "models": "{}/final_model",
        "data_dir": "{}/training",
        "clips": "all",
        "max_clips": 2,
        "scores": "duration",
    }
    speech = {"model": "{}/final_model", "text": "number one", "output": "{}/speech.wav"}
    settings: dict[str, tuple[list[str], dict[str, Any]]] = {
        "prepare": (["prepare_data"], {"dataset": "{}/source", **prepared}),
        "corrections": (["prepare_data"], {"dataset": "{}/feedback", **prepared}),
        "train": (["train_vits"], new),
        "map shards": (["train_vits"], shards),
        "stream": (["train_vits"], streamed),
        "resume": (["train_vits"], old),
        "export": (["export", "{}/checkpoints/checkpoint-2"], {"output_dir": "{}/exported"}),
        "speak": (["synthesize"], speech),
        "report": (["report", "{}/training/runs/run"], {}),
        "feedback": (["train_feedback"], learn),
        "evaluate": (["evaluate"], {**judge, "output_dir": "{}/evaluation"}),
        "convert": (["convert", "{}/final_model"], {"to": "original", "output": "{}/converted"}),
    }
    return {
        name: [*words, *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]
        for name, (words, flags) in settings.items()
    }


FILES = {
    "training/dataset.json": ["train", "feedback", "evaluate"], "sharded/shards.json": ["stream", "map shards"],
    "sharded/dataset.json": ["stream"], "checkpoints/checkpoint-2/state.json": ["resume", "export"],
    "checkpoints/checkpoint-2/manifest.json": ["resume", "export"], "checkpoints/best.json": ["resume"],
    "final_model/config.json": ["speak", "feedback", "evaluate", "convert"],
    "final_model/vocab.json": ["speak", "feedback"],
    "final_model/tokenizer_config.json": ["speak"], "final_model/trained_on.json": ["feedback"],
    "training/runs/run/facts.json": ["report"], "training/runs/run/outcome.json": ["report"],
    "training/runs/run/metrics.jsonl": ["report"], "checkpoints/checkpoint-2/voice/config.json": ["export", "resume"],
}  # fmt: skip
TABLES = {"source/metadata.csv": "prepare", "training/metadata.csv": "train"}
BINARIES = {
    "final_model/model.safetensors": "speak", "final_model/discriminator.safetensors": "feedback",
    "checkpoints/checkpoint-2/generator.safetensors": "resume", "sharded/shards/shard_00000.parquet": "map shards",
}  # fmt: skip
KINDS = (
    ("WAV", "PCM_16"), ("WAV", "GSM610"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
    ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("W64", "PCM_16"),
)  # fmt: skip
TRAINING_FLAGS = (
    "seed", "adam_eps", "segment_frames", "learning_rate", "batch_seconds", "loss_weights.mel", "rank_timeout_s",
    "epochs",
    "run_name", "ema_decay", "validation_fraction", "adam_betas",
)  # fmt: skip
YAML = (
    "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]" for n in range(9)), "a: &a [*a]",
    "!!python/object/apply:os.system ['touch PWNED']", "- 1", "a: b: c", "\t", "? [x]", "batch_size: 1e999",
    "run_name: 2026-01-01", "seed: 0x" + "f" * 99, "architecture: 5", "loss_weights: [1]", "'a': *b",
)  # fmt: skip


def altered(dice: random.Random, value: Any) -> Any:
    """Returns a JSON value with one position replaced or removed."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        kept = {name: item for name, item in value.items() if name != key}
        return kept if dice.random() < 0.2 else {**value, key: altered(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.6:
        place = dice.randrange(len(value))
        return [altered(dice, item) if index == place else item for index, item in enumerate(value)]
    return dice.choice(ODD)


def of_json(dice: random.Random) -> Case:
    name = dice.choice(list(FILES))
    seed, raw = dice.random(), dice.choice(RAW)

    def change(root: Path) -> None:
        path = root / name
        if not path.is_file() or seed < 0.25:
            path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        elif name.endswith(".jsonl"):
            line = json.loads(path.read_text().splitlines()[0])
            path.write_text(json.dumps(altered(random.Random(seed), line)) + "\n")
        else:
            path.write_text(json.dumps(altered(random.Random(seed), json.loads(path.read_text()))))

    command = dice.choice(FILES[name])
    return Case(f"{name} ({seed:.3f}) -> {command}", change, commands()[command])


def of_table(dice: random.Random) -> Case:
    name = dice.choice(list(TABLES))
    kind = dice.choice(["separators", "bytes", "long", "nul", "paths", "empty", "columns", "quotes"])

    def change(root: Path) -> None:
        path = root / name
        content = path.read_bytes()
        changed = {
            "separators": content.replace(b"|", b"\t\t"),
            "bytes": content + b"\xff\xfe|\xff\n",
            "long": b"x" * 10**7 + b"|y\n",
            "nul": content.replace(b"number", b"num\0ber"),
            "paths": content + b"../../etc/passwd|text\n/etc/passwd|text\n",
            "empty": b"",
            "columns": content.replace(b"\n", b"|a|b|c|d\n"),
            "quotes": b'"' + content,
        }
        path.write_bytes(changed[kind])

    return Case(f"{name}: {kind}", change, commands()[TABLES[name]])


def of_binary(dice: random.Random) -> Case:
    name, seed = dice.choice(list(BINARIES)), dice.random()

    def change(root: Path) -> None:
        path = root / name
        content = bytearray(path.read_bytes())
        where = random.Random(seed)
        if seed < 0.3:
            del content[where.randrange(len(content)) :]
        else:
            for _ in range(1 + int(seed * 10)):
                content[where.randrange(min(len(content), 4096) if seed < 0.7 else len(content))] = where.randrange(256)
        path.write_bytes(content)

    return Case(f"{name} ({seed:.3f})", change, commands()[BINARIES[name]])


def of_audio(dice: random.Random) -> Case:
    (container, subtype), seed, command = dice.choice(KINDS), dice.random(), dice.choice(["prepare", "corrections"])

    def change(root: Path) -> None:
        path = root / ("source/wavs/clip3.wav" if command == "prepare" else "feedback/two.wav")
        sf.write(path, voice(1.5, 8000) * (30000 if seed > 0.9 else 1), 8000, format=container, subtype=subtype)
        (root / "feedback/two.txt").write_text("number two\n")
        content = bytearray(path.read_bytes())
        where = random.Random(seed)
        if seed < 0.3:
            del content[int(len(content) * where.random()) :]
        elif seed < 0.5:
            content += bytes(content)
        else:
            for _ in range(where.randrange(8)):
                content[where.randrange(min(len(content), 64))] = where.randrange(256)
        path.write_bytes(content)

    return Case(f"{container} {subtype} ({seed:.3f}) -> {command}", change, commands()[command])


def of_flag(dice: random.Random) -> Case:
    name = dice.choice([name for name in commands() if name != "report"])  # it has no flags
    argv = commands()[name]
    flags = [index for index, word in enumerate(argv) if word.startswith("--") and index + 1 < len(argv)]
    place = dice.choice(flags)
    is_path = "{}" in argv[place + 1]
    value = dice.choice(PATHS if is_path else NUMBERS)
    more = [] if is_path or name not in ("train", "stream", "resume") else [f"--{dice.choice(TRAINING_FLAGS)}", value]
    changed = [*argv[: place + 1], value, *argv[place + 2 :]] if is_path or not more else [*argv, *more]
    return Case(f"{name}: {' '.join(more) or f'{argv[place]} {value[:40]!r}'}", lambda root: None, changed)


def of_yaml(dice: random.Random) -> Case:
    content = dice.choice(YAML)
    target = dice.choice(["config", "report"])

    def change(root: Path) -> None:
        path = root / "own.yaml" if target == "config" else root / "training/runs/run/config.yaml"
        path.write_text(content)

    argv = ["train_vits", "--config", "{}/own.yaml"] if target == "config" else commands()["report"]
    return Case(f"YAML {content[:30]!r} -> {target}", change, argv)


KINDS_OF_CASES = (of_json, of_json, of_json, of_table, of_binary, of_audio, of_audio, of_flag, of_flag, of_yaml)


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    took_s: float
    more_mib: float


def run(case: Case, template: Path, place: Path) -> Ended:
    """Runs a case in a fork, on a copy of the project."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, symlinks=True)
    case.change(place)
    # Flags of a run name its own folder: the copy's.
    argv = [word.replace("{}", str(place)).replace(str(template), str(place)) for word in case.argv]
    output = place.with_suffix(".log")
    began_s = time.monotonic()
    process = os.fork()
    if process == 0:
        start_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        resource.setrlimit(resource.RLIMIT_AS, ((start_mib + 4 * LIMIT_MIB) * 2**20,) * 2)
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.chdir(place)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1, errors="backslashreplace")
        code = 70
        try:
            code = main(argv)
        except BaseException:  # noqa: BLE001 - counted
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        end_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        place.with_suffix(".rss").write_text(str(end_mib - start_mib))
        os._exit(code)
    code: int | None = None
    while code is None:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - began_s > LIMIT_S:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            code = 124
        else:
            time.sleep(0.02)
    rss = place.with_suffix(".rss")
    more = float(rss.read_text()) if rss.is_file() else 0.0
    rss.unlink(missing_ok=True)
    return Ended(code, output.read_text(errors="replace"), time.monotonic() - began_s, more)


def verdict(ended: Ended) -> str:
    """Returns how a case ended: as it should, or its fault."""
    lines = [line for line in ended.output.splitlines() if line.startswith("vits-trainer: ")]
    if ended.code == 124:
        return "HANG"
    if "Traceback (most recent call last)" in ended.output:
        return "TRACEBACK"
    if ended.code == 2:
        return "one line, exit 2" if len(lines) == 1 else "SEVERAL LINES"
    if ended.code == 1:
        return "exit 1 with a message" if lines else "EXIT 1 WITHOUT A MESSAGE"
    return "result, exit 0" if ended.code == 0 else f"EXIT {ended.code}"


def attack(folder: Path, cases: int, seed: int) -> bool:
    """Runs the cases, prints the summary, and returns whether all ended as they should."""
    template = folder / "template"
    if not (template / "sharded/shards.json").is_file():
        template.mkdir(parents=True)
        project(template)
    dice = random.Random(seed)
    counts: Counter[str] = Counter()
    slowest, largest = ("", 0.0), ("", 0.0)
    for number in range(cases):
        case = KINDS_OF_CASES[number % len(KINDS_OF_CASES)](dice)
        ended = run(case, template, folder / "case")
        found = verdict(ended)
        counts[found] += 1
        if number % 50 == 49:
            print(f"{number + 1} cases: {dict(counts)}", flush=True)
        slowest = max(slowest, (case.title, ended.took_s), key=lambda one: one[1])
        largest = max(largest, (case.title, ended.more_mib), key=lambda one: one[1])
        if found.split()[0].isupper():
            print(f"{found}: case {number}: {case.title}\n    {ended.output[-600:]}", flush=True)
        if (folder / "case/PWNED").exists():
            print(f"CODE WAS RUN: case {number}: {case.title}", flush=True)
            counts["CODE WAS RUN"] += 1
    for found, count in counts.most_common():
        print(f"{count:5d}  {found}")
    print(f"slowest: {slowest[1]:.1f} s, {slowest[0]}")
    print(f"most memory beyond the start: {largest[1]:.0f} MiB, {largest[0]}")
    return not any(found.split()[0].isupper() for found in counts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    sys.exit(0 if attack(asked.folder.resolve(), asked.cases, asked.seed) else 1)
