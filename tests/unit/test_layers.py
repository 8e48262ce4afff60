"""The shape of the package: who may import whom, how long a file and a function may be, what a command line loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vits_trainer

PACKAGE = Path(vits_trainer.__file__).parent

# From the ground up. A file imports only from rows above its own.
ROWS = (
    "cpu_threads errors privacy precision alignment_gpu",
    "languages framing",
    "architecture",
    "config audio alignment losses durations encoders metrics text recordings order speakers files accounts charts",
    "interruption stall signs launcher pickles finite",
    "shards config_tools config_voices config_data scores versions run_folder pictures corrections cli corpus ledger",
    "stores",
    "data",
    "lanes remote loading tables generator discriminator conversion optim runtime report",
    "vocabulary plan stream parquet models objective ranks compilation learning dialects",
    "sources summary workers extension",
    "sharding",
    "preparation publishing tracking checkpoint turns meter synthesis foreign original onnx_voice model_cards",
    "served feedback_views",
    "golden evaluation judging selection proofs resumption agreement replay benchmark suites feedback_page",
    "watch textbook feedback",
    "trainer",
    "commands/*",
    "commands/demo commands/check commands/train_feedback",  # run other commands
    "__main__",
)
EMPTY = {"__init__", "commands/__init__"}
"""Package files: imported by all, importing nothing of the package but what must come before torch."""

FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
LAYER = {module: layer for layer, row in enumerate(ROWS) for module in row.split()}
LAYER = {module: LAYER["commands/*"] for module in FILES.keys() - EMPTY if module.startswith("commands/")} | LAYER


def imported_modules(source: str, module: str) -> set[str]:
    """Modules of this package that a file imports, at its top or in a function, as the table names them."""
    dotted = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            dotted += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {name.removeprefix("vits_trainer.").replace(".", "/") for name in dotted if name.startswith("vits_trainer.")}


def upward_imports(source: str, module: str) -> list[str]:
    return sorted(name for name in imported_modules(source, module) if name in LAYER and LAYER[name] >= LAYER[module])


def test_every_module_has_its_layer():
    assert sorted(FILES.keys() - LAYER.keys() - EMPTY) == []


def test_contributors_are_shown_this_table():
    lines = [f"| {n} | {', '.join(f'`{module}`' for module in row.split())} |" for n, row in enumerate(ROWS)]
    assert "\n".join(lines) in (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")


@pytest.mark.parametrize("module", sorted(FILES.keys() & LAYER.keys()))
def test_module_imports_only_from_lower_layers(module):
    assert upward_imports(FILES[module].read_text("utf-8"), module) == []


@pytest.mark.parametrize(
    "line",
    [
        "from vits_trainer.trainer import Trainer",
        "from vits_trainer import trainer",
        "import vits_trainer.trainer",
        "from vits_trainer.objective import frozen",
        "def late():\n    from vits_trainer.trainer import Trainer",
    ],
)
def test_upward_import_is_seen_in_every_spelling(line):
    assert len(upward_imports(line, "objective")) == 1


@pytest.mark.parametrize("module", sorted(EMPTY))
def test_package_files_import_nothing(module):
    allowed = {"cpu_threads", "cpu_threads/configure_openmp"} if module == "__init__" else set()
    assert imported_modules(FILES[module].read_text("utf-8"), module) <= allowed


@pytest.mark.parametrize("module", sorted(FILES))
def test_file_and_its_functions_stay_short(module):
    source = FILES[module].read_text("utf-8")
    assert len(source.splitlines()) <= 500
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > 70] == []


@pytest.mark.parametrize("module", ["config", "errors", "cli", "__main__"])
def test_command_line_modules_name_no_heavy_package(module):
    heavy = {"torch", "torchaudio", "transformers", "datasets", "accelerate", "numba"}
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert not names & heavy


@pytest.mark.parametrize("words", [["train_vits", "--help"], ["train_vits", "--batch_sise", "4"], ["chekc"]])
def test_help_and_wrong_flags_are_answered_without_torch(words):
    code = (
        "import sys, vits_trainer.__main__ as m; m.main(sys.argv[1:]); "
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=PACKAGE.parent)
    loaded = ended.stderr.splitlines()[-1:] if ended.returncode else []
    assert loaded in ([], [""]), ended.stderr
