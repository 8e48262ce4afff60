"""Entry point of ``vits-trainer <command>``, also ``python -m vits_trainer <command>``."""

import errno
import gc
import importlib
import os
import signal
import sys
from types import ModuleType
from typing import Any

from vits_trainer import __version__
from vits_trainer.config.aliases import COMMANDS as COMMANDS_OF_OTHERS
from vits_trainer.config.check_data import CheckDataConfig
from vits_trainer.config.feedback import FeedbackAppConfig, FeedbackConfig
from vits_trainer.config.parser import parse, unknown_name_message
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.tools import BenchmarkConfig, CheckConfig, DemoConfig, ReportConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.config.voices import ConvertConfig, EvaluateConfig, ExportConfig, SynthesizeConfig
from vits_trainer.utils.errors import InstallationError, VitsTrainerError, disk_full_message, is_disk_full, require
from vits_trainer.utils.redaction import redacted

COMMANDS: dict[str, tuple[type, str]] = {
    "prepare_data": (PrepareConfig, "convert recordings and texts to a folder that train_vits reads"),
    "check_data": (CheckDataConfig, "find suspicious clips in prepared data, with a page to listen to them"),
    "train_vits": (TrainConfig, "train or fine-tune a voice"),
    "train_feedback": (FeedbackConfig, "fine-tune a voice on users' corrections"),
    "feedback_app": (FeedbackAppConfig, "correct a voice in the browser, and fine-tune it on the corrections"),
    "convert": (
        ConvertConfig,
        "convert voices of VITS, MMS, Coqui, Piper to transformers, or voices to original VITS or ONNX",
    ),
    "export": (ExportConfig, "export a checkpoint as a voice"),
    "synthesize": (SynthesizeConfig, "synthesize a text to an audio file"),
    "evaluate": (EvaluateConfig, "compare voices with objective metrics on validation clips"),
    "report": (
        ReportConfig,
        "write a run as an HTML page, or a blind listening test of voices",
    ),
    "demo": (DemoConfig, "fine-tune a packaged voice to a human speaker in minutes, and compare"),
    "check": (CheckConfig, "verify on this machine that training works correctly"),
    "benchmark": (BenchmarkConfig, "measure the speed of updates, alignment search and data loading"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 success, 1 failure, 2 user error (one line, no traceback)."""
    args = sys.argv[1:] if argv is None else argv
    config: Any
    try:
        args = _normalized(args)
        if not args or args[0] in ("-h", "--help", "help"):
            print(_usage())
            return 0 if args else 2
        if args[0] in ("--version", "version"):
            print(f"vits-trainer {__version__}")
            return 0
        command, *rest = args
        require(command in COMMANDS, _unknown_command(command))
        config_class, _ = COMMANDS[command]
        try:
            config = parse(command, config_class, rest)
        except SystemExit as end:  # --help
            return int(end.code or 0)
        # Importing torch and transformers takes seconds, so flags are checked first.
        module = _import_command(f"vits_trainer.cli.{command}")
        code: int = module.run(config)
    except VitsTrainerError as error:
        print(f"vits-trainer: {redacted(str(error))}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        if is_disk_full(error):
            message, code = disk_full_message(error), 1
        elif isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            message, code = f"{str(error.filename)[:300]}: {error.strerror}. Correct this path.", 2
        else:
            raise
        print(f"vits-trainer: {redacted(message)}", file=sys.stderr, flush=True)
        return code
    except KeyboardInterrupt:
        print("vits-trainer: interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return code


def _normalized(args: list[str]) -> list[str]:
    """Turns ``help COMMAND`` and ``COMMAND ... -h`` into ``COMMAND --help``."""
    if len(args) == 2 and args[0] == "help" and args[1] in COMMANDS:
        return [args[1], "--help"]
    if args and args[0] in COMMANDS and "-h" in args[1:]:
        return [args[0], "--help"]
    return args


def _unknown_command(name: str) -> str:
    ours = COMMANDS_OF_OTHERS.get(name.replace("-", "_").lower())
    return (
        f"unknown command {name}: did you mean {ours}?"
        if ours
        else unknown_name_message("command", name, list(COMMANDS))
    )


def _import_command(module: str) -> ModuleType:
    is_first_import = "torch" not in sys.modules
    if is_first_import and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print("vits-trainer: loading torch and transformers ...", file=sys.stderr, flush=True)
    try:
        if is_first_import:
            gc.disable()  # imported objects stay, and collecting repeatedly during the import costs a second
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise InstallationError(
            f"the installation is broken ({type(error).__name__}: {' '.join(str(error).split())[:300]}). torch and "
            "torchaudio must match: pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12', both from the same "
            "index (a CPU-only torch cannot load torchaudio)."
        ) from error
    finally:
        if is_first_import:
            gc.enable()
            gc.freeze()


def entry_point() -> None:
    """Entry point of the console script."""
    code = main()
    gc.freeze()  # a final collection of all imported objects would take two seconds
    sys.exit(code)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vits-trainer COMMAND [FLAGS]      (or python -m vits_trainer COMMAND [FLAGS])",
            "",
            "Trains and fine-tunes VITS and MMS-TTS voices.",
            "",
            *lines,
            "",
            "vits-trainer COMMAND --help shows the flags of a command.",
            "On several GPUs:",
            "  accelerate launch --config_file accelerate_configs/multi_gpu.yaml -m vits_trainer train_vits [FLAGS]",
        ]
    )
