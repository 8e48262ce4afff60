"""The HTML page of a run: complete, self-contained, and safe against injected scripts."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.support.audio import encode, voice
from tests.support.voices import prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.tracking import html_report

EVIL = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>\"'>&amp;"
VOID = {"meta", "img", "wbr", "br", "hr", "input", "link"}
HUB_KEY = "hf_abcdefghijklmnopqrstuvwx"


@dataclass
class Page(HTMLParser):
    """Parsed HTML: tags with attributes, visible text, and open tags."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " * (tag in ("td", "th", "dt", "dd", "li"))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def html_of(run_dir: Path) -> str:
    assert main(["report", str(run_dir)]) == 0
    return (run_dir / "report.html").read_text(encoding="utf-8")


def write_run(folder: Path, lines: list[dict[str, Any]], **files: Any) -> Path:
    """Creates a run's folder with metrics.jsonl, and other JSON files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def validated(update: int, mel: float, baseline: float = 1.5, **others: float) -> dict[str, float]:
    scalars = {"mel": mel, "constant_frame_mel": baseline} | others
    return {"update": update, "epoch": 0} | {f"validation/{name}": value for name, value in scalars.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    prepared_folder(folder)
    changes = {"max_updates": 4, "validate_every_updates": 2, "validation_fraction": 0.2, "validation_samples": 2}
    assert main(["train_vits", *train_flags(folder, **changes)]) == 0
    return folder / "training/runs/run"


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A writable copy of the trained run, without the files that earlier versions did not write."""
    new_files = ("wandb", "facts.json", "texts.json", "*_recorded.wav")
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns(*new_files)))


def test_complete_run_shows_sentences_recordings_and_facts(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("wandb")))
    page = parsed(html_of(run))
    texts = json.loads((run / "samples/update-000004/texts.json").read_text())
    for kind in ("recording", "update 2", "update 4"):
        assert {f"{kind}: {text}" for text in texts} <= {one["aria-label"] for one in page.all("audio")}
    assert "versions" in page.text
    assert "10 clips" in page.text


def test_page_of_a_trained_run_shows_metrics_settings_and_log(run_dir: Path) -> None:
    page = parsed(html_of(run_dir))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line} - {"update", "epoch"}
    assert [name for name in names if name not in page.text] == []
    assert " done " in page.text
    assert "4 updates" in page.text
    final = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{final['validation/mel']:.4g}" in page.text
    assert f"{final['generator/kl']:.4g}" in page.text
    changed, default = map(int, re.findall(r"(\d+) settings", page.text))
    assert changed + default > 60
    assert 10 < changed < default
    assert " max_updates 4 " in page.text
    last_line = " ".join((run_dir / "train.log").read_text().splitlines()[-1].split())
    assert last_line in page.text


def test_samples_of_the_first_and_the_last_validation_are_embedded_unchanged(run_dir: Path) -> None:
    assert sorted(path.name for path in (run_dir / "samples").iterdir()) == ["update-000002", "update-000004"]
    page = parsed(html_of(run_dir))
    shown = [base64.b64decode(one["src"].partition(",")[2]) for one in page.all("audio")]
    files = [run_dir / f"samples/update-00000{u}/{n}_speech.wav" for n in (0, 1) for u in (2, 4)]
    assert shown == [file.read_bytes() for file in files]
    pictures = [base64.b64decode(one["src"].partition(",")[2]) for one in page.all("img")]
    kinds = ("mel", "alignment")
    files = [run_dir / f"samples/update-00000{u}/{n}_{kind}.png" for n in (0, 1) for kind in kinds for u in (2, 4)]
    assert pictures == [file.read_bytes() for file in files]


def test_validations_in_between_can_be_heard(run_dir: Path) -> None:
    for update in range(10, 31):
        folder = run_dir / f"samples/update-{update:06}"
        shutil.copytree(run_dir / "samples/update-000002", folder)
        (folder / "0_speech.wav").write_bytes(b"speech of %d" % update)
    page = parsed(html_of(run_dir))
    heard = [base64.b64decode(one["src"].partition(",")[2]) for one in page.all("audio")]
    assert [content for content in heard if content.startswith(b"speech of")] == [
        b"speech of 30", *(b"speech of %d" % update for update in (10, 13, 16, 19, 22, 25, 28))
    ]  # fmt: skip
    assert "7 validations in between" in page.text


