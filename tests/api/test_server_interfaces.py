"""Interfaces of servers: seen, attached and detached."""

import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import NETWORK, PROJECT, ComputeCloud, vif

from kilonova.domain.errors import Conflict
from kilonova.domain.instance import Instance
from kilonova.domain.network import BANDWIDTH, PortDevice, PortGroup, PortNeed, RequestedNetwork
from kilonova.domain.operation import Entry, EntryState, OperationRecord, OperationState
from kilonova.domain.states import VmState
from kilonova.operations.attach_interface import AttachInterface
from kilonova.operations.detach_interface import DetachInterface
from kilonova.services.network import NetworkSummary, PortAddress, PortSummary

OTHER = "66666666-6666-4666-8666-666666666666"


def port(device: str = "", **fields: Any) -> PortSummary:
    given = {"id": str(uuid.uuid4()), "network_id": NETWORK, "project_id": PROJECT, "device_id": device,
             "mac": "fa:16:3e:00:00:07", "addresses": ("10.0.0.7",),
             "fixed_ips": (PortAddress("10.0.0.7", "s4"),), "status": "ACTIVE", **fields}
    return PortSummary(**given)


def bring(cloud: ComputeCloud, **fields: Any) -> PortSummary:
    made = port(**fields)
    cloud.networks.ports[made.id] = made
    return made


def shown(port: PortSummary) -> dict[str, Any]:
    return {"net_id": NETWORK, "port_id": port.id, "mac_addr": port.mac, "port_state": "ACTIVE",
            "fixed_ips": [{"ip_address": "10.0.0.7", "subnet_id": "s4"}]}


def succeeds(cloud: ComputeCloud, server: Instance) -> PortSummary:
    """The next attach makes this port."""
    made = port(server.uuid)

    def end(record: OperationRecord) -> OperationRecord:
        cloud.networks.ports[made.id] = made
        output = msgspec.Raw(msgspec.json.encode({"port_id": made.id}))
        entry = Entry(step="make port", state=EntryState.DONE, output=output)
        return msgspec.structs.replace(record, state=OperationState.SUCCEEDED, entries=(entry,))

    cloud.compute.ends["attach-interface"] = end
    return made


async def attach(cloud: ComputeCloud, server: Instance, asked: Any, *, version: int = 1, as_: str = "member") -> Any:
    body = {"interfaceAttachment": asked}
    return await cloud.post(f"/servers/{server.uuid}/os-interface", body, version=f"2.{version}", as_=as_)


@pytest.mark.spec("API-170", "API-172", "API-459", "API-570")
async def test_interfaces_are_shown(cloud: ComputeCloud) -> None:
    tagged = msgspec.structs.replace(vif(), tag="fast")
    server = await cloud.boot(network_info=(tagged,))
    mine = bring(cloud, id=tagged.id, device=server.uuid)
    bring(cloud, device="another")
    path = f"/servers/{server.uuid}/os-interface"
    assert (await cloud.get(path)).json() == {"interfaceAttachments": [shown(mine)]}
    assert (await cloud.get(path, version="2.70")).json() == {
        "interfaceAttachments": [{**shown(mine), "tag": "fast"}]}
    assert (await cloud.get(f"{path}/{mine.id}", as_="reader")).json() == {"interfaceAttachment": shown(mine)}
    answer = await cloud.get(f"{path}/{mine.id}", version="2.70")
    assert answer.json()["interfaceAttachment"]["tag"] == "fast"
    bare = bring(cloud, device=server.uuid, addresses=(), fixed_ips=())
    assert (await cloud.get(f"{path}/{bare.id}")).json()["interfaceAttachment"]["fixed_ips"] is None
    for missing in (str(uuid.uuid4()), bring(cloud, device="another").id, bring(cloud).id):
        assert (await cloud.get(f"{path}/{missing}")).status_code == 404
    assert (await cloud.get(path, as_="stranger")).status_code == 404


