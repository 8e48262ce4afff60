"""Renders a run's folder as one self-contained HTML page, without network access or scripts.

Reads the files that ``tracker`` writes. Optional are ``facts.json`` (nested: plan, versions, machine, data),
``worst_clips.json`` (a list with clip, text, heard, figures) and, in the folders of samples, ``texts.json`` (the
sentences) and ``<n>_recorded.wav``. The page lists missing and damaged files.
"""

import base64
import json
import math
import re
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import jinja2

from vits_trainer.config.serialization import to_dict
from vits_trainer.config.train import VALIDATION_LOSSES, TrainConfig
from vits_trainer.evaluation.ranking import rank
from vits_trainer.tracking.svg_charts import Curve, Mark, format_number, panel
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.redaction import redacted
from vits_trainer.utils.strings import counted

_MAX_MEDIA_BYTES = 64 * 2**20
MAX_BETWEEN = 8
"""Number of validations between the first and the last whose speech is in the page."""
FIRST_ERRORS = 50
"""Number of lines of rejected.jsonl to show."""
LOG_TAIL = 60
"""Number of lines of train.log to show."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "Losses": ("generator", "validation"),
    "Discriminator, gradients, learning rate": ("discriminator", "grad_norm", "optim"),
    "Speed and memory": ("throughput", "time", "memory"),
    "Data": ("data",),
}
"""Sections by the first part of metric names; each other first part forms a separate section."""
UNITS = {
    "mel": "nats",
    "mel_from_text": "nats",
    "kl": "nats",
    "duration": "nats",
    "utterances_per_s": "clips per second",
    "audio_s_per_s": "seconds of audio per second",
    "utterances_per_s_per_rank": "clips per second",
    "data_wait_fraction": "share of the time",
    "data_wait_fraction_max": "share of the time",
    "compute_s_per_update": "seconds",
    "eta_h": "hours",
    "max_allocated_gib": "GiB",
    "trained": "clips",
    "rejected": "clips",
    "masked": "clips",
    "nonfinite_updates": "updates",
}
"""Units by the last part of metric names, as in docs/metrics.md."""
MEL, BASELINE = "validation/mel", "validation/constant_frame_mel"
Kind = TypeVar("Kind", dict[str, Any], list[Any])


@dataclass(frozen=True)
class Synthesis:
    """A sentence synthesized at one update: ``data:`` URIs, empty if a file is missing."""

    update: int
    speech: str
    mel: str
    alignment: str


@dataclass(frozen=True)
class Sentence:
    """A validation sentence, synthesized at validations."""

    text: str
    recorded: str
    syntheses: tuple[Synthesis, ...]
    """Of the first and the last validation; one if there was only one."""
    between: tuple[tuple[int, str], ...] = ()
    """Update and speech of some validations between them."""


@dataclass(frozen=True)
class Errors:
    """The incidents of rejected.jsonl."""

    by_kind: dict[str, int]
    first: list[dict[str, Any]]


@dataclass(frozen=True)
class Log:
    """The last lines of train.log, and the timestamps of its first and last line."""

    tail: list[str]
    began: str
    ended: str


@dataclass(frozen=True)
class Run:
    """Content of a run's folder, without secrets."""

    name: str
    curves: dict[str, Curve]
    """Curves by metric name; each has at least one point."""
    config: dict[str, Any]
    outcome: dict[str, Any]
    facts: dict[str, Any]
    sentences: list[Sentence]
    errors: Errors
    worst: list[dict[str, Any]]
    log: Log
    wandb: dict[str, Any]
    """Content of wandb.json: the address of an online run."""
    missing: list[str]
    """One message per missing or unreadable file."""

    @property
    def updates(self) -> int:
        """The last recorded update."""
        ends = [curve.updates[-1] for curve in self.curves.values()]
        return int(max([number(self.outcome.get("update")) or 0, *ends]))


