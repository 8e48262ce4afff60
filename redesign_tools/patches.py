"""What no table can say: exact replacements in the old and in the new tree, each of which must find its text."""

LEFT_OUT: list[str] = ["tests/unit/test_layers.py", "tests/conftest.py", "tests/unit/conftest.py"]
REPLACED = {'tests/conftest.py': 'f468dad899d3736c', 'tests/unit/conftest.py': '5b876ab13334da15'}
"""Files that files/ has anew, by the beginning of the SHA-256 that they must have."""
"""Replaced by tests/test_package.py and import-linter; LAYER_TESTS must be all that it had."""
LAYER_TESTS = {
    "imported_modules", "upward_imports", "test_every_module_has_its_layer", "test_contributors_are_shown_this_table",
    "test_module_imports_only_from_lower_layers", "test_upward_import_is_seen_in_every_spelling",
    "test_package_files_import_nothing", "test_file_and_its_functions_stay_short",
    "test_command_line_modules_name_no_heavy_package", "test_help_and_wrong_flags_are_answered_without_torch",
}
ALIASES: dict = {
    # What a module is called where its own name is taken: for all, or for one old module; "" imports its names instead.
    "vits_trainer.training.run": "training_run",
    "vits_trainer.feedback.pipeline": "feedback_pipeline",
    "vits_trainer.models.conversion.onnx": "onnx_conversion",
    ("vits_trainer.commands.convert", "vits_trainer.models.conversion.onnx"): "",
    ("vits_trainer.commands.export", "vits_trainer.models.discriminator"): "",
    ("vits_trainer.commands.train_vits", "vits_trainer.models.discriminator"): "",
    ("vits_trainer.replay", "vits_trainer.models.discriminator"): "",
    ("tests.unit.test_model_cards", "vits_trainer.tracking.hub"): "hub_upload",
    ("tests.unit.test_sharding", "tests.support.audio"): "speech",
    ("tests.unit.test_ranks", "vits_trainer.distributed.stragglers"): "stragglers_module",
    ("tests.unit.test_vocabulary", "vits_trainer.text.tokenizer"): "tokenizer_module",
}
LOCALS: dict = {("vits_trainer.models.extension", "extended"): "extended_tokenizer"}
PATCHED: dict = {}
PACKAGES: dict = {
    "vits_trainer/cli": "The command line: one module per command, and the program.",
    "vits_trainer/config": "Configurations of the commands. Imports no torch.",
    "vits_trainer/data": "From recordings to batches.",
    "vits_trainer/data/preparation": "From a source of clips to a prepared folder.",
    "vits_trainer/data/sources": "Where clips and texts come from.",
    "vits_trainer/diagnostics": "Proofs, benchmarks and replays.",
    "vits_trainer/distributed": "Ranks: launch, runtime, heartbeats, stragglers, shutdown.",
    "vits_trainer/evaluation": "Speech of trained voices, and its figures.",
    "vits_trainer/feedback": "Corrections of users, and what is learned from them.",
    "vits_trainer/models": "The networks, their parts, and their files.",
    "vits_trainer/models/conversion": "Voices of other trainers, in and out.",
    "vits_trainer/tracking": "Metrics, plots, reports, model cards.",
    "vits_trainer/training": "The training loop and its state.",
    "vits_trainer/utils": "Helpers that know nothing of voices.",
}
REMOVED: list = []
GONE: list = ["vits_trainer/commands", "tests/unit"]
BEFORE: list = [
    ("vits_trainer/tracking.py", 'sorted(Path(__file__).parent.rglob("*.py"))', 'sorted(Path(__file__).parents[1].rglob("*.py"))'),
    # The one edge to cut: the library prepares, the command only shows a table.
    ("vits_trainer/commands/train_feedback.py", "from vits_trainer.commands import prepare_data, train_vits\n",
     "from vits_trainer.commands import train_vits\n"),
    ("vits_trainer/commands/train_feedback.py", "from vits_trainer.runtime import Runtime\n",
     "from vits_trainer.preparation import prepare\nfrom vits_trainer.runtime import Runtime\n"),
    ("vits_trainer/commands/train_feedback.py", "    prepare_data.run(PrepareConfig(", "    prepare(PrepareConfig("),
    ("vits_trainer/__main__.py", '\n\nif __name__ == "__main__":\n    entry_point()\n', "\n"),
]
ANY = -1
AFTER: list = [
    # Lines that grew too long
    ("vits_trainer/data/preparation/pipeline.py",
     "    With --shards, shards/ and shards.json stand for wavs/ and metadata.csv (:mod:`vits_trainer.data.preparation.sharded`).\n",
     "    With --shards, shards/ and shards.json stand for wavs/ and metadata.csv\n    (:mod:`vits_trainer.data.preparation.sharded`).\n"),
    ("vits_trainer/models/parameter_names.py",
     '    """The name in :class:`~vits_trainer.models.discriminator.Discriminator` of the original\'s parameter ``original``."""\n',
     '    """The name in :class:`~vits_trainer.models.discriminator.Discriminator` of the original\'s ``original``."""\n'),
    ("tests/runs/test_trainer.py",
     '    monkeypatch.setattr("vits_trainer.training.trainer.Trainer.rehearse", lambda self: 1.0)  # on one process it may be left out\n',
     "    # On one process it may be left out.\n"
     '    monkeypatch.setattr("vits_trainer.training.trainer.Trainer.rehearse", lambda self: 1.0)\n'),
    ("experiments/chaos.py",
     '        script = [str(ROOT / "tests/ranks/programs/record_clips.py"), "train_vits", *train_flags(self.folder, **settings)]\n',
     '        program = str(ROOT / "tests/ranks/programs/record_clips.py")\n'
     '        script = [program, "train_vits", *train_flags(self.folder, **settings)]\n'),
    ("experiments/corrections.py",
     "``python -m experiments.corrections FOLDER`` prints what docs/reading_your_run.md and docs/correcting_a_voice.md say: the\nvoice",
     "``python -m experiments.corrections FOLDER`` prints what docs/reading_your_run.md and docs/correcting_a_voice.md say:\nthe voice"),
    ("experiments/extension.py",
     "prints a table for docs/training.md: each speaker's validation/speaker_mel before\n",
     "prints a table for docs/training.md: each speaker's\nvalidation/speaker_mel before\n"),
    ("experiments/initialisation.py",
     "transformers'. ``python -m experiments.initialisation FOLDER``\n\nThe", "transformers'.\n\n``python -m experiments.initialisation FOLDER``\n\nThe"),
    ("tests/data/test_streaming_sampler.py",
     '         "from tests.data.test_streaming_sampler import *; print([m.indices for m in order_of([20] * 12, 4).epoch(1, 1)])"],\n',
     '         ("from tests.data.test_streaming_sampler import order_of; "\n          "print([m.indices for m in order_of([20] * 12, 4).epoch(1, 1)])")],\n'),
    ("tests/ranks/programs/crash_in_step.py", ", unless the launcher has started it anew: for test_elastic.py.", ", once: for test_elastic.py."),
    # Mentions
    ("vits_trainer/config/voices.py", "as in ``config``.", "as in ``config.train``."),
    ("vits_trainer/config/tools.py", "as in ``config``.", "as in ``config.train``."),
    ("vits_trainer/data/prepared.py", "in the order that ``order`` gives.", "in the order that ``sampler`` gives."),
    ("vits_trainer/data/streaming.py", "in the order that ``lanes`` gives;", "in ``streaming_sampler``'s order;"),
    ("vits_trainer/data/sources/detect.py", " LJ Speech is read here, others in ``tables``.", ""),
    ("vits_trainer/models/conversion/importer.py", "what ``models.read_discriminator`` reads",
     "what ``read_discriminator`` reads"),
    ("docs/labels_bug.md", "`tests/distributed/`", "`tests/ranks/`"),
    ("docs/labels_bug.md", "`generator.py`", "`models/generator.py`"),
    ("docs/labels_bug.md", "`objective.py`", "`training/objective.py`"),
    ("docs/objective.md", "`durations.py`", "`models/duration_predictor.py`"),
    # Tests
    ("tests/support/launch.py", 'f"tests/distributed/{script}.py"', 'f"tests/ranks/programs/{script}.py"'),
    ("tests/ranks/test_failures.py", '"failing"', '"fail_in_step"', ANY),
    ("tests/ranks/test_failures.py", '"poisoned"', '"poison_clips"', ANY),
    ("tests/ranks/test_stragglers.py", '"slow"', '"slow_rank"', ANY),
    ("tests/ranks/test_streaming.py", 'Path(__file__).with_name("impatient.py")', 'Path(__file__).with_name("programs") / "impatient_store_client.py"'),
    ("tests/ranks/test_launch.py", 'Path(__file__).with_name("closing.py")', 'Path(__file__).with_name("programs") / "close_ranks.py"'),
    ("tests/ranks/test_agreement.py", 'Path(__file__).with_name("unequal.py")', 'Path(__file__).with_name("programs") / "unequal_learning_rate.py"'),
    ("tests/ranks/programs/compare_gradients.py", "for test_gradients.py", "for test_launch.py"),
    ("tests/ranks/programs/crash_in_step.py", '"""recorded.py with', '"""record_clips.py with'),
    # Build and checks
    ("pyproject.toml", 'vits_trainer = ["py.typed", "recipes/*.yaml", "report.html.j2"]',
     'vits_trainer = ["py.typed", "config/recipes/*.yaml", "tracking/report.html.j2"]'),
    ("pyproject.toml", '    "hypothesis>=6.130",\n', '    "hypothesis>=6.130",\n    "import-linter>=2.9,<3",\n'),
    ("pyproject.toml", '"tests/{chaos,plan,scaling,starts,streaming,corrections,extension,distributed/gradients}.py" = ["T201"]',
     '"tests/ranks/programs/*.py" = ["T201"]'),
    ("pyproject.toml", '"experiments/**" = ["D1", "S311", "S603", "T201"]',
     '"experiments/**" = ["ARG", "D1", "PLC0415", "S101", "S311", "S603", "S607", "T201"]'),
    ("pyproject.toml", '"vits_trainer/commands/*.py" = ["T201"]\n"vits_trainer/cli/main.py" = ["T201", "PLC0415"]\n',
     '"vits_trainer/cli/*.py" = ["T201"]\n"vits_trainer/feedback/pipeline.py" = ["T201"]  # what the command says\n'),
    ("pyproject.toml", "[tool.bandit]\n", """[tool.importlinter]
root_package = "vits_trainer"

# A package imports only from lines below its own, and not from those beside it.
[[tool.importlinter.contracts]]
name = "Packages import only from below"
type = "layers"
containers = ["vits_trainer"]
layers = [
    "cli",
    "feedback | diagnostics",
    "training",
    "tracking",
    "evaluation",
    "data | models | distributed",
    "config | text",
    "utils",
]
exhaustive = true
exhaustive_ignores = ["__main__"]

[tool.bandit]
"""),
    ("setup.cfg", "    distributed: starts several processes\n",
     "    run: a whole training or command (tests/runs)\n    ranks: starts several processes (tests/ranks)\n"
     "    reliability: every row of docs/reliability.md (tests/reliability)\n"),
    ("Makefile", ".PHONY: help demo test chaos", ".PHONY: help demo test test-fast chaos"),
    ("Makefile", "test: $(INSTALLED) ## run all tests (those that need a GPU or ../shared skip, saying so)\n\t$(BIN)/python -m pytest\n",
     "test: $(INSTALLED) ## run all tests (those that need a GPU or ../shared skip, saying so)\n\t$(BIN)/python -m pytest\n\n"
     'test-fast: $(INSTALLED) ## run the tests of single modules, without whole trainings and launches (2 min)\n'
     '\t$(BIN)/python -m pytest -m "not run and not ranks and not reliability"\n'),
    ("Makefile", "\t$(BIN)/mypy\n", "\t$(BIN)/mypy\n\t$(BIN)/lint-imports\n"),
    ("Makefile", "@grep -E '^[a-z]+:.*##'", "@grep -E '^[a-z-]+:.*##'"),
    # CONTRIBUTING
    ("CONTRIBUTING.md", "`make test` and `make check` (ruff, format, mypy strict) are what CI runs; `make fix` repairs what ruff can.",
     "`make test` and `make check` (ruff, format, mypy strict, import-linter) are what CI runs; `make fix` repairs what ruff can.\n"
     "`make test-fast` leaves out whole trainings and launches: for every edit."),
    ("CONTRIBUTING.md", "Errors are of `errors.py`;", "Errors are of `utils/errors.py`;"),
]
AFTER += [("tests/ranks/test_%s.py" % name, "pytest.mark.distributed", "pytest.mark.ranks", ANY)
          for name in ("agreement", "chaos", "elastic", "failures", "launch", "stragglers", "streaming", "two_hosts")]
