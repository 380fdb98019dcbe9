"""What drivers have in common about shared directories."""

from __future__ import annotations

from kilonova.domain.errors import TryElsewhere
from kilonova.hypervisor.guest import GuestShare


def lacks_share(host: str, share: GuestShare) -> TryElsewhere:
    """The error of a host that has not got the directory of a share."""
    return TryElsewhere(
        f"Host {host} does not have the directory of the share with the tag {share.tag!r}.",
        hint="mount it there, or detach the share",
    )
