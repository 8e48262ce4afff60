"""A voice that grows says what it could say as before."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import VitsModel, VitsTokenizer, pipeline

from tests.voices import MINIATURE, many_speakers
from vits_trainer.audio import spectrogram
from vits_trainer.config import Architecture, LossWeights
from vits_trainer.data import ClipReader, open_prepared
from vits_trainer.errors import ConfigError, ModelError
from vits_trainer.evaluation import Validation
from vits_trainer.extension import known_speakers, with_characters, with_speakers
from vits_trainer.generator import Generator
from vits_trainer.models import audio_spec, export, load_model, new_model, speaker_ids
from vits_trainer.objective import Objective
from vits_trainer.order import MicroBatch
from vits_trainer.runtime import Runtime
from vits_trainer.text import build_tokenizer

SIZES = {**MINIATURE["architecture"], "resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1, 3),)}
TOKENIZER = build_tokenizer(["number 0123456789 speaks"])
TOKENS = torch.tensor([[0, 5, 0, 8, 0, 6, 0, 12, 0, 14, 0]])


def new_voice(*speakers: str, **changes: object) -> VitsModel:
    """With weights that do something everywhere: fresh couplings would be the identity."""
    torch.manual_seed(0)
    model = new_model(Architecture(**{**SIZES, **changes}), TOKENIZER, list(speakers))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.1 if name.startswith("decoder") else 0.02) * torch.randn_like(parameter)
    return model.eval()


def speech(model: VitsModel, speaker: int | None = None) -> Tensor:
    """By transformers' own forward, with the same noise each time."""
    torch.manual_seed(5)
    with torch.no_grad():
        return model(TOKENS, speaker_id=speaker).waveform


@pytest.mark.parametrize("stochastic", [True, False], ids=["stochastic durations", "plain durations"])
def test_voice_of_one_becomes_one_of_several_who_all_sound_as_it_did_to_the_last_bit(stochastic):
    model = new_voice(use_stochastic_duration_prediction=stochastic)
    before = speech(model)
    grown = with_speakers(model, ["ava", "bo", "cem"])
    assert grown.config.num_speakers == 3
    assert grown.embed_speaker.weight.unique(dim=0).shape == (3, 256)  # each its own, or they could not part
    for speaker in range(3):
        assert torch.equal(speech(grown, speaker), before)


def losses(model: VitsModel, folder: Path) -> dict[str, float]:
    """Of all clips, judged as a validation does, whose noise is the same each time."""
    prepared = open_prepared(folder)
    objective = Objective("mel", LossWeights(), audio_spec(model.config), 8)
    reader = ClipReader(prepared, TOKENIZER, objective.spec, speaker_ids(model.config, prepared.speakers))
    validation = Validation(Runtime("fp32", 1), objective, reader, range(len(prepared.rows)), 4, 0)
    return {
        **validation.run(Generator(model, "posterior", 8), None).scalars,
        "from text": validation.mel_from_text(Generator(model, "posterior", 8)),
    }


def test_every_loss_of_every_speaker_is_what_it_was(tmp_path):
    folder = many_speakers(tmp_path, {"ava": 2, "bo": 2, "cem": 2})
    model = new_voice()
    before = losses(model, folder)
    assert losses(with_speakers(model, ["ava", "bo", "cem"]), folder) == before
    assert {"validation/mel", "validation/duration", "validation/speaker_mel/bo", "from text"} <= before.keys()


def test_every_layer_that_a_speaker_acts_through_learns(tmp_path):
    folder = many_speakers(tmp_path, {"ava": 2, "bo": 2})
    grown = with_speakers(new_voice(), ["ava", "bo"])
    start = {name: parameter.detach().clone() for name, parameter in grown.named_parameters()}
    new = start.keys() - {name for name, _ in new_voice().named_parameters()}
    prepared = open_prepared(folder)
    spec = audio_spec(grown.config)
    reader = ClipReader(prepared, TOKENIZER, spec, speaker_ids(grown.config, prepared.speakers))
    batch = reader.__getitems__(MicroBatch((0, 1, 2, 3), 0, 0, True))[0].to(torch.device("cpu"))
    magnitude = spectrogram(batch.waveform, batch.frame_lengths, spec)
    generator = Generator(grown, "posterior", 8).train()
    optimizer = torch.optim.AdamW(generator.parameters(), 1e-2, weight_decay=0.0)
    for _ in range(3):  # a direction moves once its magnitude is not zero, an embedding once something asks for it
        made = generator(batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths, batch.speaker_ids)
        optimizer.zero_grad()
        (made.waveform.square().sum() + made.duration_loss.sum() + made.latents.square().mean()).backward()
        optimizer.step()
    end = dict(grown.named_parameters())
    # Weight, bias of decoder and durations; magnitude, direction, bias of the posterior encoder and two couplings.
    assert len(new) == 1 + 2 * 2 + 3 * 3
    assert [name for name in new if torch.equal(start[name], end[name])] == []
    assert all(parameter.isfinite().all() for parameter in end.values())