@dataclass(frozen=True)
class KeyMetric:
    """A metric at the start and at the end of the run."""

    name: str
    unit: str
    before: str
    after: str
    note: str


@dataclass(frozen=True)
class Panel:
    """A chart with its heading and its legend: style, label and last value of each mark."""

    name: str
    svg: str
    legend: list[tuple[str, str, str]]


@dataclass
class _Reader:
    """Reads one folder, and collects messages about missing files."""

    folder: Path
    missing: list[str] = field(default_factory=list)

    def structure(self, path: Path, empty: Kind, what: str) -> Any:
        """Reads JSON or YAML of ``empty``'s type. If missing: ``empty``, reported if ``what`` is set."""
        name = path.relative_to(self.folder)
        if not self.has(path):
            if what:
                self.missing.append(f"{name} is missing: {what}")
            return empty
        try:
            if path.suffix == ".yaml":
                return redacted(records.read_yaml(path, DataError, ""))
            kind: Any = {dict: dict[str, Any], list: list[Any]}[type(empty)]
            return redacted(records.read_json(path, kind, DataError, "", max_bytes=records.MAX_UNTYPED_BYTES))
        except DataError as error:
            self.missing.append(str(error).removeprefix(f"{self.folder}/").rstrip(". "))
            return empty

    def has(self, path: Path) -> bool:
        """Returns whether a file exists and is in the folder. Links to elsewhere are not followed: runs are shared."""
        return path.is_file() and path.resolve().is_relative_to(self.folder.resolve())

    def records(self, name: str, what: str) -> Iterator[dict[str, Any]]:
        """Yields the objects of a JSON Lines file."""
        path = self.folder / name
        if not self.has(path):
            self.missing.append(f"{name} is missing: {what}")
            return
        broken = 0
        for line in records.read_lines(path):
            record = records.parse_json_line(line, dict[str, Any])
            if record is not None:
                yield record
            else:
                # A line without a newline is incomplete: it is being written, or the run was killed.
                broken += line.endswith(b"\n")
        if broken:
            self.missing.append(f"{name} has {counted(broken, 'unreadable line')}")

    def uri(self, path: Path, media_type: str) -> str:
        """Returns a file as a ``data:`` URI; empty if it is missing."""
        if not self.has(path):
            return ""
        content = records.read_bytes(path, DataError, "Delete it.", _MAX_MEDIA_BYTES)
        return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def number(value: Any) -> float | None:
    """Returns ``value`` as a float if it is a finite number small enough to draw, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and -1e300 < value < 1e300 else None


def read_run(run_dir: Path) -> Run:
    """Reads a run's folder; the run may be active, and files may be missing.

    Raises:
        DataError: it is not a run's folder: it has neither metrics.jsonl nor config.yaml.
    """
    if not any((run_dir / name).is_file() for name in ("metrics.jsonl", "config.yaml")):
        below = sorted(path.parent for path in (*run_dir.glob("*/config.yaml"), *run_dir.glob("runs/*/config.yaml")))
        example = below[-1] if below else "training/runs/<run_name>"
        problem = "it has neither metrics.jsonl nor config.yaml" if run_dir.is_dir() else "no such folder"
        raise DataError(f"{run_dir} is not a run: {problem}. Give the folder of one run, such as {example}.")
    reader = _Reader(run_dir)
    return Run(
        name=run_dir.resolve().name,
        curves=_curves(reader),
        config=reader.structure(run_dir / "config.yaml", {}, "settings are unknown."),
        outcome=reader.structure(run_dir / "outcome.json", {}, "the outcome is unknown."),
        facts=reader.structure(run_dir / "facts.json", {}, "plan, data, versions and machine are unknown."),
        sentences=_sentences(reader),
        errors=_errors(reader),
        worst=[row for row in reader.structure(run_dir / "worst_clips.json", [], "") if isinstance(row, dict)],
        log=_log(reader),
        wandb=reader.structure(run_dir / "wandb.json", {}, ""),
        missing=reader.missing,
    )


def _curves(reader: _Reader) -> dict[str, Curve]:
    columns: dict[str, tuple[array[float], array[float]]] = {}
    for record in reader.records("metrics.jsonl", "no curves."):
        update = number(record.get("update"))
        for name, value in record.items():
            point = number(value)
            if update is not None and point is not None and name not in ("update", "epoch"):
                updates, values = columns.setdefault(name, (array("d"), array("d")))
                updates.append(update)
                values.append(point)
    if not columns and (reader.folder / "metrics.jsonl").is_file():
        reader.missing.append("metrics.jsonl has no metrics yet: no curves.")
    return {name: Curve(*column) for name, column in columns.items()}


def _errors(reader: _Reader) -> Errors:
    kinds: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    for record in reader.records("rejected.jsonl", "incidents are unknown."):
        kinds[str(record.get("kind", "unknown"))] += 1
        if len(first) < FIRST_ERRORS:
            first.append(redacted(record))
    return Errors(dict(kinds.most_common()), first)


def _log(reader: _Reader) -> Log:
    path = reader.folder / "train.log"
    if not reader.has(path):
        reader.missing.append("train.log is missing: no log.")
        return Log([], "", "")
    times: list[str] = []
    tail: deque[str] = deque(maxlen=LOG_TAIL)
    for raw in records.read_lines(path):
        line = raw.decode(errors="replace")
        tail.append(line.rstrip("\n"))
        stamp = line[:19]
        if stamp[4:5] == "-" and stamp[13:14] == ":":  # lines of a traceback have no timestamp
            times[1:] = [stamp]
    return Log(redacted(list(tail)), *(times[0], times[-1]) if times else ("", ""))


def _sentences(reader: _Reader) -> list[Sentence]:
    folders = sorted(
        (int(number_of), path)
        for path in reader.folder.glob("samples/update-*")
        if re.fullmatch(r"\d{1,15}", number_of := path.name.removeprefix("update-")) and path.is_dir()
    )
    if not folders:
        reader.missing.append("samples/ is empty or missing: no samples (each validation adds some).")
        return []
    shown = [folders[0], *folders[1:][-1:]]
    between = folders[1:-1]
    step = -(-len(between) // MAX_BETWEEN) or 1
    some = between[step // 2 :: step]
    last = shown[-1][1]
    texts = reader.structure(last / "texts.json", [], "")
    names = [path.name.partition("_")[0] for path in last.glob("*_*")]
    numbers = sorted({int(name) for name in names if re.fullmatch(r"\d{1,6}", name)})
    return [
        Sentence(
            text=str(texts[n]) if n < len(texts) else f"sentence {n + 1}",
            recorded=next(filter(None, (reader.uri(d / f"{n}_recorded.wav", "audio/wav") for _, d in shown[::-1])), ""),
            syntheses=tuple(_synthesis(reader, update, folder, n) for update, folder in shown),
            between=tuple((update, reader.uri(folder / f"{n}_speech.wav", "audio/wav")) for update, folder in some),
        )
        for n in numbers
    ]


def _synthesis(reader: _Reader, update: int, folder: Path, n: int) -> Synthesis:
    return Synthesis(
        update,
        reader.uri(folder / f"{n}_speech.wav", "audio/wav"),
        reader.uri(folder / f"{n}_mel.png", "image/png"),
        reader.uri(folder / f"{n}_alignment.png", "image/png"),
    )


def sections(curves: Mapping[str, Curve], last_update: float) -> dict[str, tuple[list[Panel], list[str]]]:
    """Returns panels by section, and descriptions of the data metrics that stayed constant.

    ``validation/<loss>`` is drawn in the panel of ``generator/<loss>``, if it exists, and the constant-frame baseline
    in the mel panels.
    """
    groups = {part: title for title, parts in SECTIONS.items() for part in parts}
    content_of: dict[str, tuple[list[Panel], list[str]]] = {title: ([], []) for title in SECTIONS}
    for name in sorted(curves, key=_rank):
        group, _, rest = name.partition("/")
        if name == BASELINE or (group == "validation" and f"generator/{rest}" in curves):
            continue
        panels, constant = content_of.setdefault(groups.get(group, group), ([], []))
        values = curves[name].values
        if group == "data" and min(values) == max(values):
            constant.append(f"{name} {format_number(values[0])}")
        else:
            panels.append(_panel(name, curves, last_update))
    return {title: content for title, content in content_of.items() if any(content)}


def _rank(name: str) -> tuple[int, int, str]:
    group, _, rest = name.partition("/")
    order = [part for parts in SECTIONS.values() for part in parts]
    position = VALIDATION_LOSSES.index(rest) if rest in VALIDATION_LOSSES else len(VALIDATION_LOSSES)
    is_loss = group in SECTIONS["Losses"]
    return 0 if is_loss else order.index(group) if group in order else len(order), is_loss * position, name


def _panel(name: str, curves: Mapping[str, Curve], last_update: float) -> Panel:
    group, _, rest = name.partition("/")
    is_loss = group in ("generator", "discriminator")
    marks = [Mark("training" if is_loss else "last", curves[name], "line")]
    if group == "validation":
        marks = [Mark("validation", curves[name], "dots")]
    elif group == "generator" and f"validation/{rest}" in curves:
        marks.append(Mark("validation", curves[f"validation/{rest}"], "dots"))
    if rest in ("mel", "mel_from_text") and BASELINE in curves:
        marks.append(Mark("constant frame", curves[BASELINE], "rule"))
    svg = panel(name, UNITS.get(name.rpartition("/")[2], ""), marks, last_update, may_be_log=group != "data")
    return Panel(name, svg, [(mark.style, mark.label, format_number(mark.curve.values[-1])) for mark in marks])


def key_metrics(curves: Mapping[str, Curve]) -> list[KeyMetric]:
    """Returns the most important metrics, as far as available."""
    names = [f"validation/{rest}" for rest in ("mel", "mel_from_text", "kl", "duration")]
    if MEL not in curves:
        names = [f"generator/{rest}" for rest in ("mel", "kl", "duration")]
    metrics = []
    for name in names:
        if name in curves:
            curve = curves[name]
            note = f"update {format_number(curve.updates[0])} → {format_number(curve.updates[-1])}"
            before = format_number(curve.values[0]) if len(curve.values) > 1 else ""
            unit = UNITS[name.partition("/")[2]]
            metrics.append(
                KeyMetric(name, unit, before, format_number(curve.values[-1]), note if before else note.split(" →")[0])
            )
    speed = next((curve for name, curve in curves.items() if name.endswith("/audio_s_per_s")), None)
    if speed:
        middle = format_number(float(f"{median(speed.values):.3g}"))
        metrics.append(KeyMetric("speed", "s of audio per s", "", middle, "median over the run"))
    return metrics


def baseline_comparison(curves: Mapping[str, Curve]) -> str:
    """Compares the best validation mel with the constant-frame baseline, as text; empty without validation."""
    if MEL not in curves or BASELINE not in curves:
        return ""
    at, best = curves[MEL].lowest()
    baseline = curves[BASELINE].values[-1]
    result = "is below it: the voice has learnt" if best < baseline else "is NOT below it: the voice has learnt nothing"
    return (
        f"The best constant frame reaches a mel L1 of {format_number(baseline)} on the validation clips. The best "
        f"{MEL}, {format_number(best)} at update {format_number(at)}, {result}."
    )


def best_metric(run: Run) -> str:
    """Returns the metric that shown the best checkpoint; the mel if it is not configured or not recorded."""
    name = f"validation/{run.config.get('best_metric', 'mel')}"
    return name if name in run.curves else MEL


def validation_table(curves: Mapping[str, Curve], metric: str = MEL) -> tuple[list[str], list[list[str]]]:
    """Returns heads and rows: validation metrics at the first, the best (by ``metric``) and the last validation."""
    if MEL not in curves:
        return [], []
    mel, selecting = curves[MEL], curves[metric]
    name = metric.partition("/")[2]
    ranks = {
        update: rank(name, value, mel.at(update) or 0.0)
        for update, value in zip(selecting.updates, selecting.values, strict=True)
    }
    columns = {"first": mel.updates[0], "best": min(ranks, key=ranks.__getitem__), "last": mel.updates[-1]}
    rows = []
    for name in sorted((name for name in curves if name.startswith("validation/")), key=_rank):
        values = [curves[name].at(update) for update in columns.values()]
        rows.append([name, *("–" if value is None else format_number(value) for value in values)])
    return [f"{word}, update {format_number(update)}" for word, update in columns.items()], rows


def flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested dictionaries: ``{"a": {"b": 1}}`` gives ``("a.b", "1")``."""
    if isinstance(values, dict) and values:
        return [
            line for key, inner in values.items() for line in flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, float):
        return [(prefix, format_number(values) if math.isfinite(values) and abs(values) >= 1e-4 else f"{values:g}")]
    if isinstance(values, (list, dict)):
        return [(prefix, json.dumps(values, ensure_ascii=False))]
    if values is None or isinstance(values, bool):
        return [(prefix, json.dumps(values))]
    return [(prefix, str(values))]


