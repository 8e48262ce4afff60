"""``report``: writes a run as one self-contained HTML page."""

from pathlib import Path

from vits_trainer.config.tools import ReportConfig
from vits_trainer.tracking.html_report import media_bytes, read_run, render
from vits_trainer.utils.errors import ConfigError
from vits_trainer.utils.files import atomic_write


def run(config: ReportConfig) -> int:
    """Writes the page, and prints its path and size.

    Raises:
        ConfigError: the page cannot be written.
        DataError: the folder is not that of a run.
    """
    run_dir = Path(config.run_dir)
    result = read_run(run_dir)
    page = render(result)
    output = Path(config.output) if config.output else run_dir / "report.html"
    if output.is_dir():
        raise ConfigError(f"--output {output}: cannot be written, as it is a folder. Give a file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, page)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}). Choose another path.") from error
    for sentence in result.missing:
        print(f"  {sentence}")
    size_mb, media_mb = (size / 1e6 for size in (len(page.encode()), media_bytes(result.sentences)))
    print(f"Report: {output} ({size_mb:.1f} MB, including {media_mb:.1f} MB of speech and images)")
    return 0
