"""A run's folder as one HTML page that needs nothing else: no network, no script.

What is read is what ``tracking`` writes, with three files that may be there: ``facts.json`` (nested: plan, versions,
machine, data), ``worst_clips.json`` (a list of clip, text, heard and figures), and in the samples' folders
``texts.json`` (the sentences) and ``<n>_recorded.wav``. What is missing or damaged is said on the page.
"""

import base64
import json
import math
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import jinja2
import yaml

from vits_trainer.config.options import HIGHER_IS_BETTER
from vits_trainer.tracking.svg_charts import Curve, Mark, figure, panel
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.redaction import redacted

FIRST_ERRORS = 50
"""As many lines of rejected.jsonl are shown."""
LOG_TAIL = 60
"""As many of train.log."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "Losses": ("generator", "validation"),
    "Discriminator, gradients, learning rate": ("discriminator", "grad_norm", "optim"),
    "Speed and memory": ("throughput", "time", "memory"),
    "Data": ("data",),
}
"""Panels by the first part of the metrics' names; any other part makes a section of its own."""
LOSSES = ("mel", "mel_from_text", "kl", "duration", "adversarial", "feature_matching", "total")
"""What tells most comes first."""
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
"""By the last part of a metric's name, as in docs/metrics.md."""
MEL, BASELINE = "validation/mel", "validation/constant_frame_mel"
Kind = TypeVar("Kind", dict[str, Any], list[Any])


@dataclass(frozen=True)
class Take:
    """What the voice made of a sentence at one update: ``data:`` URIs, empty where a file is missing."""

    update: int
    speech: str
    mel: str
    alignment: str


@dataclass(frozen=True)
class Sentence:
    """A validation sentence at the first and the last validation."""

    text: str
    recorded: str
    takes: tuple[Take, ...]
    """One if there was one validation, else two."""


@dataclass(frozen=True)
class Errors:
    """The incidents of rejected.jsonl."""

    by_kind: dict[str, int]
    first: list[dict[str, Any]]


@dataclass(frozen=True)
class Log:
    """train.log: its last lines, and the time at which the first and the last line were written."""

    tail: list[str]
    began: str
    ended: str


@dataclass(frozen=True)
class Run:
    """What a run's folder holds, secrets left out."""

    name: str
    curves: dict[str, Curve]
    """By the metric's name; each has at least one point."""
    config: dict[str, Any]
    outcome: dict[str, Any]
    facts: dict[str, Any]
    sentences: list[Sentence]
    errors: Errors
    worst: list[dict[str, Any]]
    log: Log
    missing: list[str]
    """A sentence for each part that is not there or cannot be read."""

    @property
    def updates(self) -> int:
        """The last update on record."""
        ends = [curve.updates[-1] for curve in self.curves.values()]
        return int(max([number(self.outcome.get("update")) or 0, *ends]))


