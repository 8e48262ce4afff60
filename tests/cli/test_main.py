"""Entry point: commands, help, version, exit codes and a broken installation."""

import dataclasses

import pytest

from vits_trainer.cli import main as command_line
from vits_trainer.cli.main import main
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.tools import CheckConfig
from vits_trainer.config.train import TrainConfig


def test_mismatched_packages_raise_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uses a mock, because breaking the real installation would break the other tests."""

    def broken(_: str) -> None:
        raise OSError("libtorchaudio.so: undefined symbol")

    monkeypatch.setattr(command_line.importlib, "import_module", broken)
    assert main(["check"]) == 1
    message = capsys.readouterr().err
    assert "libtorchaudio" in message
    assert "torchaudio>=2.11,<2.12" in message


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["train_vit"], "unknown command train_vit: did you mean train_vits?"),
        (["train_vits", "--batch_sise", "4"], "did you mean --batch_size 4?"),
        (["train_vits", "--batch_size", "four"], "--batch_size"),
        (["prepare_data", "--target_sr", "1"], "--target_sr 1: must be between"),
        (["check", "--goldenn", "x"], "did you mean --golden x?"),
    ],
)
def test_user_error_is_one_line_with_exit_code_2(capsys, args, expected):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("vits-trainer: ")
    assert expected in err


@pytest.mark.parametrize("command", ["prepare_data", "train_vits", "check"])
def test_help_describes_every_flag(capsys, command):
    config_class = {"prepare_data": PrepareConfig, "train_vits": TrainConfig, "check": CheckConfig}[command]
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    for field in dataclasses.fields(config_class):
        assert f"--{field.name}" in output
    if command == "train_vits":
        assert "Micro-batches per update." in output
        assert "--fp16" in output


def test_usage_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    assert "train_vits" in capsys.readouterr().out
    assert main([]) == 2


def test_version(capsys):
    from vits_trainer import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vits-trainer {__version__}\n"


@pytest.mark.parametrize("command", [["train_vits", "--data_dir"], ["export"], ["prepare_data", "--dataset"]])
def test_path_with_a_name_that_is_too_long_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "x" * 300]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("vits-trainer: "))
    assert "xxx" in line
