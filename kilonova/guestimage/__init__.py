"""A small bootable guest, made from packages of the distribution, for tests and the demonstration.

The guest boots in seconds under pure emulation, from BIOS or UEFI, and does what a cloud guest does: DHCP,
metadata, config drive, SSH keys, user data, guest agent, ACPI power button, serial console. On top it answers
TCP echo on port 7, so that a test can tell "the guest is reachable" without logging in.

It is a test image: whoever reaches its console is root.
"""

from kilonova.guestimage.build import Variant, build, default_cache

__all__ = ["Variant", "build", "default_cache"]
