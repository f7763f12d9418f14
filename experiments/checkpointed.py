"""What the checkpoints of a run hold: the state to go on from, and the parameters to judge it by."""

import contextlib
import sys
from typing import Any

from etils import epath

from aevb import processes, training
from aevb.checkpoints import Checkpoints
from aevb.errors import InputError
from experiments.build import Run


def restore(run: Run, folder: epath.Path) -> tuple[Any, dict[str, Any]]:
    """The replicated parameters of the run in a workdir, and which checkpoint they are from.

    A run with early stopping (`patience`) is judged by its best checkpoint on validation, any other by its last. Where
    an average of the weights was kept, that is what comes back.

    Raises:
      InputError: there is no whole checkpoint.
    """
    which = "best" if run.patience else "last"
    restored = restore_params(run, folder, which)
    if restored is None:
        raise InputError(f"{folder} has no checkpoint yet: train first, with experiments.train --workdir={folder}")
    params, step = restored
    return params, {"checkpoint": which, "step": step}


def restore_params(run: Run, folder: epath.Path, which: str) -> tuple[Any, int] | None:
    """The replicated parameters to evaluate, from the "last" or the "best" checkpoint, and their step."""
    path = folder / "checkpoints" / which
    if not processes.told_by_first(path.exists):
        return None
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        restored = restore_state(run, checkpoints)
    if restored is None:
        return None
    state, step = restored
    return training.replicate(evaluated_params(state)), step


def restore_state(run: Run, checkpoints: Checkpoints) -> tuple[Any, int] | None:
    """The newest whole state and its step, None if nothing was ever saved; says which had to be passed over.

    Raises:
      InputError: no checkpoint is whole, or they are of another model or another version of the libraries.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None  # Orbax's reads, should it give them up
    try:
        restored = checkpoints.restore(run.init_state())
        sys.unraisablehook = hook
    except InputError:
        sys.unraisablehook = hook
        raise
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the checkpoints in {checkpoints.folder} do not fit the model of config.json ({reason}): restore that "
            "file, or use the versions in summary.json"
        ) from error
    if restored is None:
        return None
    state, step, passed_over = restored
    for sentence in passed_over:
        warn(f"{sentence}; using step {step}")
    return state, step


def warn(sentence: str) -> None:
    """Say something on stderr; of several processes one does."""
    if processes.is_first():
        print(sentence, file=sys.stderr, flush=True)


def evaluated_params(state: Any) -> Any:
    """The average of the weights where one is kept, else the weights."""
    return state.params if state.ema_params is None else state.ema_params
