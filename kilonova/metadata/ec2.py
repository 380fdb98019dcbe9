"""The EC2-style tree of the metadata service, which the oldest and smallest guests read."""

from __future__ import annotations

from kilonova.hypervisor.guest import GuestMetadata

VERSIONS = (
    "1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
    "2009-04-04",
)  # fmt: skip
LATEST = VERSIONS[-1]

Tree = dict[str, "Tree | str"]
"""A directory of the tree: a name leads to a directory or to a value."""


def meta_data(metadata: GuestMetadata, version: str = LATEST) -> Tree:
    """The `meta-data` directory as it was in this version: later ones only add names."""
    fixed = [fixed for vif in metadata.vifs for fixed in vif.fixed_ips if fixed.subnet.version == 4]
    floating = [address for one in fixed for address in one.floating]
    since: dict[str, Tree] = {
        "1.0": {
            "ami-id": short_id("ami", metadata.image_ref),
            "ami-launch-index": str(metadata.launch_index),
            "ami-manifest-path": "",
            "hostname": metadata.hostname,
            "instance-id": short_id("i", metadata.instance_uuid),
            "public-keys": _public_keys(metadata.keys),
            "reservation-id": metadata.reservation_id,
            "security-groups": "\n".join(metadata.security_groups),
        },
        "2007-01-19": {
            "local-hostname": metadata.hostname,
            "local-ipv4": fixed[0].address if fixed else "",
            "public-hostname": metadata.hostname,
            "public-ipv4": floating[0] if floating else "",
        },
        "2007-08-29": {"instance-type": metadata.flavor_name},
        "2007-12-15": {"block-device-mapping": {
            "ami": metadata.root_device_name.removeprefix("/dev/"), "root": metadata.root_device_name,
        }},
        "2008-02-01": {"placement": {"availability-zone": metadata.availability_zone}},
        "2008-09-01": {"instance-action": "none"},
    }
    tree: Tree = {}
    for added, names in since.items():
        if VERSIONS.index(added) <= VERSIONS.index(version):
            tree.update(names)
    if not metadata.keys:
        del tree["public-keys"]
    return tree


def short_id(kind: str, uuid: str) -> str:
    """An identifier in EC2's form. Guests only compare it with the one they saw at their last boot."""
    return f"{kind}-{uuid.replace('-', '')[:17] or '0' * 17}"


def listing(tree: Tree) -> str:
    """The names in a directory, one a line; `/` marks what is itself a directory."""
    return "\n".join(
        _key_label(name, value) if isinstance(value, dict) else name for name, value in sorted(tree.items())
    )


def _public_keys(keys: dict[str, str]) -> Tree:
    return {f"{index}={name}": {"openssh-key": key} for index, (name, key) in enumerate(keys.items())}


def _key_label(name: str, value: Tree) -> str:
    """Public keys are listed as `0=name` and reached as `0`, alone among directories."""
    return name if "openssh-key" in value else f"{name}/"


def lookup(tree: Tree, names: list[str]) -> str | None:
    """The value or listing at a path below `tree`, None if there is no such path."""
    node: Tree | str = tree
    for name in names:
        if isinstance(node, str):
            return None
        found = node.get(name)
        if found is None and name.isdecimal():
            found = next((value for label, value in node.items() if label.startswith(f"{name}=")), None)
        if found is None:
            return None
        node = found
    return node if isinstance(node, str) else listing(node)