def test_header_counts_what_was_trained_on_and_links_to_the_online_run(run_dir: Path) -> None:
    facts = {"plan": {"training_clips": 11, "validation_clips": 1}, "data": {"accepted": 100, "hours": 2.0}}
    (run_dir / "facts.json").write_text(json.dumps(facts))
    (run_dir / "wandb.json").write_text('{"id": "x", "attempts": 1, "url": "https://example.org/run"}')
    page = parsed(html_of(run_dir))
    assert "trained on 11 clips, validated on 1 data set: 100 clips 2 hours of speech" in page.text
    assert "Voice: " in page.text
    assert [one["href"] for one in page.all("a") if not one["href"].startswith("#")] == ["https://example.org/run"]
    (run_dir / "wandb.json").write_text('{"id": "x", "attempts": 1, "url": "javascript:alert(1)"}')
    assert "javascript" not in html_of(run_dir)


def test_sentences_and_recordings_are_shown_if_present(run_dir: Path) -> None:
    assert "sentence 1" in html_of(run_dir)
    last = run_dir / "samples/update-000004"
    (last / "texts.json").write_text(json.dumps(["The first one.", "Die zweite, ganz schön."]))
    (last / "1_recorded.wav").write_bytes(b"RIFF recording")
    html = html_of(run_dir)
    page = parsed(html)
    assert "sentence 1" not in page.text
    assert page.text.index("The first one.") < page.text.index("Die zweite, ganz schön.")
    labels = [one["aria-label"] for one in page.all("audio")]
    assert labels == [
        "update 2: The first one.",
        "update 4: The first one.",
        "recording: Die zweite, ganz schön.",
        "update 2: Die zweite, ganz schön.",
        "update 4: Die zweite, ganz schön.",
    ]


def test_sizes_are_printed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html_of(run_dir)
    line = capsys.readouterr().out.splitlines()[-1]
    page_mb, media_mb = re.findall(r"([\d.]+) MB", line)
    size = (run_dir / "report.html").stat().st_size
    page = parsed((run_dir / "report.html").read_text())
    media = sum(len(one["src"]) for kind in ("audio", "img") for one in page.all(kind))
    assert (page_mb, media_mb) == (f"{size / 1e6:.1f}", f"{media / 1e6:.1f}")
    assert float(media_mb) > 0.1


def test_page_loads_no_resources_and_runs_no_scripts(run_dir: Path) -> None:
    html = html_of(run_dir)
    page = parsed(html)
    references = [
        (tag, name, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "data", "action", "background", "xlink:href", "manifest")
    ]
    assert len(references) > 15
    assert [one for one in references if not one[2].startswith(("data:image/png;", "data:audio/wav;", "#"))] == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"} == set()
    assert [name for _, attributes in page.tags for name in attributes if name.startswith("on")] == []
    assert re.findall(r"url\(|@import", html) == []
    anchors = {one["href"] for one in page.all("a")}
    assert anchors <= {f"#{attributes.get('id')}" for _, attributes in page.tags}
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    expected = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    assert policy.startswith(expected)


def test_heading_levels_are_consecutive_and_images_have_alt_texts(run_dir: Path) -> None:
    page = parsed(html_of(run_dir))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert [pair for pair in pairwise(levels) if pair[1] > pair[0] + 1] == []
    assert [one for one in page.all("img") if len(one.get("alt", "")) < 10] == []
    svgs = page.all("svg")
    assert len(svgs) > 10
    assert {one["role"] for one in svgs} == {"img"}


def evil_run(folder: Path) -> Path:
    """A run in which every text is an injection attempt."""
    run = write_run(
        folder,
        [{"update": n, "epoch": 0, f"generator/{EVIL}": n, f"data/{EVIL}": 1, EVIL: n} for n in (1, 2)],
        outcome={"outcome": f"failed: {EVIL}", "update": 2},
        facts={EVIL: {EVIL: EVIL}, "machine": EVIL, "data": {"accepted": EVIL, "hours": [EVIL]}, "plan": EVIL},
        worst_clips=[{"clip": EVIL, "text": EVIL, "heard": EVIL, "figures": {EVIL: EVIL}}],
    )
    incident = {"update": EVIL, "clip": EVIL, "kind": EVIL, "message": EVIL, "stage": EVIL, "traceback": EVIL}
    (run / "rejected.jsonl").write_text(json.dumps(incident) + "\n")
    (run / "config.yaml").write_text(yaml.safe_dump({EVIL: {EVIL: [EVIL]}}))
    (run / "train.log").write_text(f"{EVIL}\n")
    samples = run / "samples/update-000002"
    samples.mkdir(parents=True)
    (samples / "texts.json").write_text(json.dumps([EVIL]))
    for name in ("0_mel.png", "0_speech.wav"):
        (samples / name).write_bytes(b"<script>")
    return run


