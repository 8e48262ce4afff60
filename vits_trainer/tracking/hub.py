"""Uploading a trained voice to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, errors, get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from vits_trainer.config.train import TrainConfig
from vits_trainer.models.voice_versions import VOICE
from vits_trainer.utils.errors import ConfigError, PublishingError
from vits_trainer.utils.redaction import redacted


def check_can_push(config: TrainConfig) -> None:
    """Checks before training that the voice can be uploaded after it: the form of the name, and a login. Offline.

    Raises:
        ConfigError: the name is not a valid repository, there is no login, or HF_HUB_OFFLINE is set.
    """
    name = config.push_to_hub
    if name is None:
        return
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise ConfigError(f"--push_to_hub {name}: {error}") from error
    if name.count("/") != 1:
        raise ConfigError(f"--push_to_hub {name}: include the owner, as owner/{name}.")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push_to_hub {name}: HF_HUB_OFFLINE is set. Unset one of them.")
    if not get_token():
        raise ConfigError(
            f"--push_to_hub {name}: not logged in to the Hub. Log in with hf auth login, or set HF_TOKEN."
        )


def push_voice(voice: Path, name: str, private: bool) -> str:
    """Uploads an exported voice in one commit to the model repository ``name``, created if missing.

    Uses the token of the login or HF_TOKEN, and writes it nowhere.

    Returns:
        The URL of the commit.

    Raises:
        PublishingError: the upload failed; the local voice is unchanged, and the error gives the command to retry.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise PublishingError(
                f"The voice is in {voice}, but was not uploaded: {constants.ENDPOINT}/{name} is public. Choose another "
                f"name, or pass --hub_private false. To upload it there anyway: hf upload {name} {voice}"
            )
        commit = api.upload_folder(
            repo_id=name,
            folder_path=voice,
            commit_message="A voice of vits_trainer",
            allow_patterns=[path.name for path in voice.iterdir() if VOICE.files.fullmatch(path.name)],
        )
    # HTTPError: of the client that huggingface_hub uses. RuntimeError: upload of a large file failed.
    except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
        visibility = "--private " if private else ""
        reason = redacted(" ".join(str(error).split())[:300])
        raise PublishingError(
            f"The voice is in {voice}, but was not uploaded to {constants.ENDPOINT}/{name} ({type(error).__name__}: "
            f"{reason}). Upload it with: hf upload {visibility}{name} {voice}"
        ) from error
    return str(commit.commit_url)
