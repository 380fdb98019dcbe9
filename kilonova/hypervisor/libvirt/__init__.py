"""The libvirt driver: real guests through libvirt and QEMU.

Nothing here is imported by the other drivers, so that a process without libvirt guests never loads libvirt.
"""
