"""Checkpoints: saved in the background by Orbax, all or nothing, and never restored unless every byte is the one saved.

Orbax writes a step into a temporary folder and renames it when it is whole, so a killed process leaves the last whole
step; in an object store (gs://), which has no renames, it writes a marker into the folder instead. It does not notice a
bit that flips afterwards; so a manifest with the SHA-256 of each file goes into the folder before the rename or the
marker, and is checked before anything is read back.

Of several processes, which all hold the same state, all take part in a save and the first one writes it: Orbax saves
what every process could write, and so wants arrays that it knows to be the same everywhere.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aevb import processes
from aevb.errors import InputError

MANIFEST = "sha256.json"
COMMITTED = "commit_success.txt"  # Orbax's marker of a whole step in an object store
SAVE_SECONDS = 300  # of several processes: that a save may take, and that one may wait in it for the others
ITEM = "default"  # where Orbax puts the arrays of a step; beside it are its own notes, which it still writes later


class DamagedError(InputError):
    """There are checkpoints, and none of them is whole."""


class Checkpoints:
    """The checkpoints of one run in one folder, by step.

    Args:
      folder: created if it is not there; unfinished saves in it are ignored, and swept away by the first save. Opening
        sweeps nothing, so that a second process may read the checkpoints of a run while it saves.
      keep: how many of the latest steps to keep.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 1) -> None:
        import orbax.checkpoint as ocp

        self.folder = epath.Path(folder)
        self._marked = str(self.folder).startswith("gs://")
        if not self._marked:
            self.folder = self.folder.absolute()
        self._ocp = ocp
        several = {"timeout_secs": SAVE_SECONDS} if jax.process_count() > 1 else {}
        self._saving: int | None = None
        self._swept = False
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest, **several),
                # Those of two folders that save the same step must not wait for each other.
                multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name),
            ),
        )

    def save(self, step: int, state: Any) -> None:
        """Start saving a tree of arrays as this step, after any save still under way; a step already there stays.

        Steps only go up: see `forget_after`.

        Raises:
          InputError: the save before this one could not be written.
          ValueError: a later step is there.
        """
        self.wait()
        if step not in self._manager.all_steps():
            self._saving = step
            with _DiskErrors(self.folder):
                self._sweep()
                if not self._manager.save(step, args=self._ocp.args.StandardSave(_of_all(state))):
                    raise ValueError(f"step {step} is not saved: {self.folder} has step {self._manager.latest_step()}")

    def forget_after(self, step: int) -> None:
        """Remove every step after this one: a run that goes on from an earlier step makes them again."""
        self.wait()
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Return when the last save is whole on disk.

        Raises:
          InputError: it could not be written.
        """
        with _DiskErrors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and let go of Orbax's threads."""
        self.wait()
        self._manager.close()

    def restore(self, target: Any) -> tuple[Any, int, list[str]] | None:
        """The newest step whose files are all as they were saved, after any save still under way.

        Args:
          target: a tree of arrays of the shapes and dtypes to restore.

        Returns:
          The tree, its step, and a sentence for each newer step that was passed over; None if nothing was ever saved.

        Raises:
          DamagedError: there are checkpoints, and none of them is whole.
          InputError: the save under way could not be written.
        """
        self.wait()  # Orbax lists a step from the moment its save starts
        step, passed_over = processes.told_by_first(self._newest_whole)
        if step is not None:
            state = self._manager.restore(step, args=self._ocp.args.StandardRestore(_of_all(target)))
            return _ours(state), step, passed_over
        if passed_over:
            raise DamagedError(
                f"{'; '.join(passed_over)}: no whole checkpoint is left here, copy one back or train anew"
            )
        return None

    def _newest_whole(self) -> tuple[int | None, list[str]]:
        """The newest step that is not damaged, and a sentence for each newer one."""
        passed_over = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            damage = self._damage(step)
            if damage is None:
                return step, passed_over
            passed_over.append(f"checkpoint {self.folder / str(step)} is damaged ({damage})")
        return None, passed_over

    def _sweep(self) -> None:
        """Remove what a killed process left of its unfinished saves, once."""
        if self._swept or not processes.is_first():
            return
        for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
            path.rmtree()
        if self._marked:
            for path in self.folder.glob("[0-9]*"):
                if not (path / COMMITTED).exists():
                    path.rmtree()
        self._swept = True

    def _write_manifest(self) -> None:
        """Hash the files of the step under way; Orbax calls this before it gives the folder its name or its marker."""
        if self._marked:
            folder = self.folder / str(self._saving)
        else:
            (folder,) = self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        hashes = {name: _sha256(path) for name, path in _files(folder / ITEM)}
        (folder / MANIFEST).write_text(json.dumps(hashes, indent=1, sort_keys=True))

    def _damage(self, step: int) -> str | None:
        """What is wrong with a step's files, or None; not that they cannot be read at this moment, which raises."""
        folder = self.folder / str(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (FileNotFoundError, ValueError):
            return f"{MANIFEST} cannot be read"
        for name, expected in manifest.items():
            try:
                found = _sha256(folder / ITEM / name)
            except FileNotFoundError:
                return f"{name} is missing"
            if found != expected:
                return f"{name} has changed since it was saved"
        return None


class _DiskErrors:
    """Turn a failed write, which Orbax reports as one of several exceptions, into one sentence."""

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        text = f"{error} {error.__cause__}" if error else ""
        late = isinstance(error, TimeoutError | ConnectionError)  # of another process, which no room mends
        of_disk = isinstance(error, OSError) and not late and "://" not in str(self._folder)
        if of_disk or "No space left" in text or "RESOURCE_EXHAUSTED" in text:
            reason = "no space is left on the disk" if "No space left" in text else text.splitlines()[0]
            raise InputError(
                f"a checkpoint cannot be written to {self._folder} ({reason}): make room or set another --workdir, "
                "and run the same command again"
            ) from error


def _of_all(state: Any) -> Any:
    """Arrays of this process as arrays of all processes, equal in each."""
    if jax.process_count() == 1:
        return state
    one_of_each = [jax.local_devices(process_index=index)[0] for index in range(jax.process_count())]
    everywhere = NamedSharding(Mesh(np.asarray(one_of_each), ("process",)), PartitionSpec())

    def shared(leaf: jax.Array) -> jax.Array:
        here = jax.device_put(leaf, jax.local_devices()[0])
        return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, [here])

    return jax.tree.map(shared, state)


def _ours(state: Any) -> Any:
    """The copy of this process of arrays of all processes."""
    if jax.process_count() == 1:
        return state
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, state)


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Each file below a folder, with its name relative to it."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _sha256(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
