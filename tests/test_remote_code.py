"""Nothing that is read is run: voices and recognisers that bring Python are opened at a terminal that says yes.

The rule, which the first test holds: each ``from_pretrained`` and ``pipeline`` says ``trust_remote_code=False``, also
those of classes that never run code, as a class may be exchanged for another one; and no Auto class reads a voice.
"""

import ast
import inspect
import json
import os
import pty
import select
import shutil
import time
from pathlib import Path

import datasets
import pytest

import vits_trainer
from tests.reliability.rows import write_voice
from tests.support.fork_server import python
from tests.support.limits import HANG_S
from tests.support.voices import prepared_folder

pytestmark = pytest.mark.slow

PACKAGE = Path(vits_trainer.__file__).parent
ASKED = ("from_pretrained", "pipeline")
AUTO = {
    "AutoConfig": "own.Config",
    "AutoModel": "own.Model",
    "AutoModelForTextToWaveform": "own.Model",
    "AutoModelForCTC": "own.Model",
    "AutoTokenizer": ["own.Tokenizer", None],
    "AutoFeatureExtractor": "own.Extractor",
    "AutoProcessor": "own.Extractor",
}
PROGRAM = """
open({mark!r}, "w").close()
from transformers import VitsConfig, VitsModel, VitsTokenizer
class Config(VitsConfig): pass
class Model(VitsModel): pass
class Tokenizer(VitsTokenizer): pass
class Extractor: pass
"""


def faults(source: str) -> list[str]:
    """Calls that may run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.alias) and node.name.startswith("Auto"):
            found.append(f"{node.name} is imported")
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        said = [getattr(word.value, "value", "?") for word in node.keywords if word.arg == "trust_remote_code"]
        if said not in ([], [False]) or (name in ASKED and not said):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_call_refuses_remote_code(path: Path) -> None:
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "from transformers import AutoConfig",
        "VitsModel.from_pretrained(name)",
        "VitsModel.from_pretrained(name, trust_remote_code=True)",
        "pipeline('x', model=name, trust_remote_code=asked)",
        "load_dataset(name, trust_remote_code=True)",
    ],
)
def test_call_that_may_run_code_is_seen(line: str) -> None:
    assert len(faults(line)) == 1


def test_data_sets_run_no_code_any_more() -> None:
    """What datasets before 4.0 asked for; were it back, load_dataset would have to refuse, too."""
    assert "trust_remote_code" not in inspect.signature(datasets.load_dataset).parameters


def planted(folder: Path, mark: Path, files: tuple[str, ...], kind: str | None = "own") -> Path:
    """Puts a program, and the request to run it, into a model's folder."""
    (folder / "own.py").write_text(PROGRAM.format(mark=str(mark)))
    for name in files:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        kinds = {"model_type": kind} if name == "config.json" and kind else {}
        path.write_text(json.dumps({**content, **kinds, "auto_map": AUTO}))
    return folder


def at_a_terminal(words: list[str], folder: Path) -> tuple[int, str]:
    """A command at a terminal whose user answers each question with y: its exit code, and what it said."""
    program = python()
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", PYTHONPATH=str(PACKAGE.parent))
        os.chdir(folder)
        os.execv(program, [program, "-m", "vits_trainer", *words])  # noqa: S606
    said, end = b"", time.monotonic() + HANG_S
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # it has ended
            break
        said += chunk
        if b"[y/N]" in chunk:
            os.write(terminal, b"y\n")
    else:
        os.kill(process, 9)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.decode(errors="replace")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    prepared_folder(folder, clips=4)
    write_voice(folder)
    return folder


COMMANDS = {
    "synthesize": ["synthesize", "--model", "evil", "--text", "a word", "--output", "speech.wav"],
    "train_vits": ["train_vits", "--model_name", "evil", "--data_dir", "training", "--report_to", "none"],
    "convert": ["convert", "evil", "--output", "converted"],
    "evaluate": ["evaluate", "--models", "evil", "--data_dir", "training", "--scores", "duration"],
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_program_of_a_voice_is_not_run_and_nobody_is_asked(place: Path, tmp_path: Path, command: str) -> None:
    evil = shutil.copytree(place / "voice", tmp_path / "evil")
    shutil.copytree(place / "training", tmp_path / "training")
    planted(evil, tmp_path / "RAN", ("config.json", "tokenizer_config.json"))
    code, said = at_a_terminal(COMMANDS[command], tmp_path)
    assert not (tmp_path / "RAN").exists()
    assert "[y/N]" not in said
    assert code == 2, said
    assert "evil: model_type is own, not a VITS voice" in said
    assert "Traceback" not in said


def test_program_beside_a_voice_of_the_right_kind_is_left_alone(place: Path, tmp_path: Path) -> None:
    evil = shutil.copytree(place / "voice", tmp_path / "evil")
    planted(evil, tmp_path / "RAN", ("config.json", "tokenizer_config.json"), kind=None)
    code, said = at_a_terminal(COMMANDS["synthesize"], tmp_path)
    assert (code, "[y/N]" in said, (tmp_path / "RAN").exists()) == (0, False, False), said


def test_program_of_a_recogniser_is_not_run_and_nobody_is_asked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "asr").mkdir()
    planted(tmp_path / "asr", tmp_path / "RAN", ("config.json", "preprocessor_config.json", "tokenizer_config.json"))
    shutil.copytree(place / "training", tmp_path / "training")
    words = ["evaluate", "--models", str(place / "voice"), "--data_dir", "training", "--clips", "all"]
    code, said = at_a_terminal([*words, "--scores", "cer", "--asr", "asr"], tmp_path)
    assert (code, "[y/N]" in said, (tmp_path / "RAN").exists()) == (2, False, False), said
    assert "contains custom code, which is not executed" in said
