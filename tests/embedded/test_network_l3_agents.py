"""The agent that has the routers of the machine, in the network API, over the in-memory wiring."""

import asyncio
from typing import Any

import pytest
import test_network_api
from test_network_api import NOWHERE, Cloud, subnetted
from test_network_routers import external, join, leave, routed, server_port

cloud = test_network_api.cloud


async def agent_of(cloud: Cloud) -> str:
    (agent,) = (await cloud.admin.get("/agents"))["agents"]
    return str(agent["id"])


async def having(cloud: Cloud, router: str) -> list[str]:
    """The agents that have a router."""
    return [agent["id"] for agent in (await cloud.admin.get(f"/routers/{router}/l3-agents"))["agents"]]


async def status_of(cloud: Cloud, floating: Any) -> Any:
    return (await cloud.a.get(f"/floatingips/{floating['id']}"))["floatingip"]["status"]


async def give(cloud: Cloud, agent: str, router: str, status: int = 201) -> Any:
    body = await cloud.admin.call("POST", f"/agents/{agent}/l3-routers", status, {"router_id": router})
    return body and body["NeutronError"]["type"]


async def take(cloud: Cloud, agent: str, router: str, status: int = 204) -> Any:
    return await cloud.admin.delete(f"/agents/{agent}/l3-routers/{router}", status)


async def test_the_machine_has_one_agent(cloud: Cloud) -> None:
    (agent,) = (await cloud.admin.get("/agents"))["agents"]
    assert (agent["agent_type"], agent["host"], agent["alive"], agent["admin_state_up"]) == (
        "L3 agent", cloud.wiring.host, True, True)
    for query in ("agent_type=L3+agent", "agent_type=L3+Agent", f"host={cloud.wiring.host}", "alive=True"):
        assert len((await cloud.admin.get(f"/agents?{query}"))["agents"]) == 1
    for query in ("agent_type=DHCP+agent", "host=elsewhere", "alive=False"):
        assert (await cloud.admin.get(f"/agents?{query}"))["agents"] == []
    for path in (f"/agents/{agent['id']}", f"/agents/{agent['id']}.json"):
        shown = (await cloud.admin.get(path))["agent"]
        assert shown == agent | {"heartbeat_timestamp": shown["heartbeat_timestamp"]}
    assert (await cloud.admin.get(f"/agents/{agent['id']}?fields=host"))["agent"] == {"host": cloud.wiring.host}
    assert (await cloud.admin.get(f"/agents/{NOWHERE}", 404))["NeutronError"]["type"] == "AgentNotFound"


@pytest.mark.spec("EMN-64")
async def test_a_router_is_scheduled_when_it_gets_something_to_do(cloud: Cloud) -> None:
    agent = await agent_of(cloud)
    public, _ = await external(cloud)
    _, subnet = await subnetted(cloud.a)
    _, other = await subnetted(cloud.a, "10.2.0.0/24")
    idle, inner, outer = [(await cloud.a.make("router", name=name))["id"] for name in ("idle", "inner", "outer")]
    by_port = (await cloud.a.make("router", name="by-port"))["id"]
    assert await having(cloud, inner) == []
    await join(cloud.a, inner, subnet_id=subnet)
    await cloud.a.put("router", outer, external_gateway_info={"network_id": public})
    network = (await cloud.a.get(f"/subnets/{other}"))["subnet"]["network_id"]
    await join(cloud.a, by_port, port_id=(await cloud.a.make("port", network_id=network))["id"])
    at_once = (await cloud.a.make("router", name="both", external_gateway_info={"network_id": public}))["id"]
    assert await having(cloud, idle) == []
    for router in (inner, outer, by_port, at_once):
        assert await having(cloud, router) == [agent]
    listed = (await cloud.admin.get(f"/agents/{agent}/l3-routers"))["routers"]
    assert [router["id"] for router in listed] == [inner, outer, by_port, at_once]
    assert listed[1] == (await cloud.admin.get(f"/routers/{outer}"))["router"]
    assert {plan.id: plan.works for plan in cloud.wiring.routed} == {
        idle: False, inner: True, outer: True, by_port: True, at_once: True}


@pytest.mark.spec("EMN-14", "EMN-65")
async def test_a_router_that_was_taken_away_answers_to_nothing(cloud: Cloud) -> None:
    public, router, network, _ = await routed(cloud)
    agent = await agent_of(cloud)
    port = await server_port(cloud, network)
    floating = await cloud.a.make("floatingip", floating_network_id=public, port_id=port["id"])
    answered = cloud.wiring.networks[public].answers_to
    assert floating["floating_ip_address"] in answered and len(answered) == 2
    await take(cloud, agent, router)
    assert await having(cloud, router) == []
    assert await status_of(cloud, floating) == "DOWN"
    assert (await cloud.admin.get(f"/agents/{agent}/l3-routers"))["routers"] == []
    assert not cloud.wiring.routed[0].works
    assert (cloud.wiring.networks[public].answers_to, cloud.wiring.networks[network].answers_to) == ((), ())
    await give(cloud, agent, router)
    assert await having(cloud, router) == [agent]
    assert await status_of(cloud, floating) == "ACTIVE"
    assert cloud.wiring.routed[0].works
    assert cloud.wiring.networks[public].answers_to == answered
    assert cloud.wiring.networks[network].answers_to == ("10.1.0.1",)
    await cloud.a.put("router", router, admin_state_up=False)
    assert await having(cloud, router) == [agent]
    assert await status_of(cloud, floating) == "DOWN"
    assert not cloud.wiring.routed[0].works


