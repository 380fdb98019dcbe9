"""The client of Cyborg, over HTTP: what it sends, and what it makes of answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyborg import FPGA, VERSION, Server, StandIn, cyborg

from kilonova.domain.errors import InvalidInput, KilonovaError, NotFound, NotSupported, ServiceUnavailable
from kilonova.services.accelerators import AcceleratorService, NoAccelerators, RequestState
from kilonova.services.cyborg import AcceleratorOptions, Cyborg, accelerators

SERVER = "44444444-4444-4444-8444-444444444444"
PROVIDER = "55555555-5555-4555-8555-555555555555"


@pytest.fixture
def server() -> Iterator[Server]:
    with cyborg(StandIn()) as listening:
        yield listening


@pytest.fixture
def client(server: Server) -> AcceleratorService:
    return accelerators(AcceleratorOptions(endpoint=server.endpoint))


def with_account(server: Server, tmp_path: Path, password: str = "s3cret") -> AcceleratorService:
    file = tmp_path / "password"
    file.write_text(f"{password}\n")
    return accelerators(AcceleratorOptions(
        endpoint=f"{server.endpoint}/", auth_url=server.auth_url, username="kilonova", password_file=str(file),
    ))


@pytest.mark.spec("EMP-09")
async def test_requests_from_their_making_to_their_end(server: Server, client: AcceleratorService) -> None:
    assert await client.groups("fpga") == ({f"resources:{FPGA}": "1", "accel:bitstream_id": "d5ca2f11"},)
    made = await client.make("pair")
    assert [(one.group, one.state, one.server) for one in made] == [
        (0, RequestState.INITIAL, ""), (1, RequestState.INITIAL, ""),
    ]
    assert await client.of_server(SERVER) == ()
    await client.bind(SERVER, "node1", {one.id: PROVIDER for one in made})
    bound = await client.of_server(SERVER)
    assert {one.id for one in bound} == {one.id for one in made}
    assert {(one.state, one.server, one.handle_type) for one in bound} == {(RequestState.BOUND, SERVER, "PCI")}
    assert bound[0].handle == {"domain": "0000", "bus": "5e", "device": "00", "function": "0"}
    arq = server.service.arqs[made[0].id]
    assert (arq["hostname"], arq["device_rp_uuid"]) == ("node1", PROVIDER)
    assert await client.requests() == bound
    await client.discard([one.id for one in made])
    assert server.service.arqs == {}
    await client.discard([one.id for one in made])
    assert server.versions == {VERSION}
    assert server.sign_ins == []


async def test_one_that_is_gone_does_not_keep_the_others(server: Server, client: AcceleratorService) -> None:
    made = await client.make("pair")
    del server.service.arqs[made[0].id]
    await client.discard([one.id for one in made])
    assert server.service.arqs == {}


@pytest.mark.parametrize("profile", ["unknown", "fpga,pair"])
async def test_a_profile_that_is_not_there(client: AcceleratorService, profile: str) -> None:
    with pytest.raises(InvalidInput, match=f"Device profile {profile} could not be found"):
        await client.groups(profile)


async def test_a_token_is_asked_for_once_and_anew_when_it_has_expired(server: Server, tmp_path: Path) -> None:
    server.needs_token = True
    client = with_account(server, tmp_path)
    assert server.sign_ins == []
    await client.groups("fpga")
    await client.requests()
    assert len(server.sign_ins) == 1
    asked = server.sign_ins[0]["auth"]
    assert asked["identity"]["password"]["user"] == {
        "name": "kilonova", "domain": {"name": "Default"}, "password": "s3cret"
    }
    assert asked["scope"] == {"project": {"name": "service", "domain": {"name": "Default"}}}
    server.tokens.clear()
    await client.requests()
    assert len(server.sign_ins) == 2


async def test_who_is_not_let_in_is_told(server: Server, tmp_path: Path) -> None:
    server.needs_token = True
    with pytest.raises(KilonovaError, match="gives no token") as refused:
        await with_account(server, tmp_path, "wrong").requests()
    assert "s3cret" not in str(refused.value)
    with pytest.raises(KilonovaError, match="answers 401"):
        await accelerators(AcceleratorOptions(endpoint=server.endpoint)).requests()


async def test_answers_that_are_not_good(server: Server, client: AcceleratorService) -> None:
    first, second = await client.make("fpga"), await client.make("fpga")
    await client.bind(SERVER, "node1", {first[0].id: PROVIDER})
    with pytest.raises(InvalidInput, match=r"answers 400: Instance .* already has accelerator requests"):
        await client.bind(SERVER, "node1", {second[0].id: PROVIDER})
    with pytest.raises(NotFound, match="answers 404"):
        await client.make("unknown")
    server.broken = True
    with pytest.raises(ServiceUnavailable, match="answers 503: no database"):
        await client.requests()


async def test_nobody_listens() -> None:
    with cyborg(StandIn()) as gone:
        pass
    with pytest.raises(ServiceUnavailable, match="The accelerator service does not answer"):
        await accelerators(AcceleratorOptions(endpoint=gone.endpoint)).requests()


async def test_answers_that_make_no_sense() -> None:
    async def call(method: str, path: str, **_: Any) -> Any:
        return {"arqs": [{"state": "Bound"}]}

    with pytest.raises(KilonovaError, match="something unexpected"):
        await Cyborg(call).requests()


async def test_states_that_are_not_known() -> None:
    async def call(method: str, path: str, **_: Any) -> Any:
        return {"arqs": [{"uuid": "a", "state": "Programming"}, {"uuid": "b"}]}

    assert [one.state for one in await Cyborg(call).requests()] == [RequestState.OTHER] * 2


async def test_a_cloud_without_the_service() -> None:
    none = accelerators(AcceleratorOptions())
    assert isinstance(none, NoAccelerators)
    with pytest.raises(InvalidInput, match="no accelerator service"):
        await none.groups("fpga")
    for call in (none.make("fpga"), none.bind(SERVER, "h", {}), none.of_server(SERVER), none.discard(["a"])):
        with pytest.raises(NotSupported, match="There is no accelerator service"):
            await call
    await none.discard(())
    assert await none.requests() == ()


@pytest.mark.parametrize(("options", "said"), [
    (AcceleratorOptions(endpoint="cyborg:6666"), "accelerator.endpoint"),
    (AcceleratorOptions(endpoint="http://h", auth_url="h"), "accelerator.auth_url"),
    (AcceleratorOptions(endpoint="http://h", username="u"), "needs accelerator.auth_url"),
    (AcceleratorOptions(endpoint="http://h", username="u", auth_url="http://h", password_file="/nowhere"),
     "accelerator.password_file cannot be read"),
])
def test_options_that_make_no_sense(options: AcceleratorOptions, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        accelerators(options)
