"""The files of a run: written whole or not at all, read back by evaluate, generate and report.

Of a run over several processes the first one writes; where the others come to the same lines, nothing happens.
"""

import contextlib
import csv
import fcntl
import importlib.metadata
import io
import json
import logging
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

import aevb
from aevb import processes
from aevb.errors import InputError
from experiments.configs import base
from experiments.settings import conform, flatten

FAILURE = "failure.json"  # of a packed trial that left the numbers: its reason
LOCK = ".lock"  # held while a process trains in the folder; it stays
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpyro", "orbax-checkpoint", "numpy", "scikit-learn")


def in_store(path: epath.PathLike) -> bool:
    """Whether a path is of an object store (gs://), which has no renames, no growing files and no locks."""
    return "://" in os.fspath(path)


def at(path: str) -> epath.Path:
    """The folder of a run, once it is seen that its store, if it lies in one, can be used.

    Raises:
      InputError: what reads gs:// is not installed, nobody is signed in, or the bucket is not there.
    """
    folder = epath.Path(path)
    if not in_store(path):
        return folder
    bucket = path.removeprefix("gs://").split("/")[0]
    if not path.startswith("gs://") or not bucket:
        raise InputError(f"{path} is not understood: give a folder, or gs://BUCKET/FOLDER of Google Cloud Storage")
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import google.auth
    except ImportError as error:
        raise InputError(f"{path} needs {error.name}: pip install -e '.[gcs]'") from error
    # Another process may write there, and TensorStore does: what was listed once says nothing of now.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs, with a traceback, it also raises
    if not os.environ.get("STORAGE_EMULATOR_HOST"):
        try:
            google.auth.default()
        except google.auth.exceptions.GoogleAuthError as error:
            raise InputError(
                f"{path} cannot be reached ({' '.join(str(error).split())}): sign in with gcloud auth "
                "application-default login, or give this machine a service account"
            ) from error
    if not epath.Path(f"gs://{bucket}").exists():
        raise InputError(
            f"the bucket gs://{bucket} is not there or not yours to read: make it with gcloud storage buckets create "
            f"gs://{bucket}, or correct {path}"
        )
    return folder


def _write(path: epath.Path, write: Callable[[epath.Path], object]) -> None:
    """Write a file under another name and rename it, so that a reader sees the old content or the new.

    An object of a store changes as a whole when it is closed, and has no rename.
    """
    if not processes.is_first():
        return
    if in_store(path):
        write(path)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        write(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def claim(workdir: epath.Path) -> Iterator[None]:
    """Hold the folder of a run for this process alone; the system frees it when the process ends, however it ends.

    It is a file that is locked, open for writing: NFS knows such locks on all of its machines, and none of a folder.
    Folders of cloud storage cannot be held.

    Raises:
      InputError: another process holds it.
    """
    if in_store(workdir):
        yield
        return
    held = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process is training in {workdir}: wait for it or choose another --workdir"
            raise InputError(message) from None
        yield
    finally:
        os.close(held)


def sweep(workdir: epath.Path) -> None:
    """Remove what a killed process left of a file that it was writing."""
    if in_store(workdir):
        return
    for path in [*workdir.glob(".*.tmp"), *(workdir / "figures").glob(".*.png")]:
        path.unlink(missing_ok=True)


def write_text(path: epath.Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_arrays(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    _write(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def write_json(path: epath.Path, value: Any) -> None:
    """Write strict JSON: a number that is not finite is a bug and raises."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: epath.Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table under its header, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def read_json(path: epath.Path) -> Any:
    """Read JSON.

    Raises:
      InputError: the file is not there or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there: give the --workdir of a run of experiments.train") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): restore it or start another --workdir") from None


def read_config(workdir: epath.Path) -> ConfigDict:
    """The full config of the run in a workdir; keys that are younger than the run have their defaults.

    Raises:
      InputError: there is none, or it is not one.
    """
    path = workdir / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no config: restore it or start another --workdir")
    values = flatten(values)
    younger = flatten(base.get_config().to_dict()) if "dataset" in values else {}
    return conform(younger | values, str(path))


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; from a line that a kill cut short or that is damaged, the rest is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_metrics(workdir: epath.Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace metrics.jsonl by these rows."""
    write_text(workdir / "metrics.jsonl", _lines(rows))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def append_metrics(workdir: epath.Path, rows: Sequence[dict[str, Any]], start: int) -> None:
    """Add `rows[start:]` to metrics.jsonl, which has those before; in a store, whose objects cannot grow, write all."""
    if start == len(rows) or not processes.is_first():
        return
    if in_store(workdir):
        write_metrics(workdir, rows)
        return
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(_lines(rows[start:]))


def remove(path: epath.Path) -> None:
    """Remove a file, if it is there."""
    if processes.is_first():
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "aevb": aevb.__version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def hardware() -> dict[str, Any]:
    """The machine that a result was made on."""
    import jax

    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory() -> float:
    """GiB that this process has held at most so far: of its accelerator's memory, or, on a CPU, of the machine's."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    return stats.get("peak_bytes_in_use", host) / 2**30


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