def test_malicious_texts_are_escaped(tmp_path: Path) -> None:
    html = html_of(evil_run(tmp_path / "run <script>alert(3)<"))
    page = parsed(html)
    assert page.all("script") == []
    assert [one["src"][:16] for one in page.all("img")] == ["data:image/png;b"]
    assert [one for _, attributes in page.tags for one in attributes if one.startswith("on")] == []
    shown = page.text.replace("\u200b", "")
    # in the state, curves, constants, worst clip, sample, incident, facts, settings and log
    assert shown.count("alert(1)") >= 20
    assert "run <script>alert(3)<" in shown
    assert "<script" not in html


def test_secrets_are_redacted(run_dir: Path) -> None:
    settings = yaml.safe_load((run_dir / "config.yaml").read_text()) | {"wandb_tags": [HUB_KEY], "hf_token": "my own"}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(settings))
    with (run_dir / "train.log").open("a") as log:
        log.write(f"downloading with {HUB_KEY}\n")
    (run_dir / "rejected.jsonl").write_text(json.dumps({"update": 1, "kind": "odd", "message": HUB_KEY}) + "\n")
    (run_dir / "facts.json").write_text(json.dumps({"data": {"source": f"https://user:{HUB_KEY}@hub"}}))
    html = html_of(run_dir)
    assert HUB_KEY not in html
    assert "my own" not in html
    assert html.count("[redacted]") == 5


def test_facts_are_shown_and_summarized_in_the_header(run_dir: Path) -> None:
    facts = {
        "plan": {"total_updates": 12_000, "world_size": 1, "tunes": True},
        "machine": "8 processes on H100, bf16",
        "data": {"accepted": 13_100, "hours": 23.9167, "source": {"revision": None}, "rejected": {}},
    }
    (run_dir / "facts.json").write_text(json.dumps(facts))
    page = parsed(html_of(run_dir))
    assert "4 of 12,000 updates" in page.text
    assert "13,100 clips" in page.text
    assert "23.92 hours of speech" in page.text
    assert "8 processes on H100, bf16" in page.text
    assert html_report.flat(facts["plan"] | facts["data"]) == [
        ("total_updates", "12000"),
        ("world_size", "1"),
        ("tunes", "true"),
        ("accepted", "13100"),
        ("hours", "23.92"),
        ("source.revision", "null"),
        ("rejected", "{}"),
    ]


def test_worst_clips_are_a_table_with_all_metrics(run_dir: Path) -> None:
    rows = [
        {"clip": "clip7", "text": "one boat", "heard": "won goat", "figures": {"cer": 0.25, "mel": 1.5}},
        {"clip": "clip9", "figures": {"f0": 17}},
    ]
    (run_dir / "worst_clips.json").write_text(json.dumps(rows))
    html = html_of(run_dir)
    after_heading = html.partition("Worst clips</h3>")[2]
    table = ElementTree.fromstring(re.findall(r"<table.*?</table>", after_heading, re.DOTALL)[0])
    cells = [[" ".join("".join(cell.itertext()).split()) for cell in row] for row in table.iter("tr")]
    assert cells == [
        ["clip", "text", "transcript", "cer", "mel", "f0"],
        ["clip7", "one boat", "won goat", "0.25", "1.5", "–"],
        ["clip9", "–", "–", "–", "–", "17"],
    ]


def test_errors_are_counted_and_the_first_fifty_shown(run_dir: Path) -> None:
    kinds = ["unreadable"] * 80 + ["too-short"] * 1420
    lines = [json.dumps({"update": n, "clip": f"bad{n}.", "kind": kind}) for n, kind in enumerate(kinds)]
    (run_dir / "rejected.jsonl").write_text("\n".join(lines) + "\n")
    page = parsed(html_of(run_dir))
    assert "too-short 1,420" in page.text
    assert "unreadable 80" in page.text
    assert "The first 50 of 1,500" in page.text
    assert "bad49." in page.text
    assert "bad50." not in page.text


