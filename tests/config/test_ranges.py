"""Ranges of settings: values that no run can use are errors of one line."""

import dataclasses

import pytest

from vits_trainer.cli.main import COMMANDS
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.config.feedback import FeedbackConfig
from vits_trainer.config.ranges import MAX_SEED
from vits_trainer.config.train import LossWeights, TrainConfig
from vits_trainer.utils.errors import ConfigError


def numeric_fields(config_class: type) -> list[str]:
    fields = dataclasses.fields(config_class)
    return [field.name for field in fields if any(kind in str(field.type) for kind in ("int", "float"))]


@pytest.mark.parametrize(
    ("config_class", "name"),
    [(config_class, name) for config_class, _ in COMMANDS.values() for name in numeric_fields(config_class)],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, -(2**64)])
def test_no_number_of_any_command_may_be_absurd(config_class: type, name: str, value: float) -> None:
    required = {field.name: "x" for field in dataclasses.fields(config_class) if field.default is dataclasses.MISSING}
    with pytest.raises(ConfigError, match=f"--{name}"):
        config_class(**required, **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": MAX_SEED + 1}, "--seed 9223372036854775808: must be at most 9"),
        ({"adam_eps": -1.0}, "--adam_eps -1.0: must be above 0"),
        ({"adam_eps": 0.0}, "--adam_eps 0.0: must be above 0"),
        ({"adam_betas": (2.0, 3.0)}, r"--adam_betas \[2.0, 3.0\]: must be below 1"),
        ({"segment_frames": 10**9}, "--segment_frames 1000000000: must be at most 1024"),
        ({"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ({"run_name": "../../esc/aped"}, "--run_name '../../esc/aped': must be one folder name"),
        ({"run_name": ".."}, "--run_name"),
        ({"run_name": "a" * 300}, "--run_name 'a{80}': must be one folder name of at most 128 bytes"),
        ({"run_name": "a\nb"}, "--run_name"),
        ({"run_name": ""}, "--run_name"),
    ],
)  # fmt: skip
def test_training_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_nested_settings_are_named_with_their_group() -> None:
    with pytest.raises(ConfigError, match=r"--loss_weights\.mel -45: must be at least 0"):
        LossWeights(mel=-45)
    with pytest.raises(ConfigError, match=r"--discriminator\.periods \[0\]: must be at least 1"):
        DiscriminatorShape(periods=(0,))


def test_limits_themselves_are_valid() -> None:
    assert TrainConfig(seed=MAX_SEED, adam_betas=(0.0, 0.0), segment_frames=1024, run_name="ä" * 64).seed == MAX_SEED
    assert FeedbackConfig(run_name="run-1").run_name == "run-1"
