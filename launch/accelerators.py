"""The slices that Cloud TPU's queued resources offer: their chips, hosts and topology, and the zones that have them.

From cloud.google.com/tpu/docs (regions-zones, v2 to v6e, runtimes) as of 2026. TPU7x is not offered by this API.
"""

import dataclasses
import difflib
import math

from aevb.errors import InputError


@dataclasses.dataclass(frozen=True)
class Generation:
    """What slices of one generation have in common.

    Attributes:
      devices: of JAX, a chip.
      alone: the largest number of chips on one host; larger slices have 4 chips a host.
      runtime: the image of the hosts.
      topologies: by the number in the type's name.
      zones: that have it.
    """

    devices: int
    alone: int
    runtime: str
    topologies: dict[int, str]
    zones: tuple[str, ...]


SQUARES = {8: "2x2", 32: "4x4", 64: "4x8", 128: "8x8", 256: "8x16", 512: "16x16", 1024: "16x32", 2048: "32x32"}
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8", 1024: "8x8x8"}
CUBES |= {2048: "8x8x16", 4096: "8x16x16"}
BASE = "tpu-ubuntu2204-base"
GENERATIONS = {
    "v2": Generation(
        devices=2,
        alone=4,
        runtime=BASE,
        topologies={size: SQUARES[size] for size in (8, 32, 128, 256, 512)},
        zones=("us-central1-a", "us-central1-b", "us-central1-c", "europe-west4-a", "asia-east1-c"),
    ),
    "v3": Generation(
        devices=2,
        alone=4,
        runtime=BASE,
        topologies=SQUARES,
        zones=("us-central1-a", "us-central1-b", "europe-west4-a"),
    ),
    "v4": Generation(devices=1, alone=4, runtime=BASE, topologies=CUBES, zones=("us-central2-b",)),
    "v5litepod": Generation(
        devices=1,
        alone=8,
        runtime="v2-alpha-tpuv5-lite",
        topologies=FLAT,
        zones=(
            *("us-central1-a", "us-south1-a", "us-west1-c", "us-west4-a", "us-east5-a", "us-east5-b", "us-east5-c"),
            *("europe-west4-a", "europe-west4-b", "asia-southeast1-b"),
        ),
    ),
    "v5p": Generation(
        devices=1,
        alone=4,
        runtime="v2-alpha-tpuv5",
        topologies=CUBES | {384: "4x4x12", 640: "4x4x20", 768: "4x8x12", 1536: "8x8x12"},
        zones=("us-central1-a", "us-east5-a", "us-east5-b", "us-east5-c", "us-south1-a", "europe-west4-b"),
    ),
    "v6e": Generation(
        devices=1,
        alone=8,
        runtime="v2-alpha-tpuv6e",
        topologies=FLAT,
        zones=(
            *("us-central1-ai1", "us-central1-b", "us-east1-d", "us-east4-a", "us-east4-b", "us-east5-a", "us-east5-b"),
            *("us-east5-c", "us-south1-ai1b", "us-west1-c", "europe-west4-a", "asia-northeast1-b"),
            "southamerica-west1-a",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One slice: its type's name, chips, hosts, devices of JAX, topology, and the image of its hosts."""

    name: str
    chips: int
    hosts: int
    devices: int
    topology: str
    runtime: str

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    def __str__(self) -> str:
        return f"{self.name} ({self.chips} chips, {self.topology}, on {self.hosts} host(s))"


def accelerator(name: str, zone: str) -> Accelerator:
    """The slice of a type that a zone has.

    Raises:
      InputError: there is no such type, or not in this zone.
    """
    family, _, size = name.partition("-")
    found = GENERATIONS.get(family)
    if found is None or not size.isdecimal() or int(size) not in found.topologies:
        known = [f"{each}-{number}" for each, of in GENERATIONS.items() for number in of.topologies]
        aliased = name.replace("v5e", "v5litepod").replace("v5lite-", "v5litepod-")
        near = [aliased] if aliased in known else difflib.get_close_matches(aliased, known, 3)
        sizes = ", ".join(f"{family}-{number}" for number in found.topologies) if found else ", ".join(GENERATIONS)
        advice = f"do you mean {' or '.join(near)}?" if near else f"known are {sizes}"
        raise InputError(f"--accelerator_type={name} is unknown: {advice}")
    if zone not in found.zones:
        near = difflib.get_close_matches(zone, found.zones, 1, 0.9)
        advice = f"do you mean {near[0]}?" if near else f"choose one of {', '.join(found.zones)}"
        raise InputError(
            f"--zone={zone} is not known to have {family}: {advice} (what Google opened since belongs into "
            "launch/accelerators.py)"
        )
    topology = found.topologies[int(size)]
    chips = math.prod(map(int, topology.split("x")))
    hosts = 1 if chips <= found.alone else chips // 4
    return Accelerator(name, chips, hosts, chips * found.devices, topology, found.runtime)
