"""Fixed addresses of servers, as long as the API had them."""

from typing import Any

import pytest
from compute_cloud import ComputeCloud, vif

from kilonova.domain.operation import OperationRecord
from kilonova.operations.fixed_ip import AddFixedIp, RemoveFixedIp


def done(record: OperationRecord) -> OperationRecord:
    return record


@pytest.mark.spec("API-151", "API-152", "API-544")
async def test_addresses_are_added_and_removed(cloud: ComputeCloud) -> None:
    server = await cloud.boot(network_info=(vif(),))
    path = f"/servers/{server.uuid}/action"
    add: Any = {"addFixedIp": {"networkId": "n"}}
    remove: Any = {"removeFixedIp": {"address": "10.0.0.5"}}
    for name, body, request in (
        ("add-fixed-ip", add, AddFixedIp("n")), ("remove-fixed-ip", remove, RemoveFixedIp("10.0.0.5")),
    ):
        cloud.compute.ends[name] = done
        assert (await cloud.post(path, body, version="2.44")).status_code == 404
        assert (await cloud.post(path, body, version="2.43", as_="reader")).status_code == 403
        answer = await cloud.post(path, body, version="2.43")
        assert (answer.status_code, answer.content) == (202, b"")
        assert cloud.compute.asked[-1] == (name, server.uuid, request)
        await cloud.forget_operations()
    for bad, code in (
        ({"addFixedIp": {"networkId": "other"}}, 404), ({"removeFixedIp": {"address": "10.0.0.77"}}, 400),
        ({"addFixedIp": {}}, 400), ({"removeFixedIp": {"address": "x"}}, 400),
    ):
        assert (await cloud.post(path, bad)).status_code == code
    locked = await cloud.boot(network_info=(vif(),), locked_by="owner")
    assert (await cloud.post(f"/servers/{locked.uuid}/action", add)).status_code == 409
