"""Fine-tuning with characters that are not in the voice's vocabulary."""

import torch
from transformers import pipeline

from tests.support.models import TOKENIZER, new_voice
from tests.support.voices import prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.models.pretrained import export, load_model
from vits_trainer.text.tokenizer import load_tokenizer


def test_voice_learns_new_letters_and_resumes(tmp_path):
    """Texts with letters that the vocabulary lacks: the report, the extension, a resumed run."""
    prepared_folder(tmp_path, clips=8)  # "number 0 speaks"
    metadata = tmp_path / "training/metadata.csv"
    metadata.write_text(metadata.read_text().replace("speaks", "grüßt"), encoding="utf-8")
    voice = new_voice()
    export(voice, TOKENIZER, None, tmp_path / "english")
    flags = {"model_name": str(tmp_path / "english"), "architecture": "null", "report_to": "none"}
    flags |= {"validation_samples": 0, "discriminator_warmup_updates": 0}
    arguments = train_flags(tmp_path, **flags, max_updates=1)
    assert main(["train_vits", *arguments]) == 0
    log = (tmp_path / "training/runs/run/train.log").read_text()
    assert "letters or digits of the texts, dropped" in log
    assert "'r' 16 times ('number 0 grüßt')" in log
    assert "ü,LATIN SMALL LETTER U WITH DIAERESIS,8" in (tmp_path / "training/runs/run/vocabulary.csv").read_text()

    changes = {**flags, "extend_vocabulary": "true", "checkpoint_dir": tmp_path / "extended", "run_name": "extended"}
    assert main(["train_vits", *train_flags(tmp_path, **changes, max_updates=2)]) == 0
    resumed = train_flags(tmp_path, **changes, max_updates=3, resume_from_checkpoint="latest")
    assert main(["train_vits", *resumed]) == 0
    assert "letters or digits" not in (tmp_path / "training/runs/extended/train.log").read_text()
    result = tmp_path / "final_model"
    tokenizer = load_tokenizer(str(result))
    assert {"ü", "ß"} <= tokenizer.encoder.keys()
    assert all(tokenizer.encoder[token] == index for token, index in TOKENIZER.encoder.items())
    learnt = load_model(str(result)).text_encoder.embed_tokens.weight
    mean = voice.text_encoder.embed_tokens.weight.mean(0)
    assert not torch.equal(learnt[tokenizer.encoder["ü"]], mean)
    assert pipeline("text-to-speech", model=str(result))("grüßt")["audio"].size > 0