def test_speakers_that_join_several_begin_at_their_mean_and_move_nobody():
    model = new_voice("bo", "cem")
    with torch.no_grad():
        model.embed_speaker.weight.copy_(torch.arange(512.0).view(2, 256))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoken = [speech(model, speaker) for speaker in (0, 1)]
    grown = with_speakers(model, ["ava", "cem", "zin"])
    assert grown.config.speakers == ["bo", "cem", "ava", "zin"]
    assert speaker_ids(grown.config, ["ava", "cem", "zin"]) == {"bo": 0, "cem": 1, "ava": 2, "zin": 3}
    after = grown.state_dict()
    assert torch.equal(after["embed_speaker.weight"][:2], before["embed_speaker.weight"])
    assert after["embed_speaker.weight"][2:].tolist() == [(torch.arange(256.0) + 128).tolist()] * 2
    assert all(torch.equal(after[name], before[name]) for name in before if name != "embed_speaker.weight")
    assert all(torch.equal(speech(grown, speaker), spoken[speaker]) for speaker in (0, 1))


def test_speakers_without_names_are_called_by_their_numbers():
    model = new_voice("a", "b")
    model.config.speakers = None
    assert known_speakers(model.config) == ["0", "1"]
    grown = with_speakers(model, ["1", "ava"])
    assert grown.config.speakers == ["0", "1", "ava"]


def test_voice_that_knows_them_all_stays_what_it_is():
    several, one = new_voice("ava", "bo"), new_voice()
    assert with_speakers(several, ["bo"]) is several
    assert with_speakers(one, ["ava"]) is one


def test_clips_without_a_speakers_name_are_refused():
    with pytest.raises(ConfigError, match=r"--extend_speakers true: .* filename\|text\|speaker"):
        with_speakers(new_voice("ava", "bo"), [""])


def test_voice_that_was_not_extended_says_how(tmp_path):
    with pytest.raises(ModelError, match="--extend_speakers true"):
        speaker_ids(new_voice("ava", "bo").config, ["cem"])


def test_plain_transformers_loads_the_grown_voice_and_its_pipeline_takes_a_speakers_number(tmp_path):
    grown = with_speakers(new_voice(), ["ava", "bo"])
    with torch.no_grad():  # as if they had learnt to differ; a decoder that has learnt nothing makes little of it
        grown.decoder.cond.weight.normal_(std=1e3)
    export(grown, TOKENIZER, None, tmp_path / "voice")
    loaded, report = VitsModel.from_pretrained(tmp_path / "voice", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.speakers == ["ava", "bo"]
    assert VitsTokenizer.from_pretrained(tmp_path / "voice").get_vocab() == TOKENIZER.get_vocab()
    speaker = pipeline("text-to-speech", model=str(tmp_path / "voice"))
    spoken = []
    for number in (0, 1):
        torch.manual_seed(5)
        spoken.append(torch.from_numpy(speaker("number 1", forward_params={"speaker_id": number})["audio"]))
    assert (spoken[0].flatten()[:256] - spoken[1].flatten()[:256]).abs().max() > 1e-3  # far above the tolerance below
    tokens, ours = torch.tensor([TOKENIZER("number 1").input_ids]), load_model(str(tmp_path / "voice"))
    torch.manual_seed(5)
    with torch.no_grad():
        ours = ours(tokens, speaker_id=1).waveform
    torch.testing.assert_close(spoken[1].flatten(), ours.flatten(), atol=1e-5, rtol=1e-3)


def test_new_characters_begin_at_the_mean_and_old_texts_sound_as_before(tmp_path):
    model = new_voice()
    before, spoken = model.text_encoder.embed_tokens.weight.detach().clone(), speech(model)
    grown, tokenizer = with_characters(model, TOKENIZER, ["ä", "ß"])
    after = grown.text_encoder.embed_tokens.weight.detach()
    assert grown.config.vocab_size == len(tokenizer) == len(before) + 2
    assert torch.equal(after[:-2], before)
    torch.testing.assert_close(after[-2:], before.mean(dim=0).expand(2, -1))
    assert torch.equal(speech(grown), spoken)
    export(grown, tokenizer, None, tmp_path / "voice")
    speaker = pipeline("text-to-speech", model=str(tmp_path / "voice"))
    assert speaker("ßä")["audio"].size > 0
    assert VitsTokenizer.from_pretrained(tmp_path / "voice")("ßä").input_ids[1::2] == [len(before) + 1, len(before)]


def test_character_takes_a_spare_row_of_the_embedding_where_there_is_one():
    model = new_voice()
    spare, _ = with_characters(model, TOKENIZER, ["x"])  # a table with a row that TOKENIZER does not know
    grown, tokenizer = with_characters(spare, TOKENIZER, ["ä"])
    table = grown.text_encoder.embed_tokens.weight
    assert len(table) == len(TOKENIZER) + 1
    torch.testing.assert_close(table[tokenizer.encoder["ä"]], table[:-1].mean(dim=0))
