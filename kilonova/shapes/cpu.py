"""The guest's processor: policy, real time, topology, what it shows of the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, boolean, cpu_set, image_key, whole, word

Policy = Literal["shared", "dedicated", "mixed"]
ThreadPolicy = Literal["prefer", "isolate", "require"]
EmulatorThreads = Literal["isolate", "share"]
AddressMode = Literal["passthrough", "emulate"]

_POLICY: Parse[Policy] = word("shared", "dedicated", "mixed")
_THREAD_POLICY: Parse[ThreadPolicy] = word("prefer", "isolate", "require")
_EMULATOR_THREADS: Parse[EmulatorThreads] = word("isolate", "share")
_ADDRESS_MODE: Parse[AddressMode] = word("passthrough", "emulate")
_COUNT = whole(1)
MOST_ADDRESS_BITS = 64


class CpuTopology(msgspec.Struct, frozen=True):
    sockets: int
    cores: int
    threads: int


class CpuShape(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's vCPUs.

    Args:
        dedicated: vCPUs that get a host CPU each. realtime: those of them that run with real-time priority.
        emulator_threads: None leaves the emulator's threads on the CPUs of the guest.
        pmu: None for the hypervisor's default. hidden: the guest does not see that it is one.
        address_mode, address_bits: how physical addresses are counted; None for the hypervisor's default.
    """

    vcpus: int
    policy: Policy
    dedicated: frozenset[int]
    realtime: frozenset[int] = frozenset()
    thread_policy: ThreadPolicy | None = None
    emulator_threads: EmulatorThreads | None = None
    topology: CpuTopology
    pmu: bool | None = None
    hidden: bool = False
    address_mode: AddressMode | None = None
    address_bits: int | None = None


def cpu_shape(vcpus: int, asked: Asked) -> CpuShape:
    """Raises InvalidInput: a wrong value, or a contradiction."""
    policy = _policy(asked)
    realtime = _realtime(vcpus, asked)
    dedicated = _dedicated(vcpus, asked, policy, realtime)
    emulator = asked.of_flavor("hw:emulator_threads_policy", _EMULATOR_THREADS)
    threads = asked.agreed("hw:cpu_thread_policy", _THREAD_POLICY)
    if policy == "shared" and emulator == "isolate":
        raise InvalidInput("hw:emulator_threads_policy = isolate needs hw:cpu_policy = dedicated or mixed.")
    if policy == "shared" and threads is not None:
        raise InvalidInput("hw:cpu_thread_policy needs hw:cpu_policy = dedicated or mixed.")
    if realtime is not None:
        _check_realtime(vcpus, policy, realtime, dedicated, emulator)
    mode, bits = _address_space(asked)
    hidden = (
        asked.of_flavor("hw:hide_hypervisor_id", boolean), asked.of_flavor("hide_hypervisor_id", boolean),
        asked.of_image("img:hide_hypervisor_id", boolean),
    )
    return CpuShape(
        vcpus=vcpus, policy=policy, dedicated=dedicated, realtime=realtime or frozenset(), thread_policy=threads,
        emulator_threads=emulator, topology=_topology(vcpus, asked), pmu=asked.agreed("hw:pmu", boolean),
        hidden=any(hidden), address_mode=mode, address_bits=bits,
    )


def _policy(asked: Asked) -> Policy:
    """An image may ask for dedicated CPUs only if its flavor leaves that open. A flavor that has PCPU asks for them."""
    flavor, image = asked.of_flavor("hw:cpu_policy", _POLICY), asked.of_image("hw:cpu_policy", _POLICY)
    forbidden: dict[str | None, tuple[str, ...]] = {"shared": ("dedicated", "mixed"), "mixed": ("dedicated",)}
    if image in forbidden.get(flavor, ()):
        raise InvalidInput(f"Image property hw_cpu_policy = {image} is not permitted, because the flavor sets "
                           f"hw:cpu_policy = {flavor}.")
    if flavor is None and image is None and "resources:PCPU" in asked.extra_specs:
        return "dedicated"
    return flavor or image or "shared"


def _realtime(vcpus: int, asked: Asked) -> frozenset[int] | None:
    if not asked.of_flavor("hw:cpu_realtime", boolean):
        return None
    mask = asked.image_first("hw:cpu_realtime_mask", cpu_set(vcpus - 1))
    return frozenset(range(vcpus)) if mask is None else mask


