"""What Tempest is told of a fresh installation, and what is prepared there for it."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from clouds import RealCloud
from signed_images import elliptic

from kilonova.embedded.network.extensions import EXTENSIONS
from kilonova.embedded.volume import backends
from kilonova.embedded.volume.api import offers

Settings = dict[str, dict[str, object]]

EXTERNAL = "external"

POOLS = ("one", "two")
"""Storage pools of an installation whose servers take volumes."""
MULTIATTACH = "multiattach"
"""The type of volumes that several servers take at once."""
VOLUMES: Settings = {
    "service_available": {"cinder": True},
    "compute-feature-enabled": {"attach_encrypted_volume": True, "volume_multiattach": True, "swap_volume": True},
    "volume": {
        "max_microversion": "latest", "backend_names": ",".join(POOLS), "storage_protocol": backends.PROTOCOL,
        "vendor_name": backends.VENDOR, "volume_type_multiattach": MULTIATTACH,
    },
    "volume-feature-enabled": {
        "api_extensions": ",".join(offers.EXTENSIONS), "multi_backend": True, "extend_attached_volume": True,
        "extend_attached_encrypted_volume": True,
    },
}
"""What is set where there are storage pools."""


@dataclass(frozen=True)
class Guests:
    """Args: image: a bootable file. memory_mib: what a small guest gets. ssh: it can be logged into."""

    image: Path
    disk_format: str
    memory_mib: int
    ssh: bool


def write_configuration(cloud: RealCloud, guests: Guests, directory: Path, own: Settings) -> Path:
    """Upload images, make flavors and a volume type, and write a configuration of Tempest that says what is offered.

    Args:
        own: what is set beside or instead of the usual.
    """
    images = [
        cloud.upload(guests.image, name, disk_format=guests.disk_format, hw_qemu_guest_agent="yes")
        for name in ("first", "second")
    ]
    signer = elliptic(cloud.directory / "certificates")
    signed = signer.properties(guests.image.read_bytes())
    certified = cloud.upload(guests.image, "certified", disk_format=guests.disk_format, **signed)
    for name, times in (("small", 1), ("larger", 2)):
        flavor = {"id": name, "name": name, "ram": guests.memory_mib * times, "disk": times, "vcpus": 1}
        assert cloud.call("POST", "/compute/v2.1/flavors", {"flavor": flavor}).status_code == 200
    if "volume" in own:
        type_ = {"name": MULTIATTACH, "extra_specs": {"multiattach": "<is> True"}}
        assert cloud.call("POST", "/volume/v3/types", {"volume_type": type_}).status_code == 200
    if "fixed_network_name" not in own.get("compute", {}):
        _let_projects_have_networks_of_their_own(cloud)
    settings = _usual(cloud, guests, images, _external_network(cloud), EXTERNAL, directory)
    settings["compute"] |= {"certified_image_ref": certified, "certified_image_trusted_certs": signer.id}
    for section, options in own.items():
        settings[section] = settings.get(section, {}) | options
    parser = configparser.RawConfigParser()
    for section, options in settings.items():
        parser[section] = {key: _text(value) for key, value in options.items()}
    path = directory / "tempest.conf"
    with path.open("w") as file:
        parser.write(file)
    return path


def register_limits(cloud: RealCloud, limits: Mapping[str, Mapping[str, int]]) -> None:
    """Say what every project may have at first, by service and resource, where that is said by unified limits."""
    for name, amounts in limits.items():
        (service,) = cloud.get(f"/identity/v3/services?name={name}")["services"]
        of = {"service_id": service["id"], "region_id": "RegionOne"}
        wanted = [of | {"resource_name": resource, "default_limit": most} for resource, most in amounts.items()]
        answer = cloud.call("POST", "/identity/v3/registered_limits", {"registered_limits": wanted})
        assert answer.status_code == 201, answer.text


def _external_network(cloud: RealCloud) -> str:
    """What an operator makes once, so that projects can take floating IPs; this machine reaches them."""
    network = {"name": EXTERNAL, "router:external": True, "is_default": True}
    made: str = cloud.call("POST", "/network/v2.0/networks", {"network": network}).json()["network"]["id"]
    cidr = f"172.{24 + cloud.port % 8}.{cloud.port // 8 % 256}.0/24"  # not that of another installation here
    subnet = {"network_id": made, "ip_version": 4, "cidr": cidr, "enable_dhcp": False}
    assert cloud.call("POST", "/network/v2.0/subnets", {"subnet": subnet}).status_code == 201
    return made


def _let_projects_have_networks_of_their_own(cloud: RealCloud) -> None:
    """None is shared by all, and one is made for a project that asks for it."""
    private = f"/network/v2.0/networks/{cloud.network()}"
    assert cloud.call("PUT", private, {"network": {"shared": False}}).status_code == 200
    pool = {"name": "default", "prefixes": [f"10.{228 + cloud.port % 20}.0.0/16"], "default_prefixlen": 26,
            "shared": True, "is_default": True}
    assert cloud.call("POST", "/network/v2.0/subnetpools", {"subnetpool": pool}).status_code == 201


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _usual(
    cloud: RealCloud, guests: Guests, images: list[str], public_id: str, public_name: str, directory: Path
) -> Settings:
    """Spec: section 7.2 of the contract of the embedded services."""
    auth = yaml.safe_load((cloud.directory / "clouds.yaml").read_text())["clouds"]["kilonova"]["auth"]
    return {
        "DEFAULT": {"log_file": "tempest.log"},
        "oslo_concurrency": {"lock_path": directory / "locks"},
        "auth": {
            "use_dynamic_credentials": True, "create_isolated_networks": True,
            "admin_username": auth["username"], "admin_password": auth["password"],
            "admin_project_name": auth["project_name"], "admin_domain_name": "Default",
            "default_credentials_domain_name": "Default",
        },
        "identity": {
            "uri_v3": f"http://127.0.0.1:{cloud.port}/identity/v3", "auth_version": "v3", "region": "RegionOne",
        },
        "service_available": {
            "nova": True, "glance": True, "neutron": True, "cinder": False, "swift": False, "horizon": False,
        },
        "enforce_scope": {"nova": True},
        "compute": {
            "image_ref": images[0], "image_ref_alt": images[1], "flavor_ref": "small", "flavor_ref_alt": "larger",
            "min_compute_nodes": 1, "max_microversion": "latest", "shelved_offload_time": 0,
            "build_timeout": 600, "build_interval": 1,
        },
        "compute-feature-enabled": {
            "resize": True, "stable_rescue": True, "personality": True, "serial_console": True, "vnc_console": True,
            "change_password": True,
            "cold_migration": False, "live_migration": False, "attach_encrypted_volume": False,
            "nova_policy_roles": "admin,manager,member,reader,service", "scheduler_enabled_filters": "all",
            "hostname_fqdn_sanitization": True, "dhcp_domain": ".novalocal",
        },
        "placement": {"max_microversion": "latest"},
        "image-feature-enabled": {"import_image": True, "os_glance_reserved": True},
        "network": {
            "public_network_id": public_id, "floating_network_name": public_name,
            "project_network_cidr": f"10.{128 + cloud.port % 100}.0.0/16",  # not that of another installation here
            "project_network_mask_bits": 28,
        },
        "network-feature-enabled": {
            "api_extensions": ",".join(EXTENSIONS), "port_security": True, "floating_ips": True, "ipv6": True,
            "ipv6_subnet_attributes": True,
        },
        "validation": {
            "run_validation": guests.ssh, "connect_method": "floating", "auth_method": "keypair",
            "ssh_key_type": "ecdsa", "image_ssh_user": "root", "image_alt_ssh_user": "root",
            "ssh_timeout": 600, "ping_timeout": 600,
        },
        "scenario": {"img_file": guests.image, "img_disk_format": guests.disk_format, "dhcp_client": "udhcpc"},
    }
