"""Whether the machine forwards, which this installation needs and puts back when it goes.

A machine that forwards IPv6 by default forgets the routes that it was told of as a host. So its devices are told to
go on listening to routers before.
"""

from __future__ import annotations

from pathlib import Path

_V4 = Path("/proc/sys/net/ipv4/ip_forward")
_DEVICES_V6 = Path("/proc/sys/net/ipv6/conf")
_V6 = _DEVICES_V6 / "all" / "forwarding"
_LISTENS, _LISTENS_ALWAYS = "1", "2"


class Forwarding:
    """Starts forwarding and restores what was.

    Args:
        directory: remembers what must be put back at the end.
    """

    def __init__(self, directory: Path) -> None:
        self._mark = directory / "forwarding-was-off"
        self._mark_v6 = directory / "ipv6-forwarding-was-off"

    def start(self) -> None:
        """For IPv4."""
        if _V4.read_text().strip() == "0":
            self._mark.touch()
            _V4.write_text("1\n")

    def start_v6(self) -> None:
        """For IPv6: only when some network needs it."""
        if _V6.read_text().strip() != "0":
            return
        hosts = [path.parent.name for path in _DEVICES_V6.glob("*/accept_ra")
                 if path.parent.name not in ("all", "default") and path.read_text().strip() == _LISTENS]
        self._mark_v6.write_text("".join(f"{device}\n" for device in hosts))
        for device in hosts:
            self._listen(device, _LISTENS_ALWAYS)
        _V6.write_text("1\n")

    def restore(self) -> None:
        """Put back what was before."""
        if self._mark.exists():
            _V4.write_text("0\n")
            self._mark.unlink()
        if self._mark_v6.exists():
            _V6.write_text("0\n")
            for device in self._mark_v6.read_text().split():
                self._listen(device, _LISTENS)
            self._mark_v6.unlink()

    @staticmethod
    def _listen(device: str, value: str) -> None:
        path = _DEVICES_V6 / device / "accept_ra"
        if path.exists():  # it may have gone meanwhile
            path.write_text(f"{value}\n")