def test_validation_is_compared_at_first_best_and_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [validated(0, 2.0, kl=5), validated(10, 0.5, kl=7), validated(20, 0.75, kl=6)])
    heads, rows = html_report.validation_table(html_report.read_run(run).curves)
    assert heads == ["first, update 0", "best, update 10", "last, update 20"]
    assert rows == [
        ["validation/mel", "2", "0.5", "0.75"],
        ["validation/kl", "5", "7", "6"],
        ["validation/constant_frame_mel", "1.5", "1.5", "1.5"],
    ]
    assert html_report.validation_table(html_report.read_run(run).curves, "validation/kl")[0][1] == "best, update 0"
    keys = {key.name: (key.before, key.after) for key in html_report.key_metrics(html_report.read_run(run).curves)}
    assert keys == {"validation/mel": ("2", "0.75"), "validation/kl": ("5", "6")}


@pytest.mark.parametrize(("baseline", "text"), [(0.6, "is below it: the voice has learnt."), (0.5, "is NOT below it")])
def test_best_validation_is_compared_with_the_constant_frame(tmp_path: Path, baseline: float, text: str) -> None:
    run = write_run(tmp_path / "run", [validated(10, 0.5, baseline), validated(20, 0.75, baseline)])
    assert f"0.5 at update 10, {text}" in parsed(html_of(run)).text


def test_training_and_validation_of_a_loss_share_a_panel_with_the_constant_frame(tmp_path: Path) -> None:
    training = [{"update": n, "epoch": 0, "generator/mel": 4.0 - n, "generator/kl": 9.0} for n in (1, 2, 3)]
    run = write_run(tmp_path / "run", [*training, validated(3, 1.25, kl=4, mel_from_text=2.0)])
    sections = html_report.sections(html_report.read_run(run).curves, 3)
    assert list(sections) == ["Losses"]
    panels = {panel.name: panel for panel in sections["Losses"][0]}
    assert list(panels) == ["generator/mel", "validation/mel_from_text", "generator/kl"]
    assert panels["generator/mel"].legend == [
        ("line", "training", "1"),
        ("dots", "validation", "1.25"),
        ("rule", "constant frame", "1.5"),
    ]
    assert [label for _, label, _ in panels["generator/kl"].legend] == ["training", "validation"]
    svg = ElementTree.fromstring(panels["generator/mel"].svg)
    assert svg.findtext("circle/title") == "validation, update 3: 1.25"


def test_constant_counts_are_listed_as_text(tmp_path: Path) -> None:
    lines = [{"update": n, "data/rejected": 3, "data/trained": 8 * n, "odd/name": 1.5} for n in (1, 2)]
    sections = html_report.sections(html_report.read_run(write_run(tmp_path / "run", lines)).curves, 2)
    assert [panel.name for panel in sections["Data"][0]] == ["data/trained"]
    assert sections["Data"][1] == ["data/rejected 3"]
    assert [panel.name for panel in sections["odd"][0]] == ["odd/name"]


PARTS = ["metrics.jsonl", "config.yaml", "outcome.json", "rejected.jsonl", "train.log", "samples/", "facts.json"]


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_is_named_and_the_rest_shown(
    run_dir: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "facts.json").write_text('{"machine": "one CPU"}')
    complete = parsed(html_of(run_dir))
    assert "Missing from this report" not in complete.text
    assert capsys.readouterr().out.count("\n") == 1
    path = run_dir / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = parsed(html_of(run_dir))
    notes = page.text.partition("Missing from this report")[2]
    assert part in notes[:200]
    assert part in capsys.readouterr().out
    assert [other for other in PARTS if other != part and f"{other} is missing" in notes] == []
    assert len(page.text) > len(complete.text) / 4


