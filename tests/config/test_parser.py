"""Flags, configuration files, and the one line that a mistake is answered with."""

import dataclasses

import pytest
import yaml

from vits_trainer.config.parser import parse
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import RECIPES_DIR, save_config
from vits_trainer.config.tools import CheckConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.utils.errors import ConfigError

FLAGS_OF_OLD = {
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


def train(*words: str) -> TrainConfig:
    return parse("train_vits", TrainConfig, words)


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        train(*words)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("batch_size: 16\nlearning_rate: 1e-3\nloss_weights:\n  kl: 3.0\n")
    return str(path)


@pytest.mark.parametrize("config_class", FLAGS_OF_OLD)
def test_defaults_of_old_are_kept(config_class):
    defaults = config_class()
    assert {name: getattr(defaults, name) for name in FLAGS_OF_OLD[config_class]} == FLAGS_OF_OLD[config_class]


@pytest.mark.parametrize("config_class", [TrainConfig, PrepareConfig, CheckConfig])
def test_command_without_a_flag_takes_the_defaults(config_class):
    assert parse("command", config_class, []) == config_class()


@pytest.mark.parametrize("config_class", FLAGS_OF_OLD)
def test_flags_of_old_are_kept(config_class):
    new = {name: value * 2 if value else 5 for name, value in FLAGS_OF_OLD[config_class].items()}
    words = [word for name, value in new.items() for word in (f"--{name}", str(value))]
    assert parse("command", config_class, words) == config_class(**new)


def test_flags_win_over_the_file_and_the_file_over_defaults(settings):
    parsed = train("--config", settings, "--batch_size", "2")
    assert (parsed.batch_size, parsed.learning_rate, parsed.epochs) == (2, 1e-3, 10)
    assert (parsed.loss_weights.kl, parsed.loss_weights.mel) == (3.0, 45.0)


def test_flags_win_wherever_the_file_is_named(settings):
    words = ["--batch_size", "2", "--loss_weights.kl", "0.5"]
    expected = train("--config", settings, *words)
    assert expected.batch_size == 2
    assert expected.loss_weights.kl == 0.5
    assert train(*words, "--config", settings) == train(*words, f"--config={settings}") == expected
    assert train(*words[:2], "--config", settings, *words[2:]) == expected


@pytest.mark.parametrize("recipe", ["tiny", "tiny.yaml"])
def test_recipe_is_known_by_name(recipe):
    parsed = train("--config", recipe)
    assert parsed.model_name is None
    assert parsed.architecture.hidden_size == 96


def test_recipes_are_those_we_promise():
    assert {path.name for path in RECIPES_DIR.glob("*.yaml")} >= {"tiny.yaml", "mms_tts.yaml"}


@pytest.mark.parametrize("path", sorted(RECIPES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_and_parses(path):
    text = path.read_text("utf-8")
    assert text.startswith("# ")
    written = yaml.safe_load(text)
    parsed = train("--config", str(path), *(["--language", "de"] if written.get("phonemes") else []))
    for name, value in written.items():
        if not isinstance(value, dict):
            assert getattr(parsed, name) == value


def test_unknown_recipe_names_those_there_are():
    assert "mms_tts, more_speakers, new_letters, tiny" in refusal("--config", "tinny")


def test_config_without_a_value_is_refused():
    assert "--config: give a recipe's name or a YAML file" in refusal("--config")


def test_saved_config_reads_back_equal(tmp_path):
    config = train("--config", "tiny", "--wandb_tags", "[a, b]", "--loss_weights.kl", "0.25", "--seed", "7")
    save_config(config, tmp_path / "config.yaml")
    assert train("--config", str(tmp_path / "config.yaml")) == config
    assert config.wandb_tags == ("a", "b")
    save_config(TrainConfig(), tmp_path / "config.yaml")
    assert train("--config", str(tmp_path / "config.yaml")) == TrainConfig()


@pytest.mark.parametrize(("name", "value"), [("model_name", "null"), ("run_name", "null")])
def test_null_is_none(name, value):
    extra = ["--config", "tiny"] if name == "model_name" else []
    assert getattr(train(*extra, f"--{name}", value), name) is None


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        train("--seed", "1").epochs = 3


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--batch_sise", "4"], "unknown flag --batch_sise: did you mean --batch_size?"),
        (["--batch_sise=4"], "unknown flag --batch_sise: did you mean --batch_size?"),
        pytest.param(
            ["--epoch", "4"],
            "--epochs",
        ),
        (["--loss_weights.mell", "4"], "--loss_weights.mel?"),
        (["--xyz", "4"], "unknown flag --xyz: known are"),
        (["stray"], "'stray' belongs to no flag"),
    ],
)
def test_unknown_flag_names_the_nearest(words, near):
    assert near in refusal(*words)


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("batch_sise: 4", "batch_sise: did you mean batch_size?"),
        pytest.param(
            "loss_weights:\n  mell: 4",
            "loss_weights.mel?",
        ),
        pytest.param("- a list", "settings.yaml"),
        pytest.param("batch_size: [", "settings.yaml"),
    ],
)
def test_unknown_key_of_a_file_names_the_nearest(tmp_path, line, near):
    (tmp_path / "settings.yaml").write_text(line)
    assert near in refusal("--config", str(tmp_path / "settings.yaml"))


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--batch_size", "four"], "--batch_size"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--precision", "fp8"], "--precision"),
        (["--objective", "gan"], "--objective"),
        (["--loss_weights.kl", "much"], "--loss_weights.kl"),
        (["--epochs", "2.5"], "--epochs"),
        (["--batch_size", "0"], "--batch_size 0: give 1 or more"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: give a number above 0"),
        (["--max_samples", "-1"], "--max_samples -1: give 0 or more"),
        (["--validation_fraction", "1"], "--validation_fraction 1.0"),
        (["--speaker_temperature", "1.1"], "--speaker_temperature 1.1"),
        (["--speaker_temperature", ".nan"], "--speaker_temperature nan"),
        (["--speaker_temperature", "0.5", "--batch_seconds", "60"], "--speaker_temperature 0.5 with --batch_seconds"),
        (["--max_clips_per_speaker", "-1"], "--max_clips_per_speaker -1: give 0 or more"),
        (["--only_speakers", "ava", "--streaming", "true"], "--streaming and --only_speakers exclude one another"),
        (["--max_clips_per_speaker", "9", "--streaming", "true"], "--streaming and --max_clips_per_speaker exclude"),
        (["--config", "tiny", "--extend_speakers", "true"], "--extend_speakers: a voice from scratch"),
        (["--config", "tiny", "--model_name", "voice"], "exclude one another"),
        (["--model_name", "null"], "--model_name is empty"),
    ],
)
def test_wrong_value_is_refused_with_its_flag(words, flag):
    assert flag in refusal(*words)


def test_fp16_of_old_is_precision_fp16():
    assert train("--fp16").precision == "fp16"
    assert train("--fp16", "--precision", "fp16").precision == "fp16"
    assert train("--seed", "1").precision == "auto"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fp16_beside_another_precision_is_refused(precision):
    assert f"--fp16 and --precision {precision} contradict" in refusal("--fp16", "--precision", precision)
