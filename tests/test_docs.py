"""What README.md and docs/ say of commands, metrics and files holds for the code as it is."""

import ast
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.capacity_plan import table
from vits_trainer.cli.main import COMMANDS
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.options import SCORES
from vits_trainer.config.parser import parse
from vits_trainer.config.train import LossWeights
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.training.objective import Objective

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CALL = re.compile(r"(?:vits-trainer|-m vits_trainer) ([a-z]\w*)(.*)")


def command_lines(page: Path) -> list[tuple[str, str]]:
    """Command and flags of each call in a code block, a table or running text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ *((?:vits-trainer|accelerate launch|torchrun) .*)", text, re.MULTILINE)
    running_text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", running_text)]
    calls = [CALL.search(block) for block in blocks] + [CALL.fullmatch(span) for span in spans]
    return [(call[1], call[2]) for call in calls if call]


CALLS = [pytest.param(*call, id=f"{page.name}: {' '.join(call)}") for page in PAGES for call in command_lines(page)]


def test_calls_are_found() -> None:
    assert len(CALLS) > 25


@pytest.mark.parametrize(("command", "flags"), CALLS)
def test_command_line_parses(command: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(flags, comments=True)
    if "--help" in words:
        words.remove("--help")
    write_yaml_examples(tmp_path)
    monkeypatch.chdir(tmp_path)
    config_class, _ = COMMANDS[command]
    assert isinstance(parse(command, config_class, words), config_class)


def write_yaml_examples(folder: Path) -> None:
    """The files that the pages show, each named by its first line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, content in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, re.DOTALL):
            (folder / name).write_text(content, encoding="utf-8")


def test_summary_of_the_estimate_is_that_of_its_command() -> None:
    page = (ROOT / "docs/scaling.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in table().splitlines()]
    values = {row[1]: row[3] for row in rows}
    clips, size = values["clips"], values["bytes as PCM, as FLAC"].split(",")[0]
    epochs = [row[3] for row in rows if row[1] == "one epoch"]
    assert f"{clips} clips, {size} as PCM, {epochs[1].removesuffix(' min')} to {epochs[0]}utes per epoch" in page


def test_launcher_files_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"accelerate_configs/\w+\.yaml", page.read_text("utf-8"))}
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def documented_metrics() -> set[str]:
    names: set[str] = set()
    for line in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            first, *others = re.findall(r"`([^`]+)`", line.split("|")[1])
            group = first.partition("/")[0]
            names |= {first, *(group + name if name.startswith("/") else name for name in others)}
    return names


def loss_names() -> set[str]:
    objective = Objective("vits", LossWeights(), AudioSpec(16000, 1024, 1024, 256), 32)
    waveform = torch.zeros(1, 1, 8192)
    denominators = SimpleNamespace(clips=1)
    pair = SimpleNamespace(recorded=waveform, generated=waveform, denominators=denominators)
    judges = Discriminator(DiscriminatorShape(periods=(2,), channels_divisor=8))
    of_discriminator = objective.discriminator_losses(judges, pair)  # type: ignore[arg-type]
    return {f"generator/{name}" for name in objective.generator_loss_names} | {
        f"discriminator/{name}" for name in of_discriminator
    } | {f"validation/{figure}" for figures in SCORES.values() for figure in figures}


def as_written(part: ast.AST) -> str:
    """A string constant as itself, an f-string's value as <>, all else as nothing."""
    if isinstance(part, ast.FormattedValue):
        return "<>"
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""


def written_names() -> set[str]:
    """Every string of the package, in which a metric's name would stand, and grad_norm/<> for both networks."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "vits_trainer").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {"".join(map(as_written, node.values if isinstance(node, ast.JoinedStr) else [node])) for node in nodes}
    return names | ({"grad_norm/generator", "grad_norm/discriminator"} if "grad_norm/<>" in names else set())


def spelled_out(name: str) -> list[str]:
    """``samples/<n>/{speech,mel}`` as samples/<>/speech and samples/<>/mel."""
    name = re.sub(r"<\w+>", "<>", name)
    braces = re.search(r"\{(.*)\}", name)
    return [name.replace(braces[0], word) for word in braces[1].split(",")] if braces else [name]


def test_every_documented_metric_is_written_by_the_code() -> None:
    names = {name for documented in documented_metrics() for name in spelled_out(documented)}
    assert len(names) > 20
    assert names - loss_names() - written_names() == set()


def test_every_loss_is_documented() -> None:
    assert loss_names() - documented_metrics() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / link).resolve() for link in links if not re.match(r"\w+:", link)]
    missing = [str(target.relative_to(ROOT)) for target in targets if not target.exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_lead_to_headings(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        f"{link}#{anchor}"
        for link, anchor in links
        if ":" not in link and anchor not in anchors(page.parent / link if link else page)
    ]
    assert missing == []


FOLDERS = ("vits_trainer", "experiments", "accelerate_configs", "tests")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
PAGE_NAME = re.compile(r'docs/(\w+\.\w+)(?:, "([^"]+)")?')
"""A page, and perhaps the start of a heading of it, as code and messages name them."""


def test_pages_that_the_code_names_exist() -> None:
    texts = {path: path.read_text("utf-8") for path in SOURCES if path.suffix in {".py", ".sh", ".yaml", ".j2"}}
    named = [(path, *found) for path, text in texts.items() for found in PAGE_NAME.findall(text)]
    assert len(named) > 20
    missing = [
        f"{path.relative_to(ROOT)}: docs/{page} {heading}".rstrip()
        for path, page, heading in named
        if not (ROOT / "docs" / page).is_file() or f"# {heading}" not in (ROOT / "docs" / page).read_text("utf-8")
    ]
    assert missing == []


def test_quoted_messages_are_those_of_the_code() -> None:
    """Each part of a message in a first column, between values such as numbers."""
    code = " ".join(path.read_text("utf-8") for path in SOURCES if path.suffix == ".py")
    code = re.sub(r"\s+", " ", re.sub(r'"\s*\n?\s*f?"', "", code))
    columns = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    messages = [message for column in columns for message in re.findall(r"`([^`]* [^`]*)`", column)]
    parts = [part.strip() for message in messages for part in re.split(r"\.\.\.|cuda:\d+|\d+|“.*?”|[:;(),.]", message)]
    quoted = [part for part in parts if len(part) >= 12 and part != "generator/kl is nan"]
    assert len(quoted) > 20
    assert [part for part in quoted if part not in code] == []


def test_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
    assert sum(len(page.read_text("utf-8").split()) for page in (ROOT / "docs").glob("*.md")) <= 15_000


def test_no_instruction_installs_this_package_from_a_registry() -> None:
    """Its name is not registered: whoever registers it would run code on the reader's machine."""
    folders = (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "Dockerfile", *SOURCES)
    files = [path for path in folders if path.is_file() and path.suffix in {".py", ".md", ".j2", ".yaml", ".ipynb", ""}]
    asked = re.compile(r"(?:pip|pipx|uvx?)(?: \w+)* ['\"]?vits-trainer(?:\[[\w,]+\])?['\"]?(?! @)(?=[\s'\"`.)]|$)")
    assert [path.name for path in files if asked.search(path.read_text("utf-8", errors="replace"))] == []


def test_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"`{command}`" not in readme] == []
