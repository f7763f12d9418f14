"""A run's config: read from a file of configs/, overridden from the command line, and its keys and types checked."""

import ast
import difflib
import math
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from aevb.errors import InputError
from experiments.configs import base

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    list: "a list of numbers, such as (300,300)",
}


def load(path: str, overrides: Iterable[str]) -> ConfigDict:
    """The config of a file, with overrides.

    Args:
      path: FILE or FILE:ARGUMENT; the file has `get_config()`, which is given the argument.
      overrides: `--config.KEY=VALUE`, one after another.

    Raises:
      InputError: the file is none, or an override has an unknown key or a value of another type.
    """
    values = flatten(_read_file(path))
    for override in overrides:
        key, given, text = override.removeprefix("--config.").partition("=")
        if key not in values:
            raise InputError(f"--config.{key} is unknown: {_near(key, list(values))}")
        if not given:
            raise InputError(f"--config.{key} has no value: write --config.{key}=VALUE")
        values[key] = text if isinstance(values[key], str) else _parse(text)
    return conform(values, "--config")


def conform(values: dict[str, Any], where: str) -> ConfigDict:
    """A config with exactly the keys and the types of `configs/base.py`.

    Args:
      values: by dotted key.
      where: what the values are from, for messages: the flag or the file.

    Raises:
      InputError: a key is missing or unknown, or a value has another type.
    """
    defaults = flatten(base.get_config().to_dict())
    for key in values:
        if key not in defaults:
            raise InputError(f"{where} has the unknown key {key}: {_near(key, list(defaults))}")
    config = base.get_config()
    for key, default in defaults.items():
        if key not in values:
            raise InputError(f"{where} lacks the key {key}: start from experiments/configs/base.py")
        *sections, leaf = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[leaf] = _typed(values[key], type(default), f"{where}: {key}" if "/" in where else f"{where}.{key}")
    return config


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"seed": 0}}` as `{"train.seed": 0}`; tuples as the lists that JSON makes of them."""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _read_file(path: str) -> dict[str, Any]:
    """What `get_config` of FILE or FILE:ARGUMENT returns, as a dictionary."""
    file, given, argument = path.partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config={path}: there is no file {file!r}; give for example experiments/configs/vae.py")
    try:
        config = runpy.run_path(file)["get_config"](*([argument] if given else []))
        return config.to_dict()
    except InputError:
        raise
    except Exception as error:  # whatever the file does: it is the caller's own
        line = getattr(error, "lineno", None) or _line_in(error, file)
        place = f", line {line}" if line else ""
        raise InputError(
            f"--config={path}: {file}{place} cannot be read as a config ({type(error).__name__}: {error}); mend it, "
            "it needs a get_config that returns a ConfigDict"
        ) from error


def _line_in(error: Exception, file: str) -> int | None:
    """The last line of the file in an exception's traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
        trace = trace.tb_next
    return line


def _parse(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _typed(value: Any, kind: type, name: str) -> Any:
    """The value as the type of its default; of other types only whole numbers become floats, one number a list."""
    if kind is list:
        items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
            return items
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf:
        return float(value)
    elif type(value) is kind is not float:
        return value
    raise InputError(f"{name}={value} has the wrong type: it must be {KINDS[kind]}")


def _near(key: str, known: list[str]) -> str:
    """A suggestion, or the sections there are."""
    leaves = {name.split(".")[-1]: name for name in reversed(known)}
    near = difflib.get_close_matches(key, known, 3, 0.75)
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(key.split(".")[-1], leaves, 2, 0.75)]
    if near:
        return f"do you mean {' or '.join(near)}?"
    sections = dict.fromkeys(name.split(".")[0] + ".*" * ("." in name) for name in known)
    return f"known are {', '.join(sections)}, each explained in experiments/configs/base.py"
