"""More speakers for a voice that is there: nothing sounds otherwise before the first update."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsModel

from vits_trainer.models.pretrained import EMBEDDED_SPEAKER_SIZE, speaker_names, with_weight_norm
from vits_trainer.text.tokenizer import VoiceTokenizer
from vits_trainer.text.tokenizer import with_characters as extended_tokenizer
from vits_trainer.text.vocabulary import missing_characters
from vits_trainer.utils.errors import ModelError


def add_speakers(model: VitsModel, speakers: Sequence[str]) -> VitsModel:
    """A voice that knows ``speakers`` beside its own, in training form and eval mode; ``model`` stays as it is.

    A voice of one speaker gets conditioning whose layers are zero, and embeddings from N(0, 1), as VITS has them: each
    speaker sounds as the voice did, to the last bit. A voice of several keeps its weights and its rows of embeddings;
    a new row is the mean of the old ones.

    Args:
        model: in training form.
        speakers: names, of the data; new ones get ids behind the voice's own, in this order.

    Raises:
        ModelError: a new speaker has no name, or there would be one speaker only.
    """
    one = model.config.num_speakers <= 1
    known = speaker_names(model.config)
    new = [name for name in speakers if name not in known]
    if "" in new:
        raise ModelError(
            "--extend_speakers: the data have clips without a speaker's name. Prepare them with --speaker_column, or "
            "leave the flag out."
        )
    if one and len(known) + len(new) < 2:
        raise ModelError(
            "--extend_speakers: the voice has one speaker, and so have the data. Leave it out; or prepare the data of "
            "several with --speaker_column."
        )
    config = copy.deepcopy(model.config)
    config.speakers = known + new
    config.num_speakers = len(config.speakers)
    config.speaker_embedding_size = config.speaker_embedding_size or EMBEDDED_SPEAKER_SIZE
    larger = with_weight_norm(VitsModel(config))
    weights = model.state_dict()
    if one:
        nn.init.normal_(larger.embed_speaker.weight)
    else:
        rows: Tensor = weights["embed_speaker.weight"]
        weights["embed_speaker.weight"] = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(len(new), -1)])
    unfit = larger.load_state_dict(weights, strict=False)
    if one:
        _zero_conditioning(larger)
    strange = [name for name in unfit.missing_keys if not (one and ("cond" in name or "embed_speaker" in name))]
    if strange or unfit.unexpected_keys:
        raise ModelError(f"--extend_speakers: no place for {', '.join([*strange, *unfit.unexpected_keys][:10])}.")
    return larger.eval()


def _zero_conditioning(model: VitsModel) -> None:
    """Makes the conditioning's layers give zero. Changes ``model``.

    Through g alone where there is weight norm: a direction v of zero has no length to divide by, and no gradient.
    """
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in ("cond", "cond_layer"):
            normed = parametrize.is_parametrized(layer, "weight")
            nn.init.zeros_(layer.parametrizations.weight.original0 if normed else layer.weight)
            nn.init.zeros_(layer.bias)


def add_characters(model: VitsModel, tokenizer: VoiceTokenizer, texts: Iterable[str]) -> VoiceTokenizer:
    """Gives ``model`` an embedding for each letter, mark and digit of ``texts`` that the vocabulary lacks.

    Old ids and their embeddings stay to the last bit; new ones start at the mean of the old ones. Changes ``model``.

    Returns:
        The tokenizer that knows them.
    """
    missing = missing_characters(tokenizer, texts)
    # Of phonemes every sign counts: stress marks and lengths are no letters.
    added = [found.character for found in missing if found.is_pronounced or tokenizer.phonemize]
    if not added:
        return tokenizer
    larger = extended_tokenizer(tokenizer, added)
    old = model.text_encoder.embed_tokens.weight.detach()
    known = 1 + max(tokenizer.encoder.values())
    padding = model.text_encoder.embed_tokens.padding_idx
    embedding = nn.Embedding(max(1 + max(larger.encoder.values()), len(old)), old.shape[1], padding_idx=padding)
    with torch.no_grad():
        embedding.weight[: len(old)] = old
        # Some voices have more rows than tokens.
        embedding.weight[known:] = old[:known].mean(dim=0)
    model.text_encoder.embed_tokens = embedding
    model.config.vocab_size = len(embedding.weight)
    return larger
