"""The plan, the discriminators' warm-up, the rehearsal, and what is said when memory runs out."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.voices import metrics, prepared_folder, train_flags
from vits_trainer.__main__ import main
from vits_trainer.config import TrainConfig
from vits_trainer.objective import Objective
from vits_trainer.order import Order
from vits_trainer.plan import Plan


def plan(seconds_per_update: float = 0, fresh_judges: bool = False, **settings: object) -> Plan:
    config = TrainConfig(**settings)
    order = Order(range(100), [50] * 100, 1, config.batch_size, 2, config.gradient_accumulation_steps)
    return Plan.of(config, order, 5, fresh_judges, seconds_per_update)


def test_epochs_become_updates() -> None:
    # 100 clips, 64 in an update: one whole, one of what is left.
    found = plan(epochs=3)
    assert (found.updates_per_epoch, found.total_updates, found.clips_per_update) == (2, 6, 64)


def test_max_updates_decides_over_epochs() -> None:
    assert plan(epochs=3, max_updates=100).total_updates == 100


def test_plan_says_what_falls_to_each_process() -> None:
    # 64 clips an update on 2 processes, in 8 micro-batches of 4; 100 clips an epoch.
    assert str(plan(epochs=3)).endswith(
        "; each process takes 32 clips an update, in at most 8 micro-batch(es), and 50 an epoch"
    )
    alone = Order(range(100), [50] * 100, 1, 4, 1, 8)
    assert "each process" not in str(Plan.of(TrainConfig(), alone, 5, False))


@pytest.mark.parametrize(("hours", "updates"), [(1.0, 360), (0.001, 2), (0.5, 180)])
def test_target_hours_become_whole_epochs(hours: float, updates: int) -> None:
    assert plan(seconds_per_update=10, target_hours=hours).total_updates == updates


def test_due_moments() -> None:
    found = plan(max_updates=25, log_every_updates=10, validate_every_updates=12, save_every_updates=0)
    every = range(1, 26)
    assert [update for update in every if found.logs_at(update)] == [1, 10, 20, 25]
    assert [update for update in every if found.validates_at(update)] == [12, 24, 25]
    assert [update for update in every if found.saves_at(update)] == [25]


@pytest.mark.parametrize(
    ("asked", "fresh", "warmup"), [(None, True, 10), (None, False, 0), (7, False, 7), (0, True, 0)]
)
def test_warmup_is_for_fresh_discriminators_and_a_tenth_of_the_run(asked: int | None, fresh: bool, warmup: int) -> None:
    assert plan(fresh_judges=fresh, max_updates=100, discriminator_warmup_updates=asked).warmup_updates == warmup
    assert plan(fresh_judges=True, max_updates=10000).warmup_updates == 200


def test_discriminators_learn_alone_in_the_warmup(tmp_path: Path) -> None:
    prepared_folder(tmp_path)
    flags = train_flags(tmp_path, discriminator_warmup_updates=2, max_updates=3, save_every_updates=1)
    assert main(["train_vits", *flags]) == 0
    one, two, three = (
        {
            network: load_file(tmp_path / f"checkpoints/checkpoint-{update}/{network}.safetensors")
            for network in ("generator", "discriminator")
        }
        for update in (1, 2, 3)
    )
    name = "decoder.conv_pre.weight"
    assert (one["generator"][name] == two["generator"][name]).all()
    assert (two["generator"][name] != three["generator"][name]).any()
    name = "discriminators.0.convs.0.bias"
    assert (one["discriminator"][name] != two["discriminator"][name]).any()
    lines = [line for line in metrics(tmp_path) if "generator/mel" in line]
    assert ["grad_norm/generator" in line for line in lines] == [False, False, True]


def test_rehearsal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update after two rehearsal passes is the one without them."""
    prepared_folder(tmp_path)
    assert main(["train_vits", *train_flags(tmp_path, max_updates=2)]) == 0
    with_it = metrics(tmp_path)
    monkeypatch.setattr("vits_trainer.trainer.Trainer.rehearse", lambda self: 1.0)  # on one process it may be left out
    changes = {"checkpoint_dir": tmp_path / "other", "runs_dir": tmp_path / "other_runs"}
    assert main(["train_vits", *train_flags(tmp_path, max_updates=2, **changes)]) == 0
    lines = (tmp_path / "other_runs/run/metrics.jsonl").read_text().splitlines()
    for ours, other in zip(with_it, map(json.loads, lines), strict=True):
        for name in ours:
            if name.startswith(("generator/", "discriminator/", "grad_norm/", "validation/", "data/")):
                assert ours[name] == other[name], name


def test_resumed_run_keeps_its_plan_whatever_the_speed_is_now() -> None:
    config = TrainConfig(target_hours=1.0)
    kept = {"total_updates": 123, "warmup_updates": 7}
    order = Order(range(100), [50] * 100, 1, 4, 2, 8)
    assert Plan.of(config, order, 5, True, seconds_per_update=2, kept=kept).total_updates == 123
    assert Plan.of(config, order, 5, True, seconds_per_update=2, kept=kept).warmup_updates == 7


def test_out_of_memory_names_the_clips_and_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message of PyTorch's CPU allocator is quoted; really running out would take this machine along."""

    def exhausted(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")

    prepared_folder(tmp_path)
    monkeypatch.setattr(Objective, "discriminator_losses", exhausted)
    assert main(["train_vits", *train_flags(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "1.2" in message  # the longest of the made-up clips, which the rehearsal takes first
    assert "--batch_size" in message
