"""What a round of feedback trains on."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.shards import write_shards
from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.prepared import open_prepared
from vits_trainer.feedback.replay_mix import ReplayDraw, replay_data
from vits_trainer.text.tokenizer import build_tokenizer

SPEC = AudioSpec(16000, 1024, 1024, 256)


def test_epochs_hold_all_corrections_and_replay_known_clips_in_turn(tmp_path: Path) -> None:
    known = open_prepared(write_shards(tmp_path / "known", [4, 4], group_clips=3))
    new = open_prepared(write_shards(tmp_path / "new", [2], base_s=1.0))
    config = TrainConfig(epochs=4, batch_size=2, gradient_accumulation_steps=1)
    data = replay_data(config, new, [(known, range(1, 8))], replay_fraction=0.5)
    sampler = data.sampler(SPEC, 1)
    assert (sampler.epoch_clips, sampler.updates_per_epoch) == (4, 2)
    epochs = [Counter(row for spec in sampler.epoch(epoch, 0) for row in spec.indices) for epoch in range(4)]
    for epoch in epochs:
        assert [epoch[row] for row in (0, 1)] == [1, 1]
        assert epoch.total() == 4
    replayed = sum(epochs, Counter()) - Counter({0: 4, 1: 4})
    assert sorted(replayed.values()) == [1, 1, 1, 1, 1, 1, 2]  # 8 draws of 7 clips
    assert list(data.validation_rows) == [0, 1]
    assert (data.summary["clips"], data.summary["replayed"], data.summary["passes"]) == (4, 2, 4)

    dataset = data.dataset(build_tokenizer(data.texts), SPEC, None)
    recorded = {known.recordings.read(row)[0].tobytes() for row in range(1, 8)}
    recorded |= {new.recordings.read(row)[0].tobytes() for row in range(2)}
    assert {data.prepared.recordings.read(row)[0].tobytes() for row in range(9)} == recorded
    frames = data.prepared.frames(range(9), 256)
    assert [len(dataset.read(row).pcm) // 256 for row in range(9)] == frames
    accounting = data.accounting(sampler)
    names = data.prepared.rows.filename
    accounting.count((names[row] for row in epochs[0].elements()), ())
    summary = "epoch 1: 4 trained + 0 rejected + 0 validation + 5 not drawn = 9 clips; 4 trained = 4 draws"
    assert accounting.finish_epoch(0, accounting.counts()) == summary


@pytest.mark.parametrize("known", [0, 1, 5])
def test_draw_is_a_function_of_seed_and_epoch(known: int) -> None:
    draw = ReplayDraw(3, known, 7 if known else 0, seed=1)
    assert all((draw(epoch) == draw(epoch)).all() for epoch in range(3))
    assert [len(draw(epoch)) for epoch in range(3)] == [10 if known else 3] * 3
    counts = Counter(row for epoch in range(5) for row in draw(epoch).tolist())
    replayed = [counts[3 + n] for n in range(known)]
    assert max(replayed, default=0) - min(replayed, default=0) <= 1
    others = [ReplayDraw(3, known, 7, seed=seed)(1).tolist() for seed in range(9) if known == 5]
    assert known != 5 or len({tuple(other) for other in others}) > 1