REGIONS: list = [
    ("CONTRIBUTING.md", "## Tour\n", "## Conventions\n", """## Tour

A run is one path down the table: `cli` reads flags into a frozen dataclass (`config/`), a command of `cli/` calls one function
of a library, `data/preparation` turns a source (`data/sources`) into a prepared folder of wavs or shards, `data` turns that
folder into batches whose order is a pure function of (seed, epoch, clips), `models/generator` runs transformers' modules
forward in the training direction, `training/objective` makes named losses of it, `training/trainer` is the loop. Only
`distributed/runtime` builds an `Accelerator`; only `tracking` writes metrics; only `training/checkpoint` writes run state.

A correction goes from `feedback/app` (the one module that knows Gradio) into the files of `feedback/corrections`;
`feedback/training_process` runs `train_feedback` on them as a process of its own, and `feedback/served_voice` loads the voice
that comes of it.

## Packages

| level | packages | may import |
|---|---|---|
| 7 | `cli` | all |
| 6 | `feedback`, `diagnostics` | everything below, but not one another |
| 5 | `training` | everything below |
| 4 | `tracking` | `evaluation`, `data`, `models`, `distributed`, `config`, `text`, `utils` |
| 3 | `evaluation` | `data`, `models`, `distributed`, `config`, `text`, `utils` |
| 2 | `data`, `models`, `distributed` | `config`, `text`, `utils`, but not one another |
| 1 | `config`, `text` | `utils` |
| 0 | `utils` | nothing |

Data and models do not know each other; training joins them; tracking only watches; feedback and diagnostics use training; cli
uses all. import-linter holds the table (`pyproject.toml`, part of `make check`).

Package files (`__init__.py`) are empty, as worker processes and `--help` must not load torch. `tests/` mirrors the packages;
whole trainings are in `tests/runs/`, several ranks in `tests/ranks/`, helpers in `tests/support/`. Longer measurements are in
`experiments/`.

"""),
]
