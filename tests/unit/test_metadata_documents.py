"""What guests read: the EC2-style tree, the OpenStack tree, the description of the network."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from kilonova.domain.instance import InjectedFile
from kilonova.domain.network import FixedIp, Route, Subnet, Vif
from kilonova.hypervisor.guest import GuestMetadata, TaggedDisk
from kilonova.metadata import ec2, openstack
from kilonova.metadata.document import render

UUID = "6b1f2f0e-1111-4222-8333-444455556666"
KEY = "ssh-ed25519 AAAAC3 me@here"


def subnet(**changes: Any) -> Subnet:
    plain = Subnet(id="s4", cidr="10.1.0.0/24", gateway="10.1.0.1", dns=("10.1.0.2",))
    return msgspec.structs.replace(plain, **changes)


def vif(*fixed: FixedIp, **changes: Any) -> Vif:
    plain = Vif(
        id="port-1", mac="fa:16:3e:00:00:01", network_id="net-1", network_name="private", devname="tap1",
        mtu=1450, fixed_ips=fixed,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def metadata(**changes: Any) -> GuestMetadata:
    address = FixedIp(address="10.1.0.7", subnet=subnet(), floating=("203.0.113.9",))
    plain = GuestMetadata(
        instance_uuid=UUID, name="web one", hostname="web-one", project_id="project", flavor_name="m1.small",
        availability_zone="nova", launch_index=3, user_data=base64.b64encode(b"#!/bin/sh\n\xff").decode(),
        keys={"mine": KEY}, metadata={"role": "web"}, image_ref="aaaabbbb-cccc-dddd-eeee-ffff00001111",
        reservation_id="r-12345678", root_device_name="/dev/sda", security_groups=("default", "web"),
        admin_password="very-secret",
        files=(InjectedFile("/etc/motd", "aGk="),), vifs=(vif(address),),
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def text(path: str, about: GuestMetadata | None = None) -> str:
    body = render(about or metadata(), path)
    assert body is not None, path
    return body.decode()


def document(path: str, about: GuestMetadata | None = None) -> Any:
    return json.loads(text(path, about))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("instance-id", "i-6b1f2f0e111142228"),
        ("ami-id", "ami-aaaabbbbccccdddde"),
        ("ami-launch-index", "3"),
        ("hostname", "web-one"),
        ("local-hostname", "web-one"),
        ("instance-type", "m1.small"),
        ("local-ipv4", "10.1.0.7"),
        ("public-ipv4", "203.0.113.9"),
        ("reservation-id", "r-12345678"),
        ("security-groups", "default\nweb"),
        ("placement/availability-zone", "nova"),
        ("placement", "availability-zone"),
        ("block-device-mapping", "ami\nroot"),
        ("block-device-mapping/root", "/dev/sda"),
        ("block-device-mapping/ami", "sda"),
        ("public-keys", "0=mine"),
        ("public-keys/0", "openssh-key"),
        ("public-keys/0/openssh-key", KEY),
    ],
)
def test_ec2_values_and_listings(path: str, value: str) -> None:
    assert text(f"/2009-04-04/meta-data/{path}") == value
    assert text(f"//latest/meta-data//{path}/") == value


def test_ec2_directories_are_listed() -> None:
    assert text("/").split("\n") == [*ec2.VERSIONS, "latest"]
    assert text("/latest/") == "meta-data/\nuser-data"
    names = text("/latest/meta-data/").split("\n")
    assert {"placement/", "public-keys/", "block-device-mapping/", "instance-id", "public-ipv4"} <= set(names)
    assert names == sorted(names)


def test_every_listed_name_can_be_read() -> None:
    def walk(path: str) -> int:
        count = 0
        for name in text(path).split("\n"):
            if name.endswith("/"):
                count += walk(path + name)
            elif "=" in name:
                count += walk(f"{path}{name.partition('=')[0]}/")
            else:
                assert render(metadata(), path + name) is not None, path + name
                count += 1
        return count

    assert walk("/latest/meta-data/") == len(ec2.meta_data(metadata())) + 1


def test_ec2_versions_add_names() -> None:
    assert render(metadata(), "/2008-09-01/meta-data/placement/availability-zone") == b"nova"
    assert render(metadata(), "/2007-12-15/meta-data/placement/availability-zone") is None
    assert render(metadata(), "/1.0/meta-data/local-ipv4") is None
    assert render(metadata(), "/1.0/meta-data/instance-id") == b"i-6b1f2f0e111142228"


def test_user_data_is_served_as_the_bytes_that_were_given() -> None:
    assert render(metadata(), "/latest/user-data") == b"#!/bin/sh\n\xff"
    assert render(metadata(), "/openstack/latest/user_data") == b"#!/bin/sh\n\xff"


def test_without_user_data_and_keys_their_names_do_not_exist() -> None:
    bare = metadata(user_data=None, keys={}, vifs=())
    assert text("/latest", bare) == "meta-data/"
    assert render(bare, "/latest/user-data") is None
    assert render(bare, "/openstack/latest/user_data") is None
    assert "user_data" not in text("/openstack/latest", bare)
    assert render(bare, "/latest/meta-data/public-keys/0/openssh-key") is None
    assert text("/latest/meta-data/local-ipv4", bare) == ""
    assert "public_keys" not in document("/openstack/latest/meta_data.json", bare)


@pytest.mark.parametrize(
    "path",
    [
        "/1999-01-01/meta-data/", "/latest/meta-data/none", "/latest/meta-data/hostname/more", "/latest/other",
        "/latest/meta-data/public-keys/1", "/latest/meta-data/../user-data", "/openstack/1999-01-01",
        "/openstack/latest/none", "/openstack/latest/meta_data.json/more", "/openstack/content/0000",
        "/openstack/2012-08-10/network_data.json",
    ],
)  # fmt: skip
def test_unknown_paths_have_no_document(path: str) -> None:
    assert render(metadata(), path) is None


def test_openstack_versions_add_documents() -> None:
    assert text("/openstack").split("\n") == [*openstack.VERSIONS, "latest"]
    assert text("/openstack/2012-08-10").split("\n") == ["meta_data.json", "user_data"]
    assert text("/openstack/2013-10-17/").split("\n") == [
        "meta_data.json", "user_data", "password", "vendor_data.json",
    ]  # fmt: skip
    everything = set(text("/openstack/latest").split("\n"))
    assert everything == {
        "meta_data.json", "user_data", "password", "vendor_data.json", "network_data.json", "vendor_data2.json",
    }  # fmt: skip
    assert document("/openstack/latest/vendor_data.json") == {}
    assert document("/openstack/latest/vendor_data2.json") == {}
    assert text("/openstack/latest/password") == ""


def test_meta_data_of_the_newest_version() -> None:
    tagged = metadata(
        vifs=(vif(tag="front"), vif(mac="fa:16:3e:00:00:02")),
        disks=(TaggedDisk("/dev/vdb", "data", "v1"), TaggedDisk("/dev/vdc", "scratch")),
    )
    body = render(tagged, "/openstack/latest/meta_data.json", random=lambda count: b"r" * count)
    assert body is not None
    assert json.loads(body) == {
        "uuid": UUID,
        "name": "web one",
        "hostname": "web-one",
        "launch_index": 3,
        "availability_zone": "nova",
        "meta": {"role": "web"},
        "public_keys": {"mine": KEY},
        "keys": [{"name": "mine", "type": "ssh", "data": KEY}],
        "random_seed": base64.b64encode(b"r" * 512).decode(),
        "project_id": "project",
        "devices": [
            {"type": "nic", "bus": "none", "address": "none", "mac": "fa:16:3e:00:00:01", "tags": ["front"]},
            {"type": "disk", "bus": "none", "address": "none", "serial": "v1", "path": "/dev/vdb", "tags": ["data"]},
            {"type": "disk", "bus": "none", "address": "none", "path": "/dev/vdc", "tags": ["scratch"]},
        ],
        "dedicated_cpus": [],
    }


@pytest.mark.parametrize(
    ("field", "since"),
    [
        ("uuid", "2012-08-10"),
        ("random_seed", "2013-04-04"),
        ("project_id", "2015-10-15"),
        ("devices", "2016-06-30"),
        ("dedicated_cpus", "2020-10-14"),
    ],
)
def test_meta_data_fields_by_version(field: str, since: str) -> None:
    having = [v for v in openstack.VERSIONS if field in document(f"/openstack/{v}/meta_data.json")]
    assert having == [version for version in openstack.VERSIONS if version >= since]


def test_the_service_tells_no_secrets() -> None:
    paths = [f"/openstack/{v}/{name}" for v in openstack.VERSIONS for name in openstack.documents(metadata(), v)]
    for path in [*paths, "/latest/user-data", "/latest/meta-data"]:
        body = render(metadata(), path)
        assert body is not None
        assert b"very-secret" not in body
        assert b"motd" not in body


def test_network_data_with_dhcp_names_the_network_only() -> None:
    assert document("/openstack/latest/network_data.json") == {
        "links": [
            {
                "id": "tap1",
                "vif_id": "port-1",
                "type": "bridge",
                "mtu": 1450,
                "ethernet_mac_address": "fa:16:3e:00:00:01",
            }
        ],
        "networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "tap1", "network_id": "net-1"}],
        "services": [{"type": "dns", "address": "10.1.0.2"}],
    }


def test_network_data_without_dhcp_says_everything() -> None:
    v4 = subnet(dhcp=False, routes=(Route("192.168.0.0/16", "10.1.0.254"),))
    v6 = subnet(id="s6", version=6, cidr="fd00::/64", gateway="fd00::1", dns=("fd00::2", "10.1.0.2"))
    addresses = (FixedIp(address="10.1.0.7", subnet=v4), FixedIp(address="fd00::7", subnet=v6))
    about = metadata(vifs=(vif(*addresses), vif(id="port-2", devname="tap2")))
    found = document("/openstack/2015-10-15/network_data.json", about)
    assert [link["id"] for link in found["links"]] == ["tap1", "tap2"]
    assert found["networks"] == [
        {
            "id": "network0",
            "type": "ipv4",
            "link": "tap1",
            "network_id": "net-1",
            "ip_address": "10.1.0.7",
            "netmask": "255.255.255.0",
            "routes": [
                {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"},
                {"network": "192.168.0.0", "netmask": "255.255.0.0", "gateway": "10.1.0.254"},
            ],
            "services": [{"type": "dns", "address": "10.1.0.2"}],
        },
        {
            "id": "network1",
            "type": "ipv6",
            "link": "tap1",
            "network_id": "net-1",
            "ip_address": "fd00::7",
            "netmask": "ffff:ffff:ffff:ffff::",
            "routes": [{"network": "::", "netmask": "::", "gateway": "fd00::1"}],
            "services": [{"type": "dns", "address": "fd00::2"}, {"type": "dns", "address": "10.1.0.2"}],
        },
    ]
    assert found["services"] == [{"type": "dns", "address": "10.1.0.2"}, {"type": "dns", "address": "fd00::2"}]


@pytest.mark.spec("EMN-08")
@pytest.mark.parametrize("mode", ["slaac", "dhcpv6-stateful", "dhcpv6-stateless"])
def test_network_data_says_how_a_guest_gets_its_ipv6_address(mode: str) -> None:
    v6 = subnet(id="s6", version=6, cidr="fd00::/64", gateway="fd00::1", dns=(), address_mode=mode)
    about = metadata(vifs=(vif(FixedIp(address="fd00::7", subnet=v6)),))
    [network] = document("/openstack/latest/network_data.json", about)["networks"]
    assert (network["type"], network["ip_address"]) == (f"ipv6_{mode}", "fd00::7")


def test_a_default_route_of_the_subnet_replaces_its_gateway() -> None:
    own = subnet(dhcp=False, routes=(Route("0.0.0.0/0", "10.1.0.200"),))
    about = metadata(vifs=(vif(FixedIp(address="10.1.0.7", subnet=own)),))
    [network] = document("/openstack/latest/network_data.json", about)["networks"]
    assert [route["gateway"] for route in network["routes"]] == ["10.1.0.200"]
