"""How long a host has been up, as the `uptime` command words it, which is how the Compute API shows it."""

from __future__ import annotations

import time


def uptime(up: float, load: tuple[float, float, float], now: float) -> str:
    """Args: up: seconds. load: averages over 1, 5 and 15 minutes. now: seconds since the epoch."""
    days, rest = divmod(int(up), 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    averages = ", ".join(f"{value:.2f}" for value in load)
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    return f" {clock} up {days} days, {hours:2d}:{minutes:02d},  0 users,  load average: {averages}"
