"""A voice grows: more speakers, more characters. What it could say before it says as before, to the last bit."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer.errors import ConfigError
from vits_trainer.models import in_training_form
from vits_trainer.text import extended

SPEAKER_EMBEDDING_SIZE = 256
"""VITS's own."""


def with_speakers(model: VitsModel, speakers: Sequence[str]) -> VitsModel:
    """A voice that knows these speakers beside those that it knew; ``model`` itself where it knows them all.

    A voice of one speaker becomes one of several: the layers that a speaker acts through begin at zero, so that all of
    them sound as the one did. In a voice of several the old speakers' numbers and embeddings stay, and a new one begins
    at the mean of the old. The names are kept in the configuration: a name's place is its number.

    Args:
        model: in training form.
        speakers: names, in the order that new ones get their numbers in.

    Raises:
        ConfigError: a speaker has no name.
    """
    if not all(speakers):
        raise ConfigError(
            "--extend_speakers true: there are clips without a speaker's name. Give each line of metadata.csv a third "
            "column, filename|text|speaker, or prepare the data with --speaker_column."
        )
    known = known_speakers(model.config)
    names = [*known, *(name for name in speakers if name not in known)]
    if names == known or len(names) == 1:
        return model
    changes: dict[str, Any] = {"num_speakers": len(names), "speakers": names}
    if not known:
        grown = _rebuilt(model, {**changes, "speaker_embedding_size": SPEAKER_EMBEDDING_SIZE}, {})
        nn.init.normal_(grown.embed_speaker.weight)
        for name, module in grown.named_modules():
            if isinstance(module, nn.Conv1d) and name.endswith((".cond", ".cond_layer")):
                _silence(module)
        return grown
    old = model.embed_speaker.weight.detach()
    return _rebuilt(model, changes, {"embed_speaker.weight": _with_means(old, old, len(names))})


def with_characters(
    model: VitsModel, tokenizer: VitsTokenizer, characters: Sequence[str]
) -> tuple[VitsModel, VitsTokenizer]:
    """A voice that knows these characters, too, and its tokenizer.

    The ids and the embeddings of the old ones stay, and a new one begins at the mean of the old.

    Args:
        model: in training form.
        tokenizer: its.
        characters: that the vocabulary lacks.
    """
    grown = extended(tokenizer, characters)
    table = model.text_encoder.embed_tokens.weight.detach()  # (V, C)
    learnt = table[[number for number in tokenizer.encoder.values() if number < len(table)]]
    wider = _with_means(table, learnt, max(len(table), *(number + 1 for number in grown.encoder.values())))
    wider[[grown.encoder[character] for character in characters]] = learnt.mean(dim=0)  # a table may have spare rows
    return _rebuilt(model, {"vocab_size": len(wider)}, {"text_encoder.embed_tokens.weight": wider}), grown


def known_speakers(config: VitsConfig) -> list[str]:
    """Names of a voice's speakers, numbers where it has no names; none for a voice of one speaker."""
    if config.num_speakers <= 1:
        return []
    named: list[str] = getattr(config, "speakers", None) or []
    return [*named, *map(str, range(len(named), config.num_speakers))]


def _rebuilt(model: VitsModel, changes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> VitsModel:
    """A voice of a changed configuration with all old weights but those given; what is new is drawn at random."""
    config = copy.deepcopy(model.config)
    config.update(dict(changes))
    grown = in_training_form(VitsModel(config)).train(model.training)
    grown.load_state_dict({**model.state_dict(), **weights}, strict=False)
    return grown


def _with_means(table: Tensor, old: Tensor, rows: int) -> Tensor:
    """(N, C) to (rows, C): new rows are the mean of ``old``, (M, C)."""
    return torch.cat([table, old.mean(dim=0).expand(rows - len(table), -1)])


def _silence(layer: nn.Conv1d) -> None:
    """Zero, and able to learn: under weight norm of magnitude 0, as a direction of length 0 would be no number."""
    parameters = dict(layer.named_parameters())
    nn.init.zeros_(parameters["bias"])
    name = "weight" if "weight" in parameters else "parametrizations.weight.original0"
    nn.init.zeros_(parameters[name])
