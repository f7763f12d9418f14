"""What the pages share: templates, files that may not be there yet, numbers in letters, pictures inside the page."""

import base64
import math
import pathlib
from typing import Any

import jinja2
from etils import epath

from aevb.errors import InputError
from experiments.workdir import read_json

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def read_if_there(path: epath.Path) -> dict[str, Any]:
    """What a JSON file holds; nothing while it is not there.

    Raises:
      InputError: the file is not JSON, or holds something else than keys and values.
    """
    told = read_json(path) if path.exists() else {}
    if not isinstance(told, dict):
        raise InputError(f"{path} holds no keys and values: restore it, or make it again")
    return told


def decimal(value: float, digits: int = 2) -> str:
    """A number as it is read, with so many digits after the point."""
    return f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    """Seconds in the units that a person would say."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def inlined(path: epath.Path) -> str:
    """A picture's bytes in base64, for a page that needs no other file."""
    return base64.b64encode(path.read_bytes()).decode()
