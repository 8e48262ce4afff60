"""``vits-trainer <command>``, the same as ``python -m vits_trainer <command>``."""

import gc
import importlib
import signal
import sys
from types import ModuleType
from typing import Any

from vits_trainer import __version__
from vits_trainer.config.aliases import COMMANDS as COMMANDS_OF_OTHERS
from vits_trainer.config.feedback import FeedbackAppConfig, FeedbackConfig
from vits_trainer.config.parser import parse, unknown_name_message
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.tools import BenchmarkConfig, CheckConfig, DemoConfig, ReportConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.config.voices import ConvertConfig, EvaluateConfig, ExportConfig, SynthesizeConfig
from vits_trainer.utils.errors import ConfigError, InstallationError, VitsTrainerError

COMMANDS: dict[str, tuple[type, str]] = {
    "prepare_data": (PrepareConfig, "recordings and texts into a folder that train_vits reads"),
    "train_vits": (TrainConfig, "train or fine-tune a voice"),
    "train_feedback": (FeedbackConfig, "learn users' corrections of a voice"),
    "feedback_app": (FeedbackAppConfig, "correct a voice in the browser, and let it learn"),
    "convert": (ConvertConfig, "voices of VITS, MMS, Coqui, Piper to transformers; voices to original VITS or ONNX"),
    "export": (ExportConfig, "make a voice of a checkpoint"),
    "synthesize": (SynthesizeConfig, "let a voice say a text into an audio file"),
    "evaluate": (EvaluateConfig, "judge voices by held-out clips, side by side"),
    "report": (ReportConfig, "one HTML page of a run: curves, samples to play, errors, settings"),
    "demo": (DemoConfig, "see it work in minutes, on a built-in corpus"),
    "check": (CheckConfig, "prove on this machine that training works"),
    "benchmark": (BenchmarkConfig, "measure what an update, the alignment search and the data take here"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake (one line, no traceback), 1 failed."""
    words = sys.argv[1:] if argv is None else argv
    config: Any
    try:
        words = _normalized(words)
        if not words or words[0] in ("-h", "--help", "help"):
            print(_usage())
            return 0 if words else 2
        if words[0] in ("--version", "version"):
            print(f"vits-trainer {__version__}")
            return 0
        command, *rest = words
        if command not in COMMANDS:
            raise ConfigError(_unknown_command(command))
        config_class, _ = COMMANDS[command]
        try:
            config = parse(command, config_class, rest)
        except SystemExit as end:  # --help
            return int(end.code or 0)
        # torch and transformers take seconds to import: only after the flags are known to be right.
        module = _imported(f"vits_trainer.cli.{command}")
        code: int = module.run(config)
    except VitsTrainerError as error:
        print(f"vits-trainer: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("vits-trainer: interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return code


def _normalized(words: list[str]) -> list[str]:
    """Turns ``help COMMAND`` and ``COMMAND ... -h`` into ``COMMAND --help``."""
    if len(words) == 2 and words[0] == "help" and words[1] in COMMANDS:
        return [words[1], "--help"]
    if words and words[0] in COMMANDS and "-h" in words[1:]:
        return [words[0], "--help"]
    return words


def _unknown_command(name: str) -> str:
    ours = COMMANDS_OF_OTHERS.get(name.replace("-", "_").lower())
    return (
        f"unknown command {name}: did you mean {ours}?"
        if ours
        else unknown_name_message("command", name, list(COMMANDS))
    )


def _imported(module: str) -> ModuleType:
    starts = "torch" not in sys.modules
    if starts and sys.stderr.isatty():
        print("vits-trainer: loading torch and transformers ...", file=sys.stderr, flush=True)
    try:
        if starts:
            gc.disable()  # what is imported stays, and looking through it time and again takes a second
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise InstallationError(
            f"the installation is broken ({type(error).__name__}: {' '.join(str(error).split())[:300]}). torch and "
            "torchaudio must go together: pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12', both from the same "
            "registry (a CPU-only torch does not load torchaudio)."
        ) from error
    finally:
        if starts:
            gc.enable()
            gc.freeze()


def entry_point() -> None:
    """The console script."""
    code = main()
    gc.freeze()  # a last look through everything that was imported takes two seconds
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