@dataclass(frozen=True)
class KeyFigure:
    """A quantity at the start and at the end."""

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
    """Reads one folder; notes what is missing."""

    folder: Path
    missing: list[str] = field(default_factory=list)

    def structure(self, path: Path, empty: Kind, what: str) -> Kind:
        """JSON or YAML of ``empty``'s type; ``empty`` if it is not there, which is noted if ``what`` names a loss."""
        name = path.relative_to(self.folder)
        if not path.is_file():
            if what:
                self.missing.append(f"{name} is not there: {what}")
            return empty
        try:
            text = path.read_text(encoding="utf-8")
            found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        except (ValueError, yaml.YAMLError) as error:
            self.missing.append(f"{name} cannot be read ({' '.join(str(error).split())[:200]})")
            return empty
        if isinstance(found, type(empty)):
            return redacted(found)
        self.missing.append(f"{name} holds something else than it should")
        return empty

    def records(self, name: str, what: str) -> Iterator[dict[str, Any]]:
        """The objects of a file of JSON lines, one at a time."""
        path = self.folder / name
        if not path.is_file():
            self.missing.append(f"{name} is not there: {what}")
            return
        broken = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    broken += line.endswith(
                        b"\n"
                    )  # one without an end is being written, or was when the run was killed
                    continue
                if isinstance(record, dict):
                    yield record
                else:
                    broken += 1
        if broken:
            self.missing.append(f"{name} has {figure(broken)} line(s) that cannot be read")

    def uri(self, path: Path, media_type: str) -> str:
        """A file as a ``data:`` URI, empty if it is not there."""
        if not path.is_file():
            return ""
        return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def number(value: Any) -> float | None:
    """``value`` if it is a finite number, of a size that can be drawn."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and -1e300 < value < 1e300 else None


def read_run(run_dir: Path) -> Run:
    """Reads a run's folder, whole or in part, ended or not.

    Raises:
        DataError: it is no run's folder: neither metrics.jsonl nor config.yaml is there.
    """
    if not any((run_dir / name).is_file() for name in ("metrics.jsonl", "config.yaml")):
        below = sorted(path.parent for path in run_dir.glob("runs/*/config.yaml"))
        example = below[-1] if below else "training/runs/<run_name>"
        state = "holds neither metrics.jsonl nor config.yaml" if run_dir.is_dir() else "there is no such folder"
        raise DataError(f"{run_dir} is not a run: {state}. Give the folder of one run, such as {example}.")
    reader = _Reader(run_dir)
    return Run(
        name=run_dir.resolve().name,
        curves=_curves(reader),
        config=reader.structure(run_dir / "config.yaml", {}, "the settings are not known."),
        outcome=reader.structure(run_dir / "outcome.json", {}, "how the run ended is not known."),
        facts=reader.structure(run_dir / "facts.json", {}, "plan, data, versions and machine are not known."),
        sentences=_sentences(reader),
        errors=_errors(reader),
        worst=[row for row in reader.structure(run_dir / "worst_clips.json", [], "") if isinstance(row, dict)],
        log=_log(reader),
        missing=reader.missing,
    )


def _curves(reader: _Reader) -> dict[str, Curve]:
    columns: dict[str, tuple[array[float], array[float]]] = {}
    for record in reader.records("metrics.jsonl", "there are no curves."):
        update = number(record.get("update"))
        for name, value in record.items():
            found = number(value)
            if update is not None and found is not None and name not in ("update", "epoch"):
                updates, values = columns.setdefault(name, (array("d"), array("d")))
                updates.append(update)
                values.append(found)
    if not columns and (reader.folder / "metrics.jsonl").is_file():
        reader.missing.append("metrics.jsonl has no figures yet: there are no curves.")
    return {name: Curve(*column) for name, column in columns.items()}


def _errors(reader: _Reader) -> Errors:
    kinds: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    for record in reader.records("rejected.jsonl", "incidents are not known."):
        kinds[str(record.get("kind", "unknown"))] += 1
        if len(first) < FIRST_ERRORS:
            first.append(redacted(record))
    return Errors(dict(kinds.most_common()), first)


def _log(reader: _Reader) -> Log:
    path = reader.folder / "train.log"
    if not path.is_file():
        reader.missing.append("train.log is not there: what was said is not known.")
        return Log([], "", "")
    times: list[str] = []
    tail: deque[str] = deque(maxlen=LOG_TAIL)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            tail.append(line.rstrip("\n"))
            stamp = line[:19]
            if stamp[4:5] == "-" and stamp[13:14] == ":":  # lines of a traceback have none
                times[1:] = [stamp]
    return Log(redacted(list(tail)), *(times[0], times[-1]) if times else ("", ""))


def _sentences(reader: _Reader) -> list[Sentence]:
    folders = sorted(
        (int(number_of), path)
        for path in reader.folder.glob("samples/update-*")
        if (number_of := path.name.removeprefix("update-")).isdecimal() and path.is_dir()
    )
    if not folders:
        reader.missing.append("samples/ holds nothing: the voice was not heard (each validation adds to it).")
        return []
    shown = [folders[0], *folders[1:][-1:]]
    last = shown[-1][1]
    texts = reader.structure(last / "texts.json", [], "")
    names = [path.name.partition("_")[0] for path in last.glob("*_*")]
    numbers = sorted({int(name) for name in names if name.isdecimal()})
    return [
        Sentence(
            text=str(texts[n]) if n < len(texts) else f"sentence {n + 1}",
            recorded=next(filter(None, (reader.uri(d / f"{n}_recorded.wav", "audio/wav") for _, d in shown[::-1])), ""),
            takes=tuple(_take(reader, update, folder, n) for update, folder in shown),
        )
        for n in numbers
    ]


def _take(reader: _Reader, update: int, folder: Path, n: int) -> Take:
    return Take(
        update,
        reader.uri(folder / f"{n}_speech.wav", "audio/wav"),
        reader.uri(folder / f"{n}_mel.png", "image/png"),
        reader.uri(folder / f"{n}_alignment.png", "image/png"),
    )


def sections(curves: Mapping[str, Curve], last_update: float) -> dict[str, tuple[list[Panel], list[str]]]:
    """Panels by section, and what stayed at one value, in words.

    ``validation/<loss>`` stands in the panel of ``generator/<loss>`` where there is one, the constant frame in the
    mel's panels.
    """
    groups = {part: title for title, parts in SECTIONS.items() for part in parts}
    found: dict[str, tuple[list[Panel], list[str]]] = {title: ([], []) for title in SECTIONS}
    for name in sorted(curves, key=_rank):
        group, _, rest = name.partition("/")
        if name == BASELINE or (group == "validation" and f"generator/{rest}" in curves):
            continue
        panels, level = found.setdefault(groups.get(group, group), ([], []))
        values = curves[name].values
        if group == "data" and min(values) == max(values):
            level.append(f"{name} {figure(values[0])}")
        else:
            panels.append(_panel(name, curves, last_update))
    return {title: content for title, content in found.items() if any(content)}


def _rank(name: str) -> tuple[int, int, str]:
    group, _, rest = name.partition("/")
    order = [part for parts in SECTIONS.values() for part in parts]
    place = LOSSES.index(rest) if rest in LOSSES else len(LOSSES)
    is_loss = group in SECTIONS["Losses"]
    return 0 if is_loss else order.index(group) if group in order else len(order), is_loss * place, name


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
    return Panel(name, svg, [(mark.style, mark.label, figure(mark.curve.values[-1])) for mark in marks])


def key_figures(curves: Mapping[str, Curve]) -> list[KeyFigure]:
    """What a reader wants first, as far as it is known."""
    names = [f"validation/{rest}" for rest in ("mel", "mel_from_text", "kl", "duration")]
    if MEL not in curves:
        names = [f"generator/{rest}" for rest in ("mel", "kl", "duration")]
    found = []
    for name in names:
        if name in curves:
            curve = curves[name]
            note = f"update {figure(curve.updates[0])} → {figure(curve.updates[-1])}"
            before = figure(curve.values[0]) if len(curve.values) > 1 else ""
            unit = UNITS[name.partition("/")[2]]
            found.append(
                KeyFigure(name, unit, before, figure(curve.values[-1]), note if before else note.split(" →")[0])
            )
    speed = next((curve for name, curve in curves.items() if name.endswith("/audio_s_per_s")), None)
    if speed:
        middle = figure(float(f"{median(speed.values):.3g}"))
        found.append(KeyFigure("speed", "s of audio per s", "", middle, "median over the run"))
    return found


def verdict(curves: Mapping[str, Curve]) -> str:
    """Whether the voice learnt anything, in words; empty if there was no validation."""
    if MEL not in curves or BASELINE not in curves:
        return ""
    at, best = curves[MEL].lowest()
    baseline = curves[BASELINE].values[-1]
    words = "is below it: the voice has learnt" if best < baseline else "is NOT below it: the voice has learnt nothing"
    return (
        f"The best constant frame reaches a mel L1 of {figure(baseline)} on the validation clips. The best "
        f"{MEL}, {figure(best)} at update {figure(at)}, {words}."
    )


def best_metric(run: Run) -> str:
    """The curve by which the run chose its best checkpoint; the mel where it does not say, or does not have it."""
    name = f"validation/{run.config.get('best_metric', 'mel')}"
    return name if name in run.curves else MEL


def validation_table(curves: Mapping[str, Curve], metric: str = MEL) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each validation figure at the first, the best (by ``metric``) and the last validation."""
    if MEL not in curves:
        return [], []
    mel, judged = curves[MEL], curves[metric]
    more_is_better = metric.partition("/")[2] in HIGHER_IS_BETTER
    best = (max if more_is_better else min)(range(len(judged.values)), key=judged.values.__getitem__)
    columns = {"first": mel.updates[0], "best": judged.updates[best], "last": mel.updates[-1]}
    rows = []
    for name in sorted((name for name in curves if name.startswith("validation/")), key=_rank):
        values = [curves[name].at(update) for update in columns.values()]
        rows.append([name, *("–" if value is None else figure(value) for value in values)])
    return [f"{word}, update {figure(update)}" for word, update in columns.items()], rows


def flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as lines: ``{"a": {"b": 1}}`` is ``a.b`` and ``1``."""
    if isinstance(values, dict) and values:
        return [
            line for key, inner in values.items() for line in flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, float):
        return [(prefix, figure(values) if math.isfinite(values) and abs(values) >= 1e-4 else f"{values:g}")]
    if isinstance(values, (list, dict)):
        return [(prefix, json.dumps(values, ensure_ascii=False))]
    if values is None or isinstance(values, bool):
        return [(prefix, json.dumps(values))]
    return [(prefix, str(values))]


def render(run: Run) -> str:
    """The page."""
    data = run.facts.get("data") if isinstance(run.facts.get("data"), dict) else {}
    plan = run.facts.get("plan") if isinstance(run.facts.get("plan"), dict) else {}
    heads, rows = validation_table(run.curves, best_metric(run))
    return _template().render(
        run=run,
        state=str(run.outcome.get("outcome", "not known")),
        planned=number(plan.get("total_updates")) if plan else None,
        clips=number(data.get("accepted")) if data else None,
        hours=number(data.get("hours")) if data else None,
        key_figures=key_figures(run.curves),
        verdict=verdict(run.curves),
        sections=sections(run.curves, run.updates),
        best_metric=best_metric(run),
        validation_heads=heads,
        validation_rows=rows,
        facts={str(part): flat(inner) for part, inner in run.facts.items()},
        settings=flat(run.config),
        worst_names=list(dict.fromkeys(name for row in run.worst for name in _figures(row))),
        figures=_figures,
        figure=lambda value: figure(value) if number(value) is not None else str(value),
        first_errors=FIRST_ERRORS,
    )


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    found = row.get("figures")
    return found if isinstance(found, dict) else {}


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # texts and messages are of other people's making
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def media_bytes(sentences: Sequence[Sentence]) -> int:
    """How much of the page is speech and pictures."""
    return sum(
        len(part)
        for sentence in sentences
        for part in (
            sentence.recorded,
            *(uri for take in sentence.takes for uri in (take.speech, take.mel, take.alignment)),
        )
    )
