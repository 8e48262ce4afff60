"""Names of other trainers, and the suggestions for unknown names."""

import pytest

from vits_trainer.cli.main import COMMANDS, main
from vits_trainer.config import aliases
from vits_trainer.config.parser import parse, unknown_flag_message
from vits_trainer.utils.errors import ConfigError

KNOWN = {name: set(config.__dataclass_fields__) for name, (config, _) in COMMANDS.items()}


def message_of(command: str, *args: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(command, COMMANDS[command][0], args)
    return str(error.value)


@pytest.mark.parametrize("name", aliases.FLAGS)
def test_flag_of_another_trainer_is_answered_with_ours(name: str) -> None:
    ours = aliases.FLAGS[name].partition(" ")[0].removeprefix("--")
    commands = [command for command, fields in KNOWN.items() if ours.partition(".")[0] in fields and name not in fields]
    assert commands, "no command has the flag that the table names"
    expected = aliases.FLAGS[name] if " " in aliases.FLAGS[name] else f"--{ours} 3"
    for command in commands:
        message = unknown_flag_message(command, f"--{name}", [f"--{ours}"], "3")
        assert message == f"unknown flag --{name}: did you mean {expected}?"


def test_table_is_as_long_as_promised_and_names_no_flag_that_exists() -> None:
    assert len(aliases.FLAGS) + len(aliases.EXPLANATIONS) + len(aliases.COMMANDS) >= 60
    assert not KNOWN["train_vits"] & (aliases.FLAGS.keys() | aliases.EXPLANATIONS.keys())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "8"], "did you mean --batch_size 8?"),
        (["--batch_sise=8"], "did you mean --batch_size 8?"),
        (["--bf16"], "did you mean --precision bf16?"),
        (["--gpus", "2"], "start it with: accelerate launch --num_processes N"),
        (["--eval_strategy", "steps"], "unknown flag --eval_strategy: did you mean --validate_every_updates?"),
        (["--eval_steps", "500"], "did you mean --validate_every_updates 500?"),
        (["--lr_scheduler_type", "cosine"], "did you mean --schedule cosine?"),
        (["--lr_scheduler_type", "linear"], "unknown flag --lr_scheduler_type: did you mean --schedule?"),
        (["--weight_mel", "45"], "did you mean --loss_weights.mel 45?"),
        (["--sample_rate", "22050"], "unknown flag --sample_rate: it is --target_sr of prepare_data."),
        (["--target_sr", "22050"], "unknown flag --target_sr: it is --target_sr of prepare_data."),
        (["--warmup_ratio", "0.1"], "set --warmup_updates to that part of the updates"),
        (["--config", "mms-tts"], "Did you mean mms_tts? Recipes:"),
        (["data"], "unexpected argument, as it follows no flag: data"),
        (["--epochs", "x"], "--epochs: must be a whole number. Got value: x"),
        (["--learning_rate", "x"], "--learning_rate: must be a number. Got value: x"),
        (["--deterministic", "x"], "--deterministic: must be true or false. Got value: x"),
        (["--zzz"], "unknown flag --zzz. See vits-trainer train_vits --help."),
        (["--push_to_hub"], "--push_to_hub: give the name on the Hub, as owner/name."),
    ],
)
def test_suggestion(args: list[str], message: str) -> None:
    assert message in message_of("train_vits", *args)


@pytest.mark.parametrize("args", [["--fp16"], ["--fp16", "true"], ["--fp16=true"]])
def test_fp16_takes_a_value_like_every_boolean(args: list[str]) -> None:
    assert parse("train_vits", COMMANDS["train_vits"][0], args).precision == "fp16"
    assert parse("train_vits", COMMANDS["train_vits"][0], ["--fp16", "false"]).precision == "auto"


@pytest.mark.parametrize("name", aliases.COMMANDS)
def test_command_of_another_trainer_is_answered_with_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert aliases.COMMANDS[name] in COMMANDS
    assert main([name]) == 2
    assert f"unknown command {name}: did you mean {aliases.COMMANDS[name]}?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["help"], ["-h"], ["help", "check"], ["check", "-h"], ["version"]])
def test_help_and_version_in_every_spelling(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out


def test_longer_flag_of_the_command_comes_before_that_of_another_command() -> None:
    assert unknown_flag_message("evaluate", "--model", ["--data_dir", "--models"]) == (
        "unknown flag --model: did you mean --models?"
    )
