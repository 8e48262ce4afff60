"""More speakers for a voice that is there: nothing sounds otherwise before the first update."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import VitsModel

from vits_trainer.errors import ModelError
from vits_trainer.models import EMBEDDED_SPEAKER_SIZE, in_training_form, speaker_names


def extended(model: VitsModel, speakers: Sequence[str]) -> VitsModel:
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
    larger = in_training_form(VitsModel(config))
    weights = model.state_dict()
    if one:
        nn.init.normal_(larger.embed_speaker.weight)
    else:
        rows: Tensor = weights["embed_speaker.weight"]
        weights["embed_speaker.weight"] = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(len(new), -1)])
    unfit = larger.load_state_dict(weights, strict=False)
    if one:
        _silence(larger)
    strange = [name for name in unfit.missing_keys if not (one and ("cond" in name or "embed_speaker" in name))]
    if strange or unfit.unexpected_keys:
        raise ModelError(f"--extend_speakers: no place for {', '.join([*strange, *unfit.unexpected_keys][:10])}.")
    return larger.eval()


def _silence(model: VitsModel) -> None:
    """Makes the conditioning's layers give zero. Changes ``model``.

    Through g alone where there is weight norm: a direction v of zero has no length to divide by, and no gradient.
    """
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in ("cond", "cond_layer"):
            normed = parametrize.is_parametrized(layer, "weight")
            nn.init.zeros_(layer.parametrizations.weight.original0 if normed else layer.weight)
            nn.init.zeros_(layer.bias)