@pytest.mark.spec("API-171", "API-549", "API-570")
async def test_attach(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    theirs = bring(cloud)
    for asked, version, wanted in (
        ({"net_id": NETWORK}, 1, RequestedNetwork(network_id=NETWORK)),
        ({"net_id": NETWORK, "fixed_ips": [{"ip_address": "10.0.0.9"}], "tag": "t"}, 49,
         RequestedNetwork(network_id=NETWORK, fixed_ip="10.0.0.9", tag="t")),
        ({"port_id": theirs.id}, 70, RequestedNetwork(port_id=theirs.id)),
        ({}, 1, RequestedNetwork(network_id=NETWORK)),
        (None, 1, RequestedNetwork(network_id=NETWORK)),
    ):
        made = succeeds(cloud, server)
        answer = await attach(cloud, server, asked, version=version)
        expected = {**shown(made), **({"tag": wanted.tag} if version >= 70 else {})}
        assert (answer.status_code, answer.json()) == (200, {"interfaceAttachment": expected})
        assert cloud.compute.asked[-1] == ("attach-interface", server.uuid, AttachInterface(wanted))
        await cloud.forget_operations()
    made = succeeds(cloud, server)
    answer = await cloud.request("POST", f"/servers/{server.uuid}/os-interface")
    assert answer.json() == {"interfaceAttachment": shown(made)}


@pytest.mark.spec("API-171", "API-549", "IFC-34")
async def test_attach_refused(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    taken, bare = bring(cloud, device="another"), bring(cloud, addresses=())
    external = NetworkSummary(id=OTHER, name="ext", project_id="x", external=True)
    cloud.networks.all.append(external)
    address = [{"ip_address": "10.0.0.9"}]
    for asked, version, code in (
        ({"net_id": NETWORK, "port_id": taken.id}, 1, 400), ({"fixed_ips": address}, 1, 400),
        ({"port_id": taken.id, "fixed_ips": address}, 1, 400),
        ({"net_id": NETWORK, "fixed_ips": []}, 1, 400), ({"net_id": NETWORK, "fixed_ips": address * 2}, 1, 400),
        ({"net_id": NETWORK, "fixed_ips": [{"ip_address": "x"}]}, 1, 400), ({"net_id": "x"}, 1, 400),
        ({"net_id": NETWORK, "tag": "t"}, 48, 400), ({"net_id": NETWORK, "tag": "a,b"}, 49, 400),
        ({"color": 1}, 1, 400), ({"net_id": str(uuid.uuid4())}, 1, 404), ({"port_id": str(uuid.uuid4())}, 1, 404),
        ({"port_id": taken.id}, 1, 409), ({"port_id": bare.id}, 1, 400), ({"net_id": OTHER}, 1, 403),
    ):
        assert (await attach(cloud, server, asked, version=version)).status_code == code, asked
    assert (await attach(cloud, server, {}, as_="reader")).status_code == 403
    assert (await attach(cloud, server, {}, as_="stranger")).status_code == 404
    cloud.networks.all.append(NetworkSummary(id=str(uuid.uuid4()), name="second", project_id=PROJECT))
    assert (await attach(cloud, server, {})).status_code == 400
    cloud.networks.all = [external]
    assert (await attach(cloud, server, {})).status_code == 400
    assert cloud.compute.asked == []


@pytest.mark.spec("API-171", "API-173", "API-064", "API-062", "IFC-23")
async def test_states_and_locks(cloud: ComputeCloud) -> None:
    broken = await cloud.boot(vm_state=VmState.ERROR, network_info=(vif(),))
    locked = await cloud.boot(locked_by="owner", network_info=(vif(),))
    for server, said in ((broken, "'attach_interface' instance"), (locked, "is locked")):
        answer = await attach(cloud, server, {"net_id": NETWORK})
        assert answer.status_code == 409
        assert said in answer.text
        path = f"/servers/{server.uuid}/os-interface/{server.network_info[0].id}"
        answer = await cloud.delete(path)
        assert answer.status_code == 409
        assert said.replace("attach", "detach") in answer.text


@pytest.mark.spec("API-171", "IFC-34")
async def test_what_the_attach_failed_with_is_told(cloud: ComputeCloud) -> None:
    server = await cloud.boot()

    def fail(_record: OperationRecord) -> OperationRecord:
        raise Conflict("IP address 10.0.0.9 is in use.")

    cloud.compute.ends["attach-interface"] = fail
    answer = await attach(cloud, server, {"net_id": NETWORK})
    assert answer.status_code == 409
    assert "is in use" in answer.text


@pytest.mark.spec("API-173", "IFC-43")
async def test_detach(cloud: ComputeCloud) -> None:
    server = await cloud.boot(network_info=(vif(),), vm_state=VmState.STOPPED)
    (interface,) = server.network_info
    path = f"/servers/{server.uuid}/os-interface"
    assert (await cloud.delete(f"{path}/{interface.id}", as_="reader")).status_code == 403
    assert (await cloud.delete(f"{path}/{uuid.uuid4()}")).status_code == 404
    answer = await cloud.delete(f"{path}/{interface.id}")
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("detach-interface", server.uuid, DetachInterface(interface.id))]


NEED = PortNeed(port_id=OTHER, groups=(
    PortGroup(name=BANDWIDTH, resources={"NET_BW_EGR_KILOBIT_PER_SEC": 1000}, traits=("CUSTOM_VNIC_TYPE_NORMAL",)),
))


async def test_a_port_that_asks_for_resources_is_attached_with_what_it_asks_for(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    succeeds(cloud, server)
    given = bring(cloud, id=OTHER, need=NEED)
    assert (await attach(cloud, server, {"port_id": given.id})).status_code == 200
    (asked,) = cloud.compute.asked
    assert asked[2] == AttachInterface(RequestedNetwork(port_id=given.id, need=NEED))


async def test_a_port_that_is_a_device_is_attached_with_what_it_asks_for(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    succeeds(cloud, server)
    need = PortNeed(port_id=OTHER, device=PortDevice(vnic_type="direct", physical_network="physnet1"))
    given = bring(cloud, id=OTHER, need=need)
    assert (await attach(cloud, server, {"port_id": given.id})).status_code == 200
    (asked,) = cloud.compute.asked
    assert asked[2] == AttachInterface(RequestedNetwork(port_id=given.id, need=need))


async def test_no_port_is_made_on_a_physical_network(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    cloud.networks.all = [NetworkSummary(id=NETWORK, name="n", project_id=PROJECT, physical_network="physnet1")]
    answer = await attach(cloud, server, {"net_id": NETWORK})
    assert answer.status_code == 400
    assert "make a port on it" in answer.text
    answer = await attach(cloud, server, {})
    assert answer.status_code == 400
    assert "none are available" in answer.text
    assert cloud.compute.asked == []


async def test_no_port_is_made_on_a_network_that_guarantees_a_bandwidth(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    cloud.networks.all = [NetworkSummary(id=NETWORK, name="n", project_id=PROJECT, guarantees=True)]
    answer = await attach(cloud, server, {"net_id": NETWORK})
    assert answer.status_code == 400
    assert "make a port on it" in answer.text
    assert cloud.compute.asked == []
