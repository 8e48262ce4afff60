"""The model card of a trained voice."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.train import TrainConfig
from vits_trainer.tracking.model_card import ModelCardInfo, model_card


def test_card_of_a_finetuned_voice_names_base_model_and_licence(tmp_path: Path) -> None:
    info = ModelCardInfo(
        config=TrainConfig(model_name="facebook/mms-tts-eng", push_to_hub="me/mine"),
        data={"accepted": 5, "hours": 1.5, "source": {"kind": "hub", "dataset": "a/b", "revision": "r1"}},
        training_clips=0, language=None, speakers=("ann", "b|o"), phonemes_of=None, sampling_rate=16000, update=7,
        versions={"torch": "2"}, run_dir=tmp_path,
    )  # fmt: skip
    text = model_card(info)
    assert ModelCard(text).data.to_dict() | {"tags": None} == {
        "library_name": "transformers", "pipeline_tag": "text-to-speech", "tags": None,
        "license": "cc-by-nc-4.0", "base_model": "facebook/mms-tts-eng", "language": "eng", "datasets": ["a/b"],
    }  # fmt: skip
    assert 'model="me/mine"' in text
    assert "a/b at revision r1: 5 clips, 1.50 hours." in text
    assert "| 0 | ann |\n| 1 | b\\|o |\n" in text
    assert "## Metrics" not in text
    assert ModelCard(model_card(replace(info, language="kmr-script_latin"))).data.language == "kmr"
    assert "load_tokenizer" not in text
    assert "transformers' own tokenizer needs espeak-ng on the system" in model_card(replace(info, phonemes_of="en-us"))
    assert 'tokenizer=load_tokenizer("me/mine")' in model_card(replace(info, phonemes_of="de"))
    many_speakers = model_card(replace(info, speakers=tuple(f"s{n}" for n in range(17))))
    assert "<details><summary>Names and ids" in many_speakers
    assert "\n| 16 | s16 |\n" in many_speakers
    for trained_on, expected in ((False, "not used for training"), (True, "from the training clips")):
        config = TrainConfig(validate_on_training_clips=trained_on)
        assert f"Sentences {expected}" in model_card(replace(info, config=config), {"sample_0.wav": "hello"})
    # Fine-tuned again from a local folder: base model and licence come from its card.
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice/README.md").write_text(text, encoding="utf-8")
    again = model_card(replace(info, config=TrainConfig(model_name=str(tmp_path / "voice"))))
    assert ModelCard(again).data.license == "cc-by-nc-4.0"
    assert ModelCard(again).data.base_model == "facebook/mms-tts-eng"
    for header in ("- no: [header", "1: x", "tags: 5", "eval_results: x\nmodel_name: y"):
        (tmp_path / "voice/README.md").write_text(f"---\n{header}\n---\n", encoding="utf-8")
        unknown = model_card(replace(info, config=TrainConfig(model_name=str(tmp_path / "voice"))))
        assert "Fine-tuned from voice, whose licence (unknown) also applies" in unknown


def test_metrics_are_evaluation_results_of_the_hub(tmp_path: Path) -> None:
    lines = [
        '{"update": 6, "validation/mel": 2.0}',
        '{"update": 7, "validation/mel": 0.51234, "validation/kl": 1.5, '  # noqa: ISC004
        '"validation/cer": 0.1, "validation/constant_frame_mel": 1.3}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    info = ModelCardInfo(
        config=TrainConfig(model_name=None, architecture=Architecture(), language="de", push_to_hub="me/mine"),
        data={"source": {"kind": "lj_speech", "dataset": "/home/me/clips"}},
        training_clips=5, language="en-us",
        speakers=(), phonemes_of=None, sampling_rate=16000, update=7, versions={}, run_dir=tmp_path,
    )  # fmt: skip
    text = model_card(info)
    card = ModelCard(text)
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {"mel": 0.5123, "cer": 0.1}
    assert card.content.count("constant_frame_mel | 1.3000") == 1
    assert "# mine" in text
    assert (card.data.language, card.data.model_name) == ("de", "mine")
    assert "| mel | 0.5123 |" in text
    assert "/home/me" not in text
    assert "Trained from scratch. Weights after 7 updates." in text