@pytest.mark.spec("EMN-64")
async def test_a_router_stays_away_until_it_is_given_back(cloud: Cloud) -> None:
    public, router, _, subnet = await routed(cloud)
    agent = await agent_of(cloud)
    await take(cloud, agent, router)
    await leave(cloud.a, router, subnet_id=subnet)
    await cloud.a.put("router", router, external_gateway_info={})
    await join(cloud.a, router, subnet_id=subnet)
    await cloud.a.put("router", router, external_gateway_info={"network_id": public}, admin_state_up=True)
    assert await having(cloud, router) == []
    assert not cloud.wiring.routed[0].works
    await give(cloud, agent, router)
    assert cloud.wiring.routed[0].works


@pytest.mark.spec("EMN-64")
async def test_a_router_can_be_given_before_it_has_something_to_do(cloud: Cloud) -> None:
    agent = await agent_of(cloud)
    router = (await cloud.a.make("router", name="r"))["id"]
    assert await take(cloud, agent, router, 409) == "RouterNotHostedByL3Agent"
    await give(cloud, agent, router)
    assert await having(cloud, router) == [agent]
    await take(cloud, agent, router)
    _, subnet = await subnetted(cloud.a)
    await join(cloud.a, router, subnet_id=subnet)
    assert await having(cloud, router) == []
    await leave(cloud.a, router, subnet_id=subnet)
    await cloud.a.delete(f"/routers/{router}")
    assert await give(cloud, agent, router, 404) == "RouterNotFound"


@pytest.mark.spec("EMN-66")
async def test_what_is_refused(cloud: Cloud) -> None:
    _, router, _, _ = await routed(cloud)
    agent = await agent_of(cloud)
    assert await give(cloud, agent, router, 409) == "RouterHostedByL3Agent"
    assert await give(cloud, agent, NOWHERE, 404) == "RouterNotFound"
    assert await give(cloud, NOWHERE, router, 404) == "AgentNotFound"
    assert await take(cloud, agent, NOWHERE, 404) == "RouterNotFound"
    assert await take(cloud, NOWHERE, router, 404) == "AgentNotFound"
    await cloud.admin.get(f"/agents/{NOWHERE}/l3-routers", 404)
    await cloud.admin.get(f"/routers/{NOWHERE}/l3-agents", 404)
    for body in ({}, {"router_id": 1}, {"router_id": router, "color": "red"}):
        await cloud.admin.call("POST", f"/agents/{agent}/l3-routers", 400, body)
    await take(cloud, agent, router)
    assert await take(cloud, agent, router, 409) == "RouterNotHostedByL3Agent"


@pytest.mark.spec("EMN-66")
async def test_a_disabled_agent_gets_no_more_routers(cloud: Cloud) -> None:
    _, router, _, _ = await routed(cloud)
    agent = await agent_of(cloud)
    changed = (await cloud.admin.put("agent", agent, admin_state_up=False, description="resting"))
    assert (changed["admin_state_up"], changed["description"]) == (False, "resting")
    assert await having(cloud, router) == [agent]
    later, idle = [(await cloud.a.make("router", name=name))["id"] for name in ("later", "idle")]
    _, subnet = await subnetted(cloud.a, "10.2.0.0/24")
    await join(cloud.a, later, subnet_id=subnet)
    assert await having(cloud, later) == []
    assert await give(cloud, agent, later, 409) == "InvalidL3Agent"
    assert (await cloud.admin.put("agent", agent, admin_state_up=True))["description"] == "resting"
    assert (await having(cloud, later), await having(cloud, idle)) == ([agent], [])
    await cloud.admin.put("agent", agent, admin_state_up=False)
    await take(cloud, agent, later)
    await cloud.admin.delete(f"/agents/{agent}")
    shown = (await cloud.admin.get(f"/agents/{agent}"))["agent"]
    assert (shown["admin_state_up"], shown["description"]) == (True, "")
    assert await having(cloud, later) == []
    await cloud.a.call("PUT", f"/agents/{agent}", 403, {"agent": {"admin_state_up": False}})
    await cloud.a.delete(f"/agents/{agent}", 403)
    await cloud.admin.call("PUT", f"/agents/{agent}", 400, {"agent": {"alive": False}})
    await cloud.admin.delete(f"/agents/{NOWHERE}", 404)


@pytest.mark.spec("EMN-66")
async def test_agents_are_for_administrators(cloud: Cloud) -> None:
    _, router, _, _ = await routed(cloud)
    agent = await agent_of(cloud)
    for path in ("/agents", f"/agents/{agent}", f"/agents/{agent}/l3-routers", f"/routers/{router}/l3-agents"):
        assert (await cloud.a.get(path, 403))["NeutronError"]["type"] == "PolicyNotAuthorized"
    await cloud.a.call("POST", f"/agents/{agent}/l3-routers", 403, {"router_id": router})
    await cloud.a.delete(f"/agents/{agent}/l3-routers/{router}", 403)
    assert await having(cloud, router) == [agent]


@pytest.mark.spec("EMN-66")
async def test_of_many_that_take_a_router_away_at_once_one_does(cloud: Cloud) -> None:
    _, router, _, _ = await routed(cloud)
    agent = await agent_of(cloud)
    path, headers = f"/v2.0/agents/{agent}/l3-routers", {"X-Auth-Token": "admin"}
    taken = await asyncio.gather(*(cloud.client.delete(f"{path}/{router}", headers=headers) for _ in range(5)))
    assert sorted(answer.status_code for answer in taken) == [204, 409, 409, 409, 409]
    given = await asyncio.gather(
        *(cloud.client.post(path, headers=headers, json={"router_id": router}) for _ in range(5)))
    assert sorted(answer.status_code for answer in given) == [201, 409, 409, 409, 409]
