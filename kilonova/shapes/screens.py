"""What a person at a guest's console sees, hears and touches."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, whole, word

VideoModel = Literal["vga", "virtio", "cirrus", "qxl", "bochs", "none", "gop", "vmvga", "xen"]
SoundModel = Literal["sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio"]
UsbModel = Literal["none", "nec-xhci", "qemu-xhci"]
InputBus = Literal["usb", "virtio"]
"""What the API knows. What a host has of them, it tells by its traits."""
MOST_PORTS = 15
USB_REDIRECTION = "CUSTOM_USB_REDIRECTION"
"""Trait of a host whose guests' consoles take USB devices of the client."""

_VIDEO: Parse[VideoModel] = word(*get_args(VideoModel))
_SOUND: Parse[SoundModel] = word(*get_args(SoundModel))
_USB: Parse[UsbModel] = word(*get_args(UsbModel))
_INPUT: Parse[InputBus] = word(*get_args(InputBus))
_POINTER: Parse[str] = word("usbtablet", "ps2mouse")


class Screens(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of a console.

    Args:
        video: None for the usual card. video_ram: MiB, None for what the card has by itself.
        sound, usb: None for no such device. pointer: on which bus there is a tablet, None for none.
        redirected_ports: USB ports that a SPICE client may give its own devices to.
    """

    video: VideoModel | None = None
    video_ram: int | None = None
    sound: SoundModel | None = None
    usb: UsbModel | None = None
    pointer: InputBus | None = None
    redirected_ports: int = 0

    @property
    def needs_usb(self) -> bool:
        """Whether a device needs a USB controller."""
        return self.pointer == "usb" or self.sound == "usb" or self.redirected_ports > 0

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        wanted = {}
        if self.video is not None:
            wanted[f"COMPUTE_GRAPHICS_MODEL_{self.video.upper()}"] = "hw_video_model"
        if self.sound is not None:
            wanted[f"COMPUTE_SOUND_MODEL_{self.sound.upper()}"] = "hw:sound_model"
        if self.usb not in (None, "none"):
            wanted[f"COMPUTE_USB_MODEL_{self.usb.upper().replace('-', '_')}"] = "hw:usb_model"
        if self.redirected_ports:
            wanted[USB_REDIRECTION] = "hw:redirected_usb_ports"
        return wanted


def screens_shape(asked: Asked) -> Screens:
    """Raises InvalidInput: a wrong value, or a contradiction."""
    tablet: InputBus | None = "usb" if asked.of_image("hw:pointer_model", _POINTER) == "usbtablet" else None
    found = Screens(
        video=asked.of_image("hw:video_model", _VIDEO), video_ram=_video_ram(asked),
        sound=asked.agreed("hw:sound_model", _SOUND), usb=asked.agreed("hw:usb_model", _USB),
        pointer=asked.of_image("hw:input_bus", _INPUT) or tablet,
        redirected_ports=asked.agreed("hw:redirected_usb_ports", whole(0, MOST_PORTS)) or 0,
    )
    if found.usb == "none" and found.needs_usb:
        raise InvalidInput("The USB model none leaves no place for a USB device that is asked for.")
    return found


def _video_ram(asked: Asked) -> int | None:
    wanted = asked.of_image("hw:video_ram", whole())
    most = asked.of_flavor("hw_video:ram_max_mb", whole()) or 0
    if wanted is not None and wanted > most:
        raise InvalidInput(
            f"The image asks for {wanted} MiB of video memory, the flavor allows {most} (hw_video:ram_max_mb)."
        )
    return wanted or None