def _dedicated(vcpus: int, asked: Asked, policy: Policy, realtime: frozenset[int] | None) -> frozenset[int]:
    every = frozenset(range(vcpus))
    mask = asked.of_flavor("hw:cpu_dedicated_mask", cpu_set(vcpus - 1))
    if mask is not None and policy != "mixed":
        raise InvalidInput("hw:cpu_dedicated_mask needs hw:cpu_policy = mixed.")
    if policy != "mixed":
        return every if policy == "dedicated" else frozenset()
    if mask is not None and realtime is not None:
        raise InvalidInput("hw:cpu_dedicated_mask cannot be set beside hw:cpu_realtime, whose mask says the same.")
    chosen = mask if mask is not None else realtime
    if not chosen or chosen == every:
        raise InvalidInput("hw:cpu_policy = mixed needs hw:cpu_dedicated_mask with some of the vCPUs, but not all.")
    return chosen


def _check_realtime(
    vcpus: int, policy: Policy, realtime: frozenset[int], dedicated: frozenset[int], emulator: EmulatorThreads | None
) -> None:
    if policy == "shared" or not realtime <= dedicated:
        raise InvalidInput("hw:cpu_realtime needs hw:cpu_policy = dedicated or mixed.")
    if not realtime or (len(realtime) == vcpus and emulator is None):
        raise InvalidInput(
            "hw:cpu_realtime needs hw:cpu_realtime_mask with at least one vCPU in real time and one that is not, or "
            "hw:emulator_threads_policy."
        )


def _address_space(asked: Asked) -> tuple[AddressMode | None, int | None]:
    mode = asked.agreed("hw:maxphysaddr_mode", _ADDRESS_MODE)
    bits = asked.agreed("hw:maxphysaddr_bits", whole(1, MOST_ADDRESS_BITS))
    if bits is not None and mode != "emulate":
        raise InvalidInput("hw:maxphysaddr_bits needs hw:maxphysaddr_mode = emulate.")
    if bits is None and mode == "emulate":
        raise InvalidInput("hw:maxphysaddr_mode = emulate needs hw:maxphysaddr_bits.")
    return mode, bits


def _topology(vcpus: int, asked: Asked) -> CpuTopology:
    """Sockets, cores and threads that come closest to what is preferred, within the limits of flavor and image; without
    a preference every vCPU is a socket."""
    units = ("sockets", "cores", "threads")
    most = {unit: min(_limit(unit, asked), vcpus) for unit in units}
    wanted: dict[str, int] = {}
    for unit in units:
        flavor = asked.of_flavor(f"hw:cpu_{unit}", _COUNT)
        image = asked.of_image(f"hw:cpu_{unit}", _COUNT)
        if image is not None and image > _limit(unit, asked):
            raise InvalidInput(f"Image property hw_cpu_{unit} = {image} exceeds the limit of flavor or image.")
        preferred = flavor if flavor is not None else image
        if preferred is not None:
            wanted[unit] = preferred
    possible = [
        one for one in _topologies(vcpus)
        if one.sockets <= most["sockets"] and one.cores <= most["cores"] and one.threads <= most["threads"]
    ]
    if not possible:
        raise InvalidInput(f"No CPU topology with {vcpus} vCPUs is within hw:cpu_max_sockets, hw:cpu_max_cores and "
                           "hw:cpu_max_threads.")

    def met(one: CpuTopology) -> tuple[int, int, int]:
        return sum(getattr(one, unit) == number for unit, number in wanted.items()), one.sockets, one.cores

    return max(possible, key=met)


def _limit(unit: str, asked: Asked) -> int:
    key = f"hw:cpu_max_{unit}"
    flavor, image = asked.of_flavor(key, _COUNT), asked.of_image(key, _COUNT)
    if flavor is not None and image is not None and image > flavor:
        raise InvalidInput(f"Image property {image_key(key)} = {image} exceeds the flavor's {key} = {flavor}.")
    return image or flavor or 65536


def _topologies(vcpus: int) -> Iterator[CpuTopology]:
    for sockets in range(1, vcpus + 1):
        if vcpus % sockets:
            continue
        for cores in range(1, vcpus // sockets + 1):
            if (vcpus // sockets) % cores == 0:
                yield CpuTopology(sockets, cores, vcpus // sockets // cores)
