"""One run over several processes: which part of it is this process', and what the processes tell each other.

JAX's distributed runtime makes them one run: every process makes the same calls in the same order, and what one of them
alone can know (a file, a signal) is told to all before anybody acts on it. Of one process everything here is trivial,
and JAX is not even loaded to ask who writes.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from aevb.errors import InputError


def part() -> tuple[int, int]:
    """Which process this is, and how many there are: `(index, count)`."""
    import jax

    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def all_devices() -> list[Any]:
    """The devices of all processes, those of one process beside each other, in the order of the processes."""
    import jax

    return [device for index in range(jax.process_count()) for device in jax.local_devices(process_index=index)]


def meet() -> None:
    """Connect all devices, in the groups that later talk: all of them, and one of each process.

    On a CPU the members of a group must come to their first meeting within half a minute of each other, to a later one
    whenever they do; and before the first step one process may well compile for longer than another.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = all_devices()
    each = NamedSharding(Mesh(np.asarray(devices), ("device",)), PartitionSpec("device"))
    here = [jax.device_put(jnp.ones(1), device) for device in devices if device.process_index == jax.process_index()]
    everywhere = jax.make_array_from_single_device_arrays((len(devices),), each, here)
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(each.mesh, PartitionSpec()))(everywhere))
    multihost_utils.sync_global_devices("the processes have met")


def votes(mine: bool) -> list[bool]:
    """What each process says, in their order; every process must ask."""
    if part()[1] == 1:
        return [mine]
    from jax.experimental import multihost_utils

    return [bool(vote) for vote in multihost_utils.process_allgather(np.asarray(mine))]


def told_by_first(find: Callable[[], Any]) -> Any:
    """What the first process finds, told to all: of a file, on which they would otherwise not agree at all times.

    Args:
      find: called in the first process alone; what it returns must be JSON.

    Raises:
      InputError: `find` raised it; the same in all processes.
    """
    if part()[1] == 1:
        return find()
    message = {}
    if is_first():
        try:
            message = {"found": find()}
        except InputError as error:
            message = {"error": str(error)}
    message = json.loads(_broadcast(json.dumps(message).encode()))
    if "error" in message:
        raise InputError(message["error"])
    return message["found"]


def _broadcast(text: bytes) -> bytes:
    """The first process' text in all; padded to a power of two, so that few programs are compiled."""
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(1 << max(size - 1, 255).bit_length(), np.uint8)
    if is_first():
        padded[:size] = np.frombuffer(text, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded)[:size].astype(np.uint8).tobytes()
