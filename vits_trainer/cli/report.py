"""``report``: writes a run, or a comparison by ear, as one self-contained HTML page."""

from pathlib import Path

from vits_trainer.config.tools import ReportConfig
from vits_trainer.tracking.html_report import media_bytes, read_run, render
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.strings import counted


def run(config: ReportConfig) -> int:
    """Writes the page, and prints its path and size.

    Raises:
        ConfigError: the page cannot be written.
        DataError: the folder is not that of a run, or there is nothing to compare.
        ModelError: a voice cannot be loaded.
    """
    return _compare(config) if config.run_dir is None else _report(config, Path(config.run_dir))


def _report(config: ReportConfig, run_dir: Path) -> int:
    result = read_run(run_dir)
    page = render(result)
    output = _write(config.output or str(run_dir / "report.html"), page)
    for sentence in result.missing:
        print(f"  {sentence}")
    size_mb, media_mb = (size / 1e6 for size in (len(page.encode()), media_bytes(result.sentences)))
    print(f"Report: {output} ({size_mb:.1f} MB, including {media_mb:.1f} MB of speech and images)")
    return 0


def _compare(config: ReportConfig) -> int:
    import transformers  # noqa: PLC0415 - torch: the page of a run does not need it

    from vits_trainer.tracking.listening_page import render_listening_page, short_names, speak_all  # noqa: PLC0415

    transformers.utils.logging.disable_progress_bar()
    sentences = speak_all(config)
    names = short_names(config.compare)
    page = render_listening_page(" / ".join(names), names, sentences)
    output = _write(config.output or "listening.html", page)
    print(
        f"Listening page: {output} ({len(page.encode()) / 1e6:.1f} MB, {len(config.compare)} voices, "
        f"{counted(len(sentences), 'sentence')}). Open it in a browser."
    )
    return 0


def _write(path: str, page: str) -> Path:
    output = Path(path)
    if output.is_dir():
        raise ConfigError(f"--output {output}: cannot be written, as it is a folder. Give a file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, page)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}). Choose another path.") from error
    return output
