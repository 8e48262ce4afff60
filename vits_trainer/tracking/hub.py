"""Uploading a trained voice to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, errors, get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from vits_trainer.config.train import TrainConfig
from vits_trainer.models.voice_versions import VOICE
from vits_trainer.utils.errors import ConfigError, PublishingError
from vits_trainer.utils.redaction import redacted


def check_can_push(config: TrainConfig) -> None:
    """Before a run that ends with an upload. Asks nobody: a name in its form, and a login, are all that it can see.

    Raises:
        ConfigError: the name is none of the Hub's, there is no login, or the Hub is switched off.
    """
    name = config.push_to_hub
    if name is None:
        return
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ConfigError(f"--push_to_hub {name}: {error}") from error
    if name.count("/") != 1:
        raise ConfigError(f"--push_to_hub {name}: give the owner, too, as owner/{name}.")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push_to_hub {name}, and HF_HUB_OFFLINE switches the Hub off. Unset one of them.")
    if not get_token():
        raise ConfigError(
            f"--push_to_hub {name}, and nobody is logged in to the Hub here. Log in with hf auth login, or set "
            "HF_TOKEN."
        )


def push(voice: Path, name: str, private: bool) -> str:
    """Uploads an exported voice as the model ``name``, made if need be, in one commit.

    The token is the login's or HF_TOKEN's; nothing of it is written anywhere.

    Returns:
        The commit's address.

    Raises:
        PublishingError: it did not arrive; the voice is as it was, and the message says how to send it later.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise PublishingError(
                f"The voice is in {voice}, and was not sent: {constants.ENDPOINT}/{name} is public. Name another, or "
                f"give --hub_private false. To send it there all the same: hf upload {name} {voice}"
            )
        commit = api.upload_folder(
            repo_id=name,
            folder_path=voice,
            commit_message="A voice of vits_trainer",
            allow_patterns=[path.name for path in voice.iterdir() if VOICE.files.fullmatch(path.name)],
        )
    # HTTPError: of whichever client huggingface_hub has. RuntimeError: a large file did not arrive.
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        visibility = "--private " if private else ""
        reason = redacted(" ".join(str(error).split())[:300])
        raise PublishingError(
            f"The voice is in {voice}, but did not reach {constants.ENDPOINT}/{name} ({type(error).__name__}: "
            f"{reason}). Send it with: hf upload {visibility}{name} {voice}"
        ) from error
    return str(commit.commit_url)
