"""The real command line and SDK, unmodified, on flavors, keys, quotas, hosts and zones of a running installation."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
from clouds import BIN, RealCloud, real_cloud, wait_for
from openstack.connection import Connection

pytestmark = pytest.mark.servers

CLI_LIMIT = 240.0


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("fake", "--hosts", "2") as running:
        yield running


def commands(cloud: RealCloud, script: str, directory: Path, version: str) -> list[str]:
    """Run commands, one a line, in one `openstack` process; returns the lines of its output."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(directory), "OS_CLOUD": "kilonova",
        "OS_CLIENT_CONFIG_FILE": str(cloud.directory / "clouds.yaml"), "OS_COMPUTE_API_VERSION": version,
    }
    done = subprocess.run(
        [str(BIN / "openstack")], input=script, capture_output=True, text=True, timeout=CLI_LIMIT, env=environment,
        cwd=directory, check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if line and "Warning" not in line]
    assert complaints == [], done.stdout  # the client leaves with 1 at the end of its input
    return [line for line in done.stdout.splitlines() if line]


def hosts_of(cloud: RealCloud) -> list[str]:
    services = cloud.get("/compute/v2.1/os-services?binary=nova-compute")["services"]
    return [service["host"] for service in services]


def test_control_processes_are_among_the_services(cloud: RealCloud) -> None:
    """One process is all of them, and each is listed where clients look for it."""
    zones = {"nova-conductor": "internal", "nova-scheduler": "internal", "nova-compute": "nova"}

    def services() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cloud.get("/compute/v2.1/os-services")["services"]
        return found

    wait_for("all to show a sign of life", lambda: {one["binary"] for one in services()} >= set(zones), 15)
    listed = services()
    assert {one["binary"]: one["zone"] for one in listed} == zones
    assert {(one["state"], one["status"]) for one in listed} == {("up", "enabled")}


@pytest.mark.spec("API-019")
@pytest.mark.parametrize("version", ["2.1", "2.104"])
def test_the_command_line(cloud: RealCloud, tmp_path: Path, version: str) -> None:
    host, other = hosts_of(cloud)
    lines = commands(cloud, f"""\
flavor create --id gold-id --ram 256 --disk 2 --vcpus 3 --private --property hw:cpu_policy=shared gold -f value -c ram
flavor set --project admin --property hw:boot_menu=true gold
flavor unset --property hw:boot_menu gold
flavor show gold -f value -c properties -c vcpus
flavor list --all -f value -c Name
keypair create --private-key key.pem mine -f value -c name
keypair list -f value -c Name
keypair show --public-key mine
compute service set --disable --disable-reason disk {host} nova-compute
compute service list --service nova-compute -f value -c Host -c Status
compute service set --enable {host} nova-compute
hypervisor show {host} -f value -c hypervisor_hostname -c state
hypervisor show {other} -f value -c status
aggregate create --zone mars --property ssd=true rack -f value -c availability_zone
aggregate add host rack {host} -f value -c name
aggregate show rack -f value -c hosts
availability zone list --compute -f value
aggregate remove host rack {host} -f value -c name
aggregate delete rack
quota set --cores 15 --instances 7 admin
quota show --compute admin -f value -c Resource -c Limit
quota delete --compute admin
limits show --absolute -f value
extension list --compute -f value -c Alias
keypair delete mine
flavor delete gold
flavor list -f value -c Name
""", tmp_path, version)
    seeds = ["m1.tiny", "m1.small", "m1.medium", "m1.large", "m1.nano"]
    assert lines[0] == "256"
    assert sorted(lines[1:3]) == ["3", "{'hw:cpu_policy': 'shared'}"]
    assert lines[3:9] == [*seeds, "gold"]
    assert lines[9:11] == ["mine", "mine"]
    assert lines[11].startswith("ssh-ed25519 ")
    assert lines[12:14] == [f"{host} disabled", f"{other} enabled"]
    assert lines[14:16] == [host, "up"]
    assert lines[16:20] == ["enabled", "mars", "rack", f"['{host}']"]
    assert lines[20:23] == ["internal available", "mars available", "nova available"]
    assert lines[23] == "rack"
    assert {"instances 7", "cores 15", "ram 51200"} <= set(lines)
    assert {"max_total_cores 20", "max_total_instances 10", "os-keypairs"} <= set(lines)
    assert lines[-5:] == seeds


@pytest.mark.spec("API-019")
def test_the_sdk(cloud: RealCloud) -> None:
    host = hosts_of(cloud)[0]
    config = openstack.config.OpenStackConfig(config_files=[str(cloud.directory / "clouds.yaml")])
    connection = Connection(config=config.get_one("kilonova"))
    compute = connection.compute
    flavor = compute.create_flavor(name="sdk", ram=64, vcpus=1, disk=1)
    assert compute.create_flavor_extra_specs(flavor, {"a": "b"}).extra_specs == {"a": "b"}
    assert compute.find_flavor("sdk", get_extra_specs=True).extra_specs == {"a": "b"}
    compute.delete_flavor(flavor)
    keypair = compute.create_keypair(name="sdk")
    assert keypair.private_key.startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert compute.get_keypair("sdk").fingerprint == keypair.fingerprint
    compute.delete_keypair(keypair)
    aggregate = compute.create_aggregate(name="sdk", availability_zone="venus")
    assert compute.add_host_to_aggregate(aggregate, host).hosts == [host]
    zones = {zone.name: zone.hosts for zone in compute.availability_zones(details=True)}
    assert list(zones["venus"]) == [host]
    compute.remove_host_from_aggregate(aggregate, host)
    compute.delete_aggregate(aggregate)
    project = connection.current_project_id
    compute.update_quota_set(project, cores=33)
    assert compute.get_quota_set(project, usage=True).cores == 33
    compute.revert_quota_set(project)
    assert compute.get_quota_set(project).cores == 20
    (service,) = (one for one in compute.services() if one.host == host)
    assert compute.update_service_forced_down(service, host, "nova-compute", True).is_forced_down
    assert [node.state for node in compute.hypervisors(details=True) if node.name == host] == ["down"]
    compute.update_service_forced_down(service, host, "nova-compute", False)
    node = next(node for node in compute.hypervisors(details=True, with_servers=True) if node.name == host)
    assert (node.state, node.servers) == ("up", [])