@pytest.mark.parametrize("content", ["", '{"update": 1, "epoch": 0}\n', '{"update": 1, "epo'])
def test_run_without_metrics_has_a_page(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    page = parsed(html_of(tmp_path))
    assert "metrics.jsonl has no metrics yet" in page.text
    assert "unreadable" not in page.text
    assert page.all("svg") == []


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("outcome.json", b'{"outcome": ', "outcome.json: cannot be read (Expecting value"),
        ("outcome.json", b"[1]", "outcome.json: expected object, found array"),
        ("config.yaml", b"a: [", "config.yaml: cannot be read (while parsing"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml: cannot be read ("),
        ("facts.json", b"\xff", "facts.json: cannot be read ("),
        ("worst_clips.json", b'{"clip": 1}', "worst_clips.json: expected array, found object"),
        ("metrics.jsonl", b'{"update": 1, "generator/mel": 2}\n{"upd\n[3]\n\xff\n', "metrics.jsonl has 3 unread"),
        ("rejected.jsonl", b"null\n", "rejected.jsonl has 1 unreadable line"),
        ("train.log", b"\xff\xfe no UTF-8\n", "no UTF-8"),
        ("samples/update-000004/texts.json", b'"one"', "samples/update-000004/texts.json: expected array, found str"),
    ],
)
def test_damaged_part_is_named_and_the_rest_shown(run_dir: Path, name: str, content: bytes, text: str) -> None:
    (run_dir / name).write_bytes(content)
    page = parsed(html_of(run_dir))
    assert text in page.text
    assert "Validation" in page.text
    assert len(page.all("audio")) == 4


def test_values_that_are_not_finite_numbers_are_skipped(tmp_path: Path) -> None:
    values = [1.5, float("nan"), float("inf"), None, "2", True, 10**400, 2.5]
    run = write_run(tmp_path / "run", [{"update": n, "generator/mel": value} for n, value in enumerate(values)])
    curve = html_report.read_run(run).curves["generator/mel"]
    assert (list(curve.updates), list(curve.values)) == ([0, 7], [1.5, 2.5])


def test_missing_audio_or_image_is_reported(run_dir: Path) -> None:
    (run_dir / "samples/update-000002/0_speech.wav").unlink()
    (run_dir / "samples/update-000004/1_mel.png").unlink()
    page = parsed(html_of(run_dir))
    assert page.text.count("no audio") == 1
    assert page.text.count("no image") == 1


def test_large_update_numbers_are_sorted_as_numbers(run_dir: Path) -> None:
    (run_dir / "samples/update-000004").rename(run_dir / "samples/update-1000000")
    (run_dir / "samples/update-999999").mkdir()
    (run_dir / "samples/update-torn").mkdir()
    (run_dir / "samples/update-1000000/2nd_speech.wav").touch()
    syntheses = html_report.read_run(run_dir).sentences[0].syntheses
    assert [one.update for one in syntheses] == [2, 1_000_000]


def test_folder_that_is_not_a_run_gives_a_one_line_error(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "training"
    (other / "runs").mkdir(parents=True)
    for path, text in ((other, "it has neither metrics.jsonl nor config.yaml"), (other / "no", "no such folder")):
        assert main(["report", str(path)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"{path} is not a run: " in err
        assert text in err
        assert "such as training/runs/<run_name>" in err
        assert not (path / "report.html").exists()
    run_dir.rename(other / "runs/mine")
    assert main(["report", str(other)]) == 2
    assert f"such as {other / 'runs/mine'}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("report", "--run_dir, such as training/runs/"),
        ("export", "--checkpoint, such as training/checkpoints/checkpoint-"),
    ],
)
def test_missing_positional_argument_is_named(
    command: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 2
    assert f"give {text}" in capsys.readouterr().err


def test_output_path_is_configurable(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new/page.html"
    for _ in range(2):
        assert main(["report", str(run_dir), "--output", str(path)]) == 0
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]
    assert not (run_dir / "report.html").exists()
    capsys.readouterr()
    for wrong in (path.parent, path / "below a file.html"):
        assert main(["report", str(run_dir), "--output", str(wrong)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["new", "run"]


def test_page_size_is_independent_of_run_length(tmp_path: Path) -> None:
    short, long = (
        write_run(tmp_path / str(n), [{"update": u, "generator/mel": 1 + u % 7, "grad_norm/a": u} for u in range(n)])
        for n in (400, 100_000)
    )
    sizes = [len(html_of(run)) for run in (short, long)]
    assert sizes[1] < sizes[0] * 1.2
    assert "100,000" not in parsed((long / "report.html").read_text()).text
    assert "99,999 updates" in parsed((long / "report.html").read_text()).text


def test_report_imports_no_heavy_package(run_dir: Path) -> None:
    code = (
        "import sys, vits_trainer.cli.main as m; assert m.main(sys.argv[1:]) == 0; "
        "print({'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib', 'wandb'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "report", str(run_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert ended.stdout.splitlines()[-1] == "set()"


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours by WCAG 2."""

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
        parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("000", "fff") == pytest.approx(21)
    assert contrast("777777", "ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_have_sufficient_contrast(tmp_path: Path, scheme: int) -> None:
    html = html_of(write_run(tmp_path, []))
    colours = dict(re.findall(r"--([\w-]+): #(\w+);", re.findall(r":root \{(.*?)\}", html, re.DOTALL)[scheme]))
    assert len(colours) > 15
    texts = [("ink", "page"), ("ink", "card"), ("soft", "page"), ("soft", "card"), ("ink", "warn-page")]
    texts += [(kind, f"{kind}-page") for kind in ("good", "warn", "bad", "calm")]
    assert [pair for pair in texts if contrast(*(colours[name] for name in pair)) < 4.5] == []
    shapes = [(kind, "card") for kind in ("training", "validation", "level")]
    assert [pair for pair in shapes if contrast(*(colours[name] for name in pair)) < 3] == []


def crowded(run: Path) -> Path:
    """Fills all parts of the page, with long texts that cannot be wrapped."""
    long = "x" * 300
    last = run / "samples/update-000004"
    (last / "texts.json").write_text(json.dumps([long, "Two."]))
    (last / "0_recorded.wav").write_bytes(encode(voice(0.8, 16000), 16000))
    facts = {"plan": {long: long, "total_updates": 9}, "machine": long, "data": {"accepted": 1e9, "hours": 123_456.7}}
    (run / "facts.json").write_text(json.dumps(facts))
    metrics = {f"figure_{n}": n / 7 for n in range(9)}
    (run / "worst_clips.json").write_text(json.dumps([{"clip": long, "text": long, "heard": long, "figures": metrics}]))
    incident = {"update": 1, "clip": long, "kind": long, "message": f"{EVIL}{long}", "traceback": long}
    (run / "rejected.jsonl").write_text(json.dumps(incident) + "\n")
    (run / "outcome.json").write_text(json.dumps({"outcome": f"failed: {long}", "update": 4}))
    (run / "config.yaml").write_text(yaml.safe_dump({long: long}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 5, f"generator/{long}": 1, "grad_norm/generator": 1e37}) + "\n")
    with (run / "train.log").open("a") as file:
        file.write(long + "\n")
    return run


OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
DURATIONS = "[...document.querySelectorAll('audio')].map(one => one.duration)"
LOADED = "[...document.querySelectorAll('audio')].every(one => one.readyState >= 1 || one.error)"
WIDTHS = "[...document.images].map(one => one.complete ? one.naturalWidth : 0)"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
STROKE = "getComputedStyle(document.querySelector('svg .line')).stroke"


@pytest.mark.parametrize("fill", [lambda run: run, crowded], ids=["unchanged", "crowded"])
@pytest.mark.parametrize("width_px", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(
    browser: Any, run_dir: Path, scheme: str, width_px: int, fill: Callable[[Path], Path]
) -> None:
    html_of(fill(run_dir))
    page = browser.new_page(viewport={"width": width_px, "height": 900}, color_scheme=scheme)
    console: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = (run_dir / "report.html").as_uri()
    page.goto(address)
    assert page.evaluate(OVERFLOW) <= 0
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.wait_for_function(LOADED)
    assert page.evaluate(OVERFLOW) <= 0
    durations_s = page.evaluate(DURATIONS)
    assert len(durations_s) >= 4
    assert [one for one in durations_s if one is None or not 0.02 < one < 60] == []
    assert min(page.evaluate(WIDTHS)) > 100
    assert console == []
    assert [url for url in requests if url != address and not url.startswith("data:")] == []
    dark = scheme == "dark"
    assert page.evaluate(BACKGROUND) == ("rgb(20, 23, 26)" if dark else "rgb(247, 247, 245)")
    assert page.evaluate(STROKE) == ("rgb(116, 176, 244)" if dark else "rgb(31, 102, 181)")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.close()


def test_browser_test_detects_scripts_requests_and_overflow(browser: Any, tmp_path: Path) -> None:
    """The same checks on a page that violates all of them."""
    path = tmp_path / "bad.html"
    path.write_text("<div style='width: 3000px'>x</div><img src='missing.png'><script>console.log('ran')</script>")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    console: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    page.on("request", lambda request: requests.append(request.url.rpartition("/")[2]))
    page.goto(path.as_uri())
    assert page.evaluate(OVERFLOW) > 0
    assert "ran" in console
    assert "missing.png" in requests
    page.close()


def test_links_out_of_the_folder_are_not_followed(run_dir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("2026-01-01 10:00:00 precious\n")
    speech = run_dir / "samples/update-000004/0_speech.wav"
    for path in (speech, run_dir / "train.log", run_dir / "outcome.json"):
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    page = html_report.render(html_report.read_run(run_dir))
    assert "precious" not in page
    assert base64.b64encode(secret.read_bytes()).decode() not in page


def test_aliases_in_a_configuration_are_named_at_once(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("a: &a [x]\nb: *a\n")
    assert "config.yaml: line 2: aliases (*a) are not supported" in html_report.read_run(run_dir).missing
