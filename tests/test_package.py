"""The shape of the package: empty package files, short functions, tests that mirror it, what a command line loads.

Who may import whom is import-linter's (pyproject.toml; ``make check``).
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vits_trainer

PACKAGE = Path(vits_trainer.__file__).parent
TESTS = Path(__file__).parent
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
EMPTY = sorted(name for name in FILES if name.endswith("/__init__") and name != "text/__init__")
"""Package files: a docstring. ``text`` has a public name, which is loaded when it is asked for."""

TESTED_ELSEWHERE = {
    "__main__": "a stub for cli.main",
    "cli/benchmark": "tests/runs/test_benchmark.py",
    "cli/demo": "tests/runs/test_demo.py",
    "cli/demo_from_scratch": "tests/runs/test_demo.py",
    "cli/demo_of_speaker": "tests/runs/test_demo.py",
    "cli/evaluate": "tests/runs/test_evaluate.py",
    "cli/export": "tests/runs/test_checkpoint.py",
    "cli/feedback_app": "tests/feedback/test_app.py",
    "cli/report": "tests/tracking/test_html_report.py",
    "cli/train_feedback": "tests/runs/test_train_feedback.py",
    "cli/train_vits": "tests/runs/test_train_vits.py",
    "config/architecture": "tests/config/test_framing.py, tests/models/test_pretrained.py",
    "config/feedback": "tests/feedback/test_app.py, tests/feedback/test_training_process.py",
    "config/options": "values; tests/test_docs.py",
    "config/prepare": "tests/data/preparation/test_pipeline.py",
    "config/serialization": "tests/config/test_parser.py",
    "config/tools": "tests/config/test_parser.py",
    "config/train": "tests/config/test_parser.py",
    "config/check_data": "tests/cli/test_check_data.py, tests/evaluation/test_data_check.py",
    "config/voices": "tests/cli/test_synthesize.py, tests/runs/test_evaluate.py",
    "data/sources/dataset": "tests/runs/test_python.py",
    "data/preparation/espeak_corpus": "tests/runs/test_demo.py",
    "data/preparation/journal": "tests/data/preparation/test_pipeline.py",
    "data/preparation/summary": "tests/data/preparation/test_pipeline.py",
    "data/sources/base": "a test of each source",
    "data/sources/corrections": "tests/runs/test_train_feedback.py",
    "diagnostics/benchmark_data": "tests/runs/test_benchmark.py",
    "evaluation/clip_scores": "tests/evaluation/test_data_check.py",
    "evaluation/comparison": "tests/runs/test_evaluate.py",
    "evaluation/evaluate": "tests/runs/test_evaluate.py",
    "evaluation/optional_packages": "tests/evaluation/test_recognizers.py, test_speech_metrics.py",
    "config/selection": "tests/runs/test_train_feedback.py",
    "data/dataset_rows": "tests/data/test_unprepared.py",
    "data/parquet_rows": "tests/data/test_unprepared.py",
    "data/decoding": "tests/data/test_audio.py, tests/data/test_containers.py",
    "data/rejections": "a test of each reason",
    "data/segmentation/plan": "tests/data/sources/test_recordings.py",
    "data/quality/survey": "tests/evaluation/test_data_check.py",
    "data/source_names": "tests/data/preparation/test_drop_list.py",
    "data/sources/table": "tests/data/sources/test_table_columns.py, test_table_rows.py",
    "feedback/pipeline": "tests/runs/test_train_feedback.py",
    "feedback/speakers": "tests/feedback/test_app.py",
    "feedback/suggestions": "tests/feedback/test_app.py",
    "feedback/served_voice": "tests/feedback/test_app.py",
    "feedback/views": "tests/feedback/test_training_process.py",
    "models/conversion/export_original": "tests/cli/test_convert.py",
    "models/conversion/layout": "a test of each layout",
    "models/generator": "tests/training/test_objective.py, tests/diagnostics/test_golden.py",
    "tracking/wandb_run": "tests/runs/test_dashboard.py, tests/tracking/test_tracker.py",
    "training/checkpoint": "tests/runs/test_checkpoint.py: checkpoints come of runs",
    "training/run": "tests/runs/test_train_vits.py",
    "training/train_step": "tests/diagnostics/test_reference_step.py, tests/training/test_objective.py",
    "training/trainer": "tests/runs/test_trainer.py",
    "utils/errors": "messages; tests/reliability",
    "utils/packaged": "tests/runs/test_demo.py",
    "utils/logging": "tests/ranks/test_launch.py",
    "utils/versions": "tests/runs/test_train_vits.py",
}
"""Modules without a test file of their name, and where they are tested."""


@pytest.mark.parametrize("module", sorted(name for name in FILES if not name.endswith("__init__")))
def test_module_has_its_mirror(module):
    package, _, name = module.rpartition("/")
    has_mirror = (TESTS / package / f"test_{name}.py").is_file()
    assert has_mirror != (module in TESTED_ELSEWHERE)


def test_exceptions_are_modules():
    assert sorted(TESTED_ELSEWHERE.keys() - FILES.keys()) == []


def test_no_test_imports_another_test_module():
    wrong = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                wrong += [(path.name, name) for name in names if ".test_" in name]
    assert wrong == []


@pytest.mark.parametrize("module", EMPTY)
def test_package_files_are_empty(module):
    (docstring,) = ast.parse(FILES[module].read_text("utf-8")).body
    assert isinstance(docstring, ast.Expr)


@pytest.mark.parametrize("module", sorted(FILES))
def test_file_and_its_functions_stay_short(module):
    source = FILES[module].read_text("utf-8")
    assert len(source.splitlines()) <= 500
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > 70] == []


@pytest.mark.parametrize("words", [["train_vits", "--help"], ["train_vits", "--batch_sise", "4"], ["chekc"]])
def test_help_and_wrong_flags_are_answered_without_torch(words):
    code = (
        "import sys, vits_trainer.cli.main as m; m.main(sys.argv[1:]); "
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=PACKAGE.parent)
    loaded = ended.stderr.splitlines()[-1:] if ended.returncode else []
    assert loaded in ([], [""]), ended.stderr


def test_package_and_its_subpackages_load_no_torch():
    packages = sorted(name.removesuffix("/__init__").replace("/", ".") for name in FILES if name.endswith("/__init__"))
    imports = "; ".join(f"import vits_trainer.{package}" for package in packages)
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'numba'}"
    code = f"import sys; {imports}; sys.exit(' '.join({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert ended.returncode == 0 or not ended.stderr.strip(), ended.stderr


def test_name_that_model_cards_print_is_importable():
    code = "from vits_trainer.text import load_tokenizer; print(load_tokenizer.__module__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert ended.stdout == "vits_trainer.text.tokenizer\n", ended.stderr


@pytest.mark.parametrize("module", ["utils/errors", "cli/main", *(n for n in sorted(FILES) if n.startswith("config/"))])
def test_command_line_modules_name_no_heavy_package(module):
    heavy = {"torch", "torchaudio", "transformers", "datasets", "accelerate", "numba"}
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert not names & heavy
