"""How this package was installed, for messages that name a missing extra.

The package is not on a registry: its name alone would install nothing, or what a stranger registers by that name.
"""

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "vits-trainer"


def install_command(extra: str) -> str:
    """Returns the command that installs an extra from the source of this installation (direct_url.json of PEP 610)."""
    try:
        origin = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # a source folder on sys.path
        origin = {}
    url = origin.get("url", "")
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}{shlex.quote(url2pathname(urlsplit(url).path) + f'[{extra}]')}"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        url = f"{vcs['vcs']}+{url}" + (f"@{vcs['requested_revision']}" if "requested_revision" in vcs else "")
    if url:
        return f"pip install {shlex.quote(f'{_NAME}[{extra}] @ {url}')}"
    return f"pip install '.[{extra}]' in the source folder"
