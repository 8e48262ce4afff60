"""Extends a trained voice by speakers and characters, without a change of its output, and replaces its decoder."""

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsModel

from vits_trainer.config.architecture import DecoderShape
from vits_trainer.config.framing import check_framing
from vits_trainer.config.serialization import to_dict
from vits_trainer.models.initialization import init_vits_weights
from vits_trainer.models.pretrained import EMBEDDED_SPEAKER_SIZE, audio_spec, speaker_names, untrained
from vits_trainer.models.type2_decoder import has_type2_blocks
from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.text.tokenizer import with_characters as extended_tokenizer
from vits_trainer.text.vocabulary import missing_characters
from vits_trainer.utils.errors import ModelError, require


def add_speakers(model: VitsModel, speakers: Sequence[str]) -> VitsModel:
    """Returns a copy of ``model`` with additional ``speakers``, in training form and eval mode.

    A single-speaker voice gets zero conditioning layers, and embeddings from N(0, 1) as in VITS: each speaker sounds
    exactly like the original voice. A multi-speaker voice keeps its weights and embeddings; a new embedding is the mean
    of the existing ones.

    Args:
        model: in training form; not modified.
        speakers: speaker names in the data; new ones get ids after the existing ones, in this order.

    Raises:
        ModelError: a new speaker has no name, or the result would have only one speaker.
    """
    is_single = model.config.num_speakers <= 1
    known = speaker_names(model.config)
    new = [name for name in speakers if name not in known]
    if "" in new:
        raise ModelError(
            "--extend_speakers: the data has clips without a speaker name. Prepare it with --speaker_column, or omit "
            "the flag."
        )
    if is_single and len(known) + len(new) < 2:
        raise ModelError(
            "--extend_speakers: the voice and the data have one speaker each. Omit the flag, or prepare data of "
            "several speakers with --speaker_column."
        )
    config = copy.deepcopy(model.config)
    config.speakers = known + new
    config.num_speakers = len(config.speakers)
    config.speaker_embedding_size = config.speaker_embedding_size or EMBEDDED_SPEAKER_SIZE
    extended = untrained(config)
    weights = model.state_dict()
    if is_single:
        nn.init.normal_(extended.embed_speaker.weight)
    else:
        rows: Tensor = weights["embed_speaker.weight"]
        weights["embed_speaker.weight"] = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(len(new), -1)])
    mismatch = extended.load_state_dict(weights, strict=False)
    if is_single:
        _zero_conditioning(extended)
    unmatched = [
        name for name in mismatch.missing_keys if not (is_single and ("cond" in name or "embed_speaker" in name))
    ]
    if unmatched or mismatch.unexpected_keys:
        raise ModelError(
            f"--extend_speakers: weights without a match: {', '.join([*unmatched, *mismatch.unexpected_keys][:10])}."
        )
    return extended.eval()


def replace_decoder(model: VitsModel, shape: DecoderShape) -> VitsModel:
    """Returns a copy of ``model`` with a new decoder, initialized as in VITS, in training form and eval mode.

    Args:
        model: in training form; not modified.
        shape: of the new decoder.

    Raises:
        ConfigError: its sizes are incompatible with each other or with the voice's frames.
    """
    spec = audio_spec(model.config)
    sizes = shape.upsample_rates, shape.upsample_kernel_sizes, shape.upsample_initial_channel
    check_framing(spec.sampling_rate, model.config.spectrogram_bins, *sizes, flag="decoder")
    shape.check_blocks("decoder")
    hop = math.prod(shape.upsample_rates)
    require(
        hop == spec.hop,
        f"--decoder.upsample_rates {list(shape.upsample_rates)}: their product is {hop} samples, but a frame of the "
        f"voice has {spec.hop}. Choose rates with that product.",
    )
    config = copy.deepcopy(model.config)
    config.update(to_dict(shape))
    if has_type2_blocks(config):
        config.resblock_type = 1
    replaced = untrained(config)
    init_vits_weights(replaced)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    mismatch = replaced.load_state_dict(kept, strict=False)
    unmatched = [name for name in mismatch.missing_keys if not name.startswith("decoder.")]
    if unmatched or mismatch.unexpected_keys:
        raise ModelError(
            f"--decoder: weights without a match: {', '.join([*unmatched, *mismatch.unexpected_keys][:10])}."
        )
    return replaced.eval()


def _zero_conditioning(model: VitsModel) -> None:
    """Zeroes the output of the conditioning layers. Modifies ``model``.

    With weight norm only g is zeroed: a zero direction v has no length to divide by and no gradient.
    """
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in ("cond", "cond_layer"):
            normed = parametrize.is_parametrized(layer, "weight")
            nn.init.zeros_(layer.parametrizations.weight.original0 if normed else layer.weight)
            nn.init.zeros_(layer.bias)


def add_characters(model: VitsModel, tokenizer: VoiceTokenizer, texts: Iterable[str]) -> VoiceTokenizer:
    """Adds an embedding to ``model`` for each letter, mark and digit of ``texts`` missing from the vocabulary.

    Existing ids and embeddings are unchanged; new embeddings are the mean of the existing ones. Modifies ``model``.

    Returns:
        The extended tokenizer.
    """
    missing = missing_characters(tokenizer, texts)
    # In phonemes all characters count: stress and length marks are not letters.
    added = [entry.character for entry in missing if entry.is_letter or tokenizer.phonemize]
    if not added:
        return tokenizer
    extended = extended_tokenizer(tokenizer, added)
    old = model.text_encoder.embed_tokens.weight.detach()
    known = 1 + max(tokenizer.encoder.values())
    padding = model.text_encoder.embed_tokens.padding_idx
    embedding = nn.Embedding(max(1 + max(extended.encoder.values()), len(old)), old.shape[1], padding_idx=padding)
    with torch.no_grad():
        embedding.weight[: len(old)] = old
        # Some voices have more rows than tokens.
        embedding.weight[known:] = old[:known].mean(dim=0)
    model.text_encoder.embed_tokens = embedding
    model.config.vocab_size = len(embedding.weight)
    return extended