def render(run: Run) -> str:
    """Renders the page."""
    data, plan = (one if isinstance(one := run.facts.get(part), dict) else {} for part in ("data", "plan"))
    heads, rows = validation_table(run.curves, best_metric(run))
    settings, defaults = flat(run.config), set(flat(to_dict(TrainConfig())))
    facts = dict(run.facts)
    if "settings" in data:
        facts |= {"data": {name: value for name, value in data.items() if name != "settings"}}
        facts["settings of prepare_data"] = data["settings"]
    return _template().render(
        run=run,
        state=str(run.outcome.get("outcome", "unknown")),
        planned=number(plan.get("total_updates")) if plan else None,
        clips=number(data.get("accepted")) if data else None,
        trained=number(plan.get("training_clips")) if plan else None,
        validated=number(plan.get("validation_clips")) if plan else None,
        voice=str(run.config.get("output_dir", "")),
        wandb_url=url if (url := str(run.wandb.get("url", ""))).startswith("https://") else "",
        hours=number(data.get("hours")) if data else None,
        key_metrics=key_metrics(run.curves),
        baseline_comparison=baseline_comparison(run.curves),
        sections=sections(run.curves, run.updates),
        best_metric=best_metric(run),
        validation_heads=heads,
        validation_rows=rows,
        facts={str(part): [line for line in flat(inner) if line[1] != "null"] for part, inner in facts.items()},
        folded=("versions", "settings of prepare_data"),
        settings=[setting for setting in settings if setting not in defaults],
        default_settings=[setting for setting in settings if setting in defaults],
        worst_names=list(dict.fromkeys(name for row in run.worst for name in _metrics_of(row))),
        metrics_of=_metrics_of,
        format_number=lambda value: format_number(value) if number(value) is not None else str(value),
        first_errors=FIRST_ERRORS,
    )


def _metrics_of(row: Mapping[str, Any]) -> dict[str, Any]:
    metrics = row.get("figures")
    return metrics if isinstance(metrics, dict) else {}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # texts and messages are untrusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def media_bytes(sentences: Sequence[Sentence]) -> int:
    """Returns the size of the audio and images in the page."""
    return sum(
        len(part)
        for sentence in sentences
        for part in (
            sentence.recorded,
            *(speech for _, speech in sentence.between),
            *(
                uri
                for synthesis in sentence.syntheses
                for uri in (synthesis.speech, synthesis.mel, synthesis.alignment)
            ),
        )
    )
