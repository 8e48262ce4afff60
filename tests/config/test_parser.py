"""Parsing of flags and configuration files, and one-line error messages."""

import dataclasses
import itertools

import pytest
import yaml

from vits_trainer.config.parser import parse
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import RECIPES_DIR, save_config
from vits_trainer.config.tools import CheckConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.utils.errors import ConfigError

STABLE_DEFAULTS = {
    TrainConfig: {
        "data_dir": "training",
        "checkpoint_dir": "training/checkpoints",
        "output_dir": "training/final_model",
        "model_name": "facebook/mms-tts-kmr-script_latin",
        "batch_size": 4,
        "gradient_accumulation_steps": 8,
        "learning_rate": 2e-5,
        "epochs": 10,
        "max_samples": 0,
    },
    PrepareConfig: {
        "dataset": "amedcj/kurmanji-commonvoice",
        "output_dir": "training",
        "target_sr": 16000,
        "max_samples": 0,
        "min_upvotes": 2,
        "max_downvotes": 0,
    },
}


def parse_train(*args: str) -> TrainConfig:
    return parse("train_vits", TrainConfig, args)


def error_message(*args: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_train(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("batch_size: 16\nlearning_rate: 1e-3\nloss_weights:\n  kl: 3.0\n")
    return str(path)


@pytest.mark.parametrize("config_class", STABLE_DEFAULTS)
def test_stable_defaults_are_unchanged(config_class):
    defaults = config_class()
    assert {name: getattr(defaults, name) for name in STABLE_DEFAULTS[config_class]} == STABLE_DEFAULTS[config_class]


@pytest.mark.parametrize("config_class", [TrainConfig, PrepareConfig, CheckConfig])
def test_no_flags_give_the_defaults(config_class):
    assert parse("command", config_class, []) == config_class()


@pytest.mark.parametrize("config_class", STABLE_DEFAULTS)
def test_stable_flags_are_accepted(config_class):
    new = {name: value * 2 if value else 5 for name, value in STABLE_DEFAULTS[config_class].items()}
    args = [arg for name, value in new.items() for arg in (f"--{name}", str(value))]
    assert parse("command", config_class, args) == config_class(**new)


def test_flags_override_the_file_and_the_file_overrides_defaults(settings):
    parsed = parse_train("--config", settings, "--batch_size", "2")
    assert (parsed.batch_size, parsed.learning_rate, parsed.epochs) == (2, 1e-3, 10)
    assert (parsed.loss_weights.kl, parsed.loss_weights.mel) == (3.0, 45.0)


def test_flags_override_the_file_in_any_order(settings):
    args = ["--batch_size", "2", "--loss_weights.kl", "0.5"]
    expected = parse_train("--config", settings, *args)
    assert expected.batch_size == 2
    assert expected.loss_weights.kl == 0.5
    assert parse_train(*args, "--config", settings) == parse_train(*args, f"--config={settings}") == expected
    assert parse_train(*args[:2], "--config", settings, *args[2:]) == expected


@pytest.mark.parametrize("recipe", ["tiny", "tiny.yaml"])
def test_recipe_is_selected_by_name(recipe):
    parsed = parse_train("--config", recipe)
    assert parsed.model_name is None
    assert parsed.architecture.hidden_size == 96


def test_documented_recipes_exist():
    assert {path.name for path in RECIPES_DIR.glob("*.yaml")} >= {"tiny.yaml", "mms_tts.yaml"}


@pytest.mark.parametrize("path", sorted(RECIPES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_has_a_description_and_parses(path):
    text = path.read_text("utf-8")
    assert text.startswith("# ")
    written = yaml.safe_load(text)
    parsed = parse_train("--config", str(path), *(["--language", "de"] if written.get("phonemes") else []))
    for name, value in written.items():
        if not isinstance(value, dict):
            assert getattr(parsed, name) == value


def test_unknown_recipe_lists_the_recipes():
    recipes = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    assert ", ".join(recipes) in error_message("--config", "tinny")


def test_config_flag_without_a_value_raises():
    assert "--config: give the name of a recipe or a YAML file" in error_message("--config")


def test_saved_config_round_trips(tmp_path):
    config = parse_train("--config", "tiny", "--wandb_tags", "[a, b]", "--loss_weights.kl", "0.25", "--seed", "7")
    save_config(config, tmp_path / "config.yaml")
    assert parse_train("--config", str(tmp_path / "config.yaml")) == config
    assert config.wandb_tags == ("a", "b")
    save_config(TrainConfig(), tmp_path / "config.yaml")
    assert parse_train("--config", str(tmp_path / "config.yaml")) == TrainConfig()


@pytest.mark.parametrize(("name", "value"), [("model_name", "null"), ("run_name", "null")])
def test_null_is_none(name, value):
    extra = ["--config", "tiny"] if name == "model_name" else []
    assert getattr(parse_train(*extra, f"--{name}", value), name) is None


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_train("--seed", "1").epochs = 3


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--batch_sise", "4"], "unknown flag --batch_sise: did you mean --batch_size 4?"),
        (["--batch_sise=4"], "unknown flag --batch_sise: did you mean --batch_size 4?"),
        pytest.param(
            ["--epoch", "4"],
            "--epochs",
        ),
        (["--loss_weights.mell", "4"], "--loss_weights.mel 4?"),
        (["--xyz", "4"], "unknown flag --xyz. See vits-trainer train_vits --help."),
        (["stray"], "unexpected argument, as it follows no flag: stray"),
    ],
)
def test_unknown_flag_suggests_the_closest(args, expected):
    assert expected in error_message(*args)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("batch_sise: 4", "batch_sise: did you mean batch_size?"),
        pytest.param(
            "loss_weights:\n  mell: 4",
            "loss_weights.mel?",
        ),
        ('"\\e[2J": 1', r"unknown key '\x1b[2J': see vits-trainer train_vits --help."),
        ('"": null', "unknown key '': see vits-trainer train_vits --help."),
        pytest.param("- a list", "settings.yaml"),
        pytest.param("batch_size: [", "settings.yaml"),
    ],
)
def test_unknown_key_of_a_file_suggests_the_closest(tmp_path, line, expected):
    (tmp_path / "settings.yaml").write_text(line)
    assert expected in error_message("--config", str(tmp_path / "settings.yaml"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--batch_size", "four"], "--batch_size"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--precision", "fp8"], "--precision"),
        (["--objective", "gan"], "--objective"),
        (["--loss_weights.kl", "much"], "--loss_weights.kl"),
        (["--epochs", "2.5"], "--epochs"),
        (["--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: must be above 0"),
        (["--max_samples", "-1"], "--max_samples -1: must be at least 0"),
        (["--validation_fraction", "1"], "--validation_fraction 1.0"),
        (["--speaker_temperature", "1.1"], "--speaker_temperature 1.1"),
        (["--speaker_temperature", ".nan"], "--speaker_temperature nan"),
        (["--speaker_temperature", "0.5", "--batch_seconds", "60"], "--speaker_temperature 0.5 with --batch_seconds"),
        (["--max_clips_per_speaker", "-1"], "--max_clips_per_speaker -1: must be at least 0"),
        (["--only_speakers", "ava", "--streaming", "true"], "--streaming and --only_speakers exclude each other"),
        (["--max_clips_per_speaker", "9", "--streaming", "true"], "--streaming and --max_clips_per_speaker exclude"),
        (["--config", "tiny", "--extend_speakers", "true"], "--extend_speakers: a voice trained from scratch"),
        (["--config", "tiny", "--model_name", "voice"], "exclude each other"),
        (["--model_name", "null"], "--model_name is empty"),
    ],
)
def test_invalid_value_raises_and_names_the_flag(args, expected):
    assert expected in error_message(*args)


def test_fp16_flag_means_precision_fp16():
    assert parse_train("--fp16").precision == "fp16"
    assert parse_train("--fp16", "--precision", "fp16").precision == "fp16"
    assert parse_train("--seed", "1").precision == "auto"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fp16_with_another_precision_raises(precision):
    assert f"--fp16 and --precision {precision} exclude each other" in error_message("--fp16", "--precision", precision)


@pytest.mark.parametrize("flags", [["--config", "FILE"], ["--loss_weights", "FILE"], ["--config", "OUTER"]])
def test_aliases_are_refused_in_every_file(tmp_path, flags):
    bomb, outer = tmp_path / "bomb.yaml", tmp_path / "outer.yaml"
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{n}: &{n} [{', '.join([f'*{b}'] * 9)}]" for b, n in itertools.pairwise(names)]
    bomb.write_text("\n".join(lines))
    outer.write_text(f"loss_weights: {bomb}\n")
    message = error_message(*(arg.replace("FILE", str(bomb)).replace("OUTER", str(outer)) for arg in flags))
    assert "aliases" in message
