"""Nothing a client sends may lead to 500. Spec: API-036."""

import json
import string
from urllib.parse import quote

import pytest
from compute_cloud import CIRROS, NETWORK, ComputeCloud, compute_cloud, create
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kilonova.api.compute import (
    addresses,
    console_output,
    instance_actions,
    server_actions,
    server_create,
    server_list,
    server_metadata,
    server_tags,
    servers,
)

KEYS = st.sampled_from([
    "server", "name", "flavorRef", "imageRef", "networks", "uuid", "port", "fixed_ip", "tag", "metadata", "meta",
    "personality", "path", "contents", "security_groups", "availability_zone", "key_name", "user_data", "min_count",
    "max_count", "block_device_mapping_v2", "block_device_mapping", "source_type", "destination_type", "boot_index",
    "volume_size", "tags", "hostname", "host", "description", "os:scheduler_hints", "os-start", "reboot", "type",
    "lock", "os-getConsoleOutput", "length", "pinned_availability_zone", "accessIPv4", "trusted_image_certificates",
]) | st.text(max_size=3)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["vm", "1", CIRROS, NETWORK, "auto", "none", "image", "local", "10.0.0.1", "nova:h:n:x", "\0"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)
ENTRIES = st.fixed_dictionaries({"name": st.just("vm"), "flavorRef": st.just("1"), "imageRef": st.just(CIRROS)})
SERVERS = st.builds(lambda fixed, free: {"server": {**fixed, **free}}, ENTRIES,
                    st.dictionaries(KEYS, VALUES, max_size=4))
QUERY_NAMES = st.sampled_from([
    "limit", "marker", "sort_key", "sort_dir", "name", "status", "changes-since", "all_tenants", "tags", "ip",
    "created_at", "deleted", "locked", "flavor", "power_state", "vm_state", "changes-before", "uuid"])
QUERY_VALUES = st.text(max_size=10) | st.sampled_from([
    "1", "(", "a{1000}", "(a*)*b", "uuid", "asc", "9" * 30, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:00"])
QUERIES = st.lists(st.tuples(QUERY_NAMES, QUERY_VALUES), max_size=4)
MODULES = (addresses, console_output, instance_actions, server_actions, server_create, server_list, server_metadata,
           server_tags, servers)
PATHS = sorted({(route.method, route.path) for module in MODULES for route in module.ROUTES})


@pytest.mark.spec("API-036")
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_no_request_fails_the_service(data: st.DataObject) -> None:
    async with compute_cloud() as cloud:
        assert (await create(cloud)).status_code == 202
        ids = [(await cloud.boot()).uuid, cloud.compute.created[0].instance.uuid]
        for _ in range(12):
            method, path = data.draw(st.sampled_from(PATHS))
            target = path.replace("{server_id}", quote(data.draw(st.sampled_from([*ids, "x", "\0"]))))
            key = data.draw(st.text(string.printable, min_size=1, max_size=5))
            target = target.replace("{id}", quote(key, safe=""))
            answer = await cloud.request(
                method, target,
                version=f"2.{data.draw(st.sampled_from([1, 19, 37, 69, 94, 104]))}",
                as_=data.draw(st.sampled_from(["member", "admin", "reader"])),
                root=data.draw(st.sampled_from(["/v2.1", "/v2"])),
                params=data.draw(QUERIES) if method == "GET" else None,
                content=encoded(data.draw(SERVERS | VALUES)) if method in ("POST", "PUT") else None,
            )
            assert answer.status_code < 500, (method, target, answer.text)


def encoded(value: object) -> bytes:
    """JSON as a careless client writes it, with NaN and lone surrogates."""
    return json.dumps(value).encode()


@pytest.mark.spec("API-036", "API-627")
async def test_expression_that_would_backtrack_for_ever(cloud: ComputeCloud) -> None:
    await cloud.boot(display_name="a" * 200)
    answer = await cloud.get("/servers", params={"name": "(a*)*(a|a)*b$"})
    assert answer.json() == {"servers": []}
