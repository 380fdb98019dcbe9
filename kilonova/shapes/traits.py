"""The traits that a host needs for what a guest is asked to be: what no host has is refused by the scheduler."""

from __future__ import annotations

from kilonova.shapes.shape import Shape

_ENCRYPTION = {
    "amd-sev": "HW_CPU_X86_AMD_SEV", "amd-sev-es": "HW_CPU_X86_AMD_SEV_ES", "amd-sev-snp": "HW_CPU_X86_AMD_SEV_SNP",
    "intel-tdx": "HW_CPU_X86_INTEL_TDX",
}
_ADDRESSES = {"passthrough": "COMPUTE_ADDRESS_SPACE_PASSTHROUGH", "emulate": "COMPUTE_ADDRESS_SPACE_EMULATED"}

LOCKED_MEMORY = "CUSTOM_LOCKED_MEMORY"
"""The host can keep guests from being swapped out."""


def needed_traits(shape: Shape) -> dict[str, str]:
    """Traits, and for each the extra spec that asks for it."""
    found = dict(shape.devices.traits)
    if shape.memory.encryption is not None:
        found[_ENCRYPTION[shape.memory.encryption]] = "hw:mem_encryption"
    if shape.memory.locked:
        found[LOCKED_MEMORY] = "hw:locked_memory"
    elif shape.cpu.realtime:
        found[LOCKED_MEMORY] = "hw:cpu_realtime"
    if shape.cpu.address_mode is not None:
        found[_ADDRESSES[shape.cpu.address_mode]] = "hw:maxphysaddr_mode"
    if shape.cpu.thread_policy == "require":
        found["HW_CPU_HYPERTHREADING"] = "hw:cpu_thread_policy"
    return found
