"""Build: what happens when a host, a service or the request itself stops it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
import structlog
from small_cloud import OPTIONS, SmallCloud, in_cloud

from kilonova.db.placement.claims import Claim
from kilonova.domain.errors import (
    Conflict,
    InvalidInput,
    KilonovaError,
    NetworkNotFound,
    OverQuota,
    Retryable,
    ServiceUnavailable,
    TryElsewhere,
)
from kilonova.domain.grouping import ServerGroup
from kilonova.domain.instance import InjectedFile
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.scheduler import placing
from kilonova.scheduler.placing import Placing
from kilonova.services.network import PortRequest
from kilonova.services.placement import Target

NO_RETRY = msgspec.structs.replace(OPTIONS, max_attempts=1)
ELSEWHERE = TryElsewhere("no room on this disk")


def other(host: str) -> str:
    return {"host0": "host1", "host1": "host0"}[host]


# --- another host ---------------------------------------------------------------------------------


@pytest.mark.spec("BLD-53", "BLD-64", "BLD-66", "FND-32", "FND-33", "BLD-114")
@in_cloud(hosts=2)
async def test_what_one_host_cannot_do_is_undone_there_and_done_on_another(cloud: SmallCloud) -> None:
    cloud.fail("spawn", ELSEWHERE)
    uuid = await cloud.build()
    first, second = (host for host, name in cloud.calls("spawn"))
    assert second == other(first)
    assert cloud.calls("spawn", "destroy", "delete_disks", "create_port", "release") == [
        ("network", "create_port"), (first, "spawn"), (first, "destroy"), (first, "destroy"), (first, "delete_disks"),
        ("network", "release"), ("network", "create_port"), (second, "spawn"),
    ]
    assert cloud.server(uuid).host == second
    assert cloud.claims(uuid) == [second]
    assert cloud.hypervisors[first].guests == {}
    assert cloud.faults(uuid) == 0
    left = [i for i in cloud.history if i.uuid == uuid and i.host is None]
    assert {(i.host, i.node, i.launched_on, i.availability_zone) for i in left} == {(None, None, None, None)}
    assert {i.task_state for i in left} == {TaskState.SCHEDULING}  # in the same write as the host was cleared
    assert {i.host for i in cloud.history if i.task_state is not TaskState.SCHEDULING} == {first, second}


@pytest.mark.spec("BLD-65")
@in_cloud(hosts=2)
async def test_the_next_host_is_given_all_that_the_first_one_was(cloud: SmallCloud) -> None:
    made = networks_made(cloud)
    cloud.fail("spawn", ELSEWHERE)
    await cloud.build(
        networks=2, admin_password="hunter2hunter2", injected_files=(InjectedFile("/x", "YQ=="),), user_data="Yg==",
        metadata={"a": "b"}, security_groups=("web",), key_name="k", key_data="ssh-rsa AAAA", tags=("t",),
    )
    (first, one), (second, two) = [(host, guest) for host, call, guest in cloud.guests_made if call == "spawn"]
    assert first != second
    assert two == one
    assert one.metadata.admin_password == "hunter2hunter2"
    assert one.metadata.files == (InjectedFile("/x", "YQ=="),)
    assert len(one.vifs) == 2
    half = len(made) // 2
    assert [(r.key, r.network_id, r.security_groups) for r in made[half:]] == [
        (r.key, r.network_id, r.security_groups) for r in made[:half]
    ]
    assert [(r.host, r.security_groups) for r in made] == [
        (host, ("web",)) for host in (first, first, second, second)
    ]


def networks_made(cloud: SmallCloud) -> list[PortRequest]:
    """The ports that are asked for from now on."""
    asked: list[PortRequest] = []
    make = cloud.net.make

    def noted(request: PortRequest) -> str:
        asked.append(request)
        return make(request)

    cloud.net.make = noted  # type: ignore[method-assign]
    return asked


@pytest.mark.spec("BLD-62")
@in_cloud(hosts=2)
async def test_the_history_shows_the_host_that_failed_and_the_one_that_did_not(cloud: SmallCloud) -> None:
    cloud.fail("spawn", ELSEWHERE)
    uuid = await cloud.build()
    (action,) = await cloud.actions(uuid)
    told = [(e.event, e.result, e.host, e.details) for e in reversed(action.events) if "start_guest" in e.event]
    first, second = (host for host, name in cloud.calls("spawn"))
    assert told == [
        ("build.start_guest", "Error", first, ELSEWHERE.message),
        ("build.undo_start_guest", "Success", first, None),
        ("build.start_guest", "Success", second, None),
    ]
    assert action.message is None
    cloud.always_fail("spawn", ELSEWHERE)
    broken = await cloud.ask(cloud.new())
    await cloud.rest()
    (action,) = await cloud.actions(broken)
    whole = next(e for e in action.events if e.event == "compute__do_build_and_run_instance")
    assert (whole.result, whole.details, action.message) == ("Error", ELSEWHERE.message, "Error")


@pytest.mark.spec("BLD-63", "FND-18", "FND-35", "FND-36", "FND-39", "BLD-52")
@in_cloud(hosts=2, options=NO_RETRY)
async def test_without_another_attempt_the_server_ends_in_error_with_the_reason(cloud: SmallCloud) -> None:
    cloud.fail("spawn", ELSEWHERE)
    uuid = await cloud.ask(cloud.new())
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host, server.node) == (VmState.ERROR, None, None, None)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.code, fault.message) == (500, ELSEWHERE.message)
    assert (cloud.guest(uuid), cloud.ports(uuid), cloud.claims(uuid)) == (None, [], [])
    assert len(cloud.calls("spawn")) == 1
    assert cloud.operation(uuid, "build").state is OperationState.FAILED


@pytest.mark.spec("BLD-67")
@in_cloud(hosts=3)
async def test_when_no_host_is_left_the_fault_tells_why_the_last_one_failed(cloud: SmallCloud) -> None:
    cloud.fail("create_disks", TryElsewhere("first"), TryElsewhere("second"), TryElsewhere("third"))
    uuid = await cloud.ask(cloud.new())
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "third"
    assert cloud.faults(uuid) == 1


@pytest.mark.spec("BLD-86")
@in_cloud(hosts=3)
async def test_a_host_whose_claim_is_refused_is_passed_over_untouched(cloud: SmallCloud) -> None:
    cloud.always_fail("create_disks", ELSEWHERE)
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.operations(uuid, "build"))
    request = msgspec.json.decode(cloud.operation(uuid, "build").request)
    first, full, third = (target["host"] for target in request["targets"])
    filler = cloud.new(flavor=msgspec.structs.replace(cloud.new().instance.flavor, memory_mib=16384 - 512 - 100))
    target = Target(host=full, node=full, provider=cloud.provider(full))
    await placing_of(cloud).claim(filler.spec, target)
    await cloud.rest()
    assert [host for host, _ in cloud.calls("create_disks")] == [first, third]
    assert len(cloud.calls("create_port")) == 2
    assert cloud.claims(uuid) == []


def placing_of(cloud: SmallCloud) -> Placing:
    return cloud._placing(cloud.processes["api"])


@pytest.mark.spec("BLD-97", "BLD-69")
def test_a_server_group_that_forbids_a_host_is_the_reason_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        cloud.always_fail("create_disks", ELSEWHERE)
        uuid = await cloud.ask(cloud.new())
        await cloud.until(lambda: cloud.calls("create_disks"))
        monkeypatch.setattr(placing.claims, "claim", lambda *_a, **_k: Claim.GROUP)
        await cloud.rest()
        fault = cloud.fault(uuid)
        assert fault is not None
        (last,) = {"host0", "host1"} - {host for host, _ in cloud.calls("create_disks")}
        assert fault.message == f"Host {last} cannot be had: {Claim.GROUP.value}."
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.host) == (VmState.ERROR, None, None)

    story()


@pytest.mark.spec("BLD-08")
@in_cloud()
async def test_without_a_server_group_none_is_looked_for(cloud: SmallCloud) -> None:
    class Asked(Exception):
        pass

    class Groupings:
        def aggregates(self, _conn: Any) -> list[Any]:
            return []

        def server_group(self, _conn: Any, uuid: str) -> ServerGroup | None:
            raise Asked(uuid)

    groupings: Any = Groupings()
    target = Target(host="host0", node="host0", provider=cloud.provider("host0"))
    claims = Placing(cloud.databases.api, None, groupings=groupings)  # type: ignore[arg-type]
    await claims.claim(cloud.new(scheduler_hints={"different_host": ["x"]}).spec, target)
    with pytest.raises(Asked):
        await claims.claim(cloud.new(server_group="g").spec, target)


# --- which failures end a build, and which only end it here -------------------------------------------


@pytest.mark.spec(
    "BLD-78", "BLD-94", "BLD-95", "BLD-98", "BLD-106", "BLD-111", "BLD-05", "NET-04", "NET-11",
)
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("create_port", Conflict("No address is left.")), ("create_port", OverQuota("too many ports")),
        ("create_port", NetworkNotFound("x")), ("create_port", InvalidInput("not on that network")),
        ("vifs", KilonovaError("forbidden")),
        ("create_disks", InvalidInput("The content of the injected file /x is not base64.")),
        ("create_disks", KilonovaError("the disk is too small")), ("create_disks", OverQuota("too much")),
        ("spawn", InvalidInput("the image is corrupt")), ("resume", KilonovaError("signature")),
    ],
)
def test_what_no_host_can_cure_ends_the_build(where: str, error: KilonovaError) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        if where in ("create_port", "vifs"):
            cloud.net.fail[where] = [error]
        else:
            cloud.fail(where, error)
        uuid = await cloud.ask(cloud.new())
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.host, server.node) == (VmState.ERROR, None, None, None)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.code, fault.message) == (error.status, error.message)
        assert len(cloud.calls(where)) == 1
        assert len({host for host, _ in cloud.calls("create_disks")}) < 2
        assert (cloud.guest(uuid), cloud.ports(uuid), cloud.claims(uuid)) == (None, [], [])
        assert cloud.failed_builds("host0") + cloud.failed_builds("host1") == 0

    story()


SECRET = "postgresql://user:hunter2@backend"


@pytest.mark.spec("BLD-54", "BLD-96", "BDM-27")
@in_cloud(hosts=2)
async def test_an_unexpected_error_is_tried_elsewhere_and_not_shown(cloud: SmallCloud) -> None:
    cloud.fail("create_disks", ValueError(SECRET))
    uuid = await cloud.build()
    assert len({host for host, _ in cloud.calls("create_disks")}) == 2
    cloud.always_fail("create_disks", ValueError(SECRET))
    broken = await cloud.ask(cloud.new())
    await cloud.rest()
    fault = cloud.fault(broken)
    assert fault is not None
    assert fault.message == "Unexpected error: ValueError."
    assert "Traceback" in fault.details
    assert "create_disks" in fault.details
    assert cloud.claims(broken) == []
    assert cloud.operation(broken, "build").state is OperationState.FAILED
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@pytest.mark.spec("BLD-06")
@in_cloud(hosts=2)
async def test_passwords_and_files_are_in_no_log_fault_or_finished_journal(cloud: SmallCloud) -> None:
    secrets = {"admin_password": "hunter2hunter2", "injected_files": (InjectedFile("/x", "c2VjcmV0c2VjcmV0"),)}
    with structlog.testing.capture_logs() as logs:
        built = await cloud.build(**secrets)
        cloud.always_fail("spawn", ELSEWHERE)
        failed = await cloud.ask(cloud.new(**secrets))
        await cloud.rest()
        deleted = await cloud.ask(cloud.new(**secrets))
        await cloud.until(lambda: cloud.calls("create_port")[-1:] and cloud.operations(deleted, "build"))
        await cloud.delete(deleted)
        await cloud.rest()
    assert cloud.server(built).vm_state is VmState.ACTIVE
    assert cloud.server(failed).vm_state is VmState.ERROR
    everything = [json.dumps(logs, default=str)]
    for database in (cloud.databases.cell, cloud.databases.api, *cloud.databases.hosts):
        everything += raw(database)
    assert len(everything) > 20
    assert not [text for text in everything if "hunter2" in text or "c2VjcmV0" in text]


def raw(database: Any) -> list[str]:
    """Every row of a database as text."""
    driver = database._writer.connection.driver_connection
    tables = [name for (name,) in driver.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [str(row) for table in tables for row in driver.execute(f"SELECT * FROM {table}")]


# --- networks ---------------------------------------------------------------------------------------


@pytest.mark.spec("NET-02", "NET-03")
@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (-1, 1), (3, 4), (8, 9)])
def test_allocation_is_tried_again_with_growing_pauses(retries: int, attempts: int) -> None:
    @in_cloud(options=msgspec.structs.replace(OPTIONS, network_allocate_retries=retries))
    async def story(cloud: SmallCloud) -> None:
        cloud.net.fail["create_port"] = [ServiceUnavailable("The network service does not answer.")] * 20
        uuid = await cloud.ask(cloud.new())
        await cloud.rest(within=600.0)
        times = cloud.times("create_port")
        assert len(times) == attempts
        pauses = [after - before for before, after in itertools.pairwise(times)]
        assert pauses == [pytest.approx(seconds, abs=1.2) for seconds in (1, 2, 4, 8, 16, 30, 30, 30)[: attempts - 1]]
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == "The network service does not answer."
        assert cloud.server(uuid).vm_state is VmState.ERROR

    story()


@pytest.mark.spec("NET-02", "NET-10")
@in_cloud()
async def test_an_allocation_that_works_at_last_makes_the_ports_once(cloud: SmallCloud) -> None:
    cloud.net.fail["create_port"] = [ServiceUnavailable("no")]
    cloud.net.fail["vifs"] = [ServiceUnavailable("no")]
    uuid = await cloud.build(networks=2)
    assert len(cloud.calls("create_port")) == 5
    assert len(cloud.ports(uuid)) == len(cloud.net.order) == 2  # the third attempt took those of the second
    assert len(cloud.server(uuid).network_info) == 2
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("NET-29", "NET-31", "NET-32", "BLD-80", "BLD-109", "NET-25")
@in_cloud()
async def test_what_cannot_be_undone_now_is_owed_and_keeps_nothing_else(cloud: SmallCloud) -> None:
    cloud.fail("spawn", KilonovaError("the reason"))
    cloud.net.fail["release"] = ALWAYS_DOWN
    uuid = await cloud.ask(cloud.new())
    await cloud.rest(within=300.0)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "the reason"
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host) == (VmState.ERROR, None, None)
    assert cloud.claims(uuid) == []
    assert cloud.guest(uuid) is None
    assert len(cloud.ports(uuid)) == 1
    cloud.heal()
    await cloud.rest(debts=True, within=300.0)
    assert cloud.ports(uuid) == []
    assert cloud.server(uuid).vm_state is VmState.ERROR


ALWAYS_DOWN: list[Exception] = [ServiceUnavailable("The network service does not answer.")] * 1000


@pytest.mark.spec("NET-28")
@in_cloud(hosts=2)
async def test_an_interface_that_cannot_be_unplugged_keeps_nothing_else(cloud: SmallCloud) -> None:
    cloud.fail("spawn", ELSEWHERE)
    cloud.always_fail("unplug", KilonovaError("never plugged"))
    with structlog.testing.capture_logs() as logs:
        uuid = await cloud.build()
        await cloud.delete(uuid)
        await cloud.rest()
    cloud.gone(uuid)
    assert [entry["log_level"] for entry in logs if entry["event"] == "interfaces not unplugged"][:1] == ["warning"]


# --- guests that may be left --------------------------------------------------------------------------


@pytest.mark.spec("BLD-80", "BLD-81", "BLD-82", "BLD-115")
@in_cloud(hosts=2)
async def test_while_a_guest_may_be_left_the_server_keeps_its_host_and_goes_to_no_other(cloud: SmallCloud) -> None:
    cloud.fail("resume", ELSEWHERE)
    cloud.always_fail("destroy", KilonovaError("the hypervisor hangs"))
    uuid = await cloud.ask(cloud.new())
    await cloud.rest(within=600.0)
    ((here, _),) = cloud.calls("spawn")
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host) == (VmState.ERROR, None, here)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == ELSEWHERE.message
    assert cloud.power(uuid) is PowerState.PAUSED
    assert len(cloud.ports(uuid)) == 1
    assert cloud.claims(uuid) == [here]
    cloud.heal()
    await cloud.delete(uuid)
    await cloud.rest(debts=True, within=300.0)
    cloud.gone(uuid)


@pytest.mark.spec("BLD-81", "BLD-82", "BLD-115")
@in_cloud(hosts=2)
async def test_a_host_that_dies_under_a_starting_guest_keeps_the_server(cloud: SmallCloud) -> None:
    cloud.at["start guest/do/effect"] = cloud.crash
    uuid = await cloud.ask(cloud.new())
    await cloud.rest(within=900.0)
    ((here, _),) = cloud.calls("spawn")
    server = cloud.server(uuid)
    assert (server.vm_state, server.host, cloud.claims(uuid)) == (VmState.ERROR, here, [here])
    assert len(cloud.ports(uuid)) == 1
    await cloud.boot(here)
    await cloud.rest(debts=True, within=300.0)
    assert cloud.guest(uuid) is None
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("BLD-103")
@in_cloud(hosts=2)
async def test_after_the_start_a_guest_goes_before_its_networks_do(cloud: SmallCloud) -> None:
    cloud.fail("power_state", RuntimeError("connection lost"))
    uuid = await cloud.build()
    first, second = (host for host, _ in cloud.calls("spawn"))
    order = cloud.calls("spawn", "destroy", "release")
    assert order[:2] == [(first, "spawn"), (first, "destroy")]
    assert order.index((first, "destroy")) < order.index(("network", "release")) < order.index((second, "spawn"))
    assert cloud.server(uuid).host == second


# --- placement ------------------------------------------------------------------------------------------


@pytest.mark.spec("BLD-100")
def test_placement_that_is_away_for_a_moment_is_asked_again_and_then_another_host(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Placing.claim
    failures: dict[str, int] = {}

    async def claim(self: Placing, spec: Any, target: Target) -> None:
        asked.append(target.host)
        if failures.get(target.host, 0) > 0:
            failures[target.host] -= 1
            raise ServiceUnavailable("placement does not answer")
        await real(self, spec, target)

    monkeypatch.setattr(Placing, "claim", claim)

    @in_cloud(hosts=3)
    async def story(cloud: SmallCloud) -> None:
        cloud.fail("create_disks", ELSEWHERE)
        first = await cloud.ask(cloud.new())
        await cloud.until(lambda: cloud.operations(first, "build"))
        hosts = [t["host"] for t in msgspec.json.decode(cloud.operation(first, "build").request)["targets"]]
        failures.update({hosts[1]: 2})
        await cloud.rest()
        assert cloud.server(first).host == hosts[1]
        assert asked == [hosts[1]] * 3
        asked.clear()
        cloud.fail("create_disks", ELSEWHERE)
        second = await cloud.ask(cloud.new())
        await cloud.until(lambda: cloud.operations(second, "build"))
        hosts = [t["host"] for t in msgspec.json.decode(cloud.operation(second, "build").request)["targets"]]
        failures.update({hosts[1]: 100})
        await cloud.rest()
        assert cloud.server(second).host == hosts[2]
        assert asked[-1] == hosts[2]

    story()


@pytest.mark.spec("BLD-56")
def test_allocations_that_cannot_be_removed_now_are_removed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    away = [True]
    real = Placing.release

    async def release(self: Placing, consumer: str, provider: str | None = None) -> None:
        if away[0]:
            raise ServiceUnavailable("placement does not answer")
        await real(self, consumer, provider)

    monkeypatch.setattr(Placing, "release", release)

    @in_cloud(options=NO_RETRY)
    async def story(cloud: SmallCloud) -> None:
        cloud.fail("spawn", ELSEWHERE)
        with structlog.testing.capture_logs() as logs:
            uuid = await cloud.ask(cloud.new())
            await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR, within=300.0)
        assert [e["log_level"] for e in logs if e.get("event") == "owed"] == ["warning"]
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == ELSEWHERE.message
        assert cloud.failed_builds("host0") == 0
        assert cloud.claims(uuid) == ["host0"]
        away[0] = False
        await cloud.rest(within=300.0, debts=True)
        assert cloud.claims(uuid) == []
        assert cloud.failed_builds("host0") == 1
        assert cloud.server(uuid).vm_state is VmState.ERROR

    story()


# --- counting --------------------------------------------------------------------------------------------


@pytest.mark.spec("BLD-45", "BLD-47", "BLD-48")
@in_cloud()
async def test_builds_that_fail_because_of_the_host_are_counted_until_one_succeeds(cloud: SmallCloud) -> None:
    for number, error in enumerate((ELSEWHERE, RuntimeError("defect"), Retryable("busy"))):
        cloud.fail("spawn", *[error] * 4)
        await cloud.ask(cloud.new())
        await cloud.rest()
        assert cloud.failed_builds("host0") == number + 1
    cloud.heal()
    cloud.fail("create_disks", InvalidInput("bad image"))
    await cloud.ask(cloud.new())
    await cloud.rest()
    cloud.net.fail["create_port"] = [OverQuota("ports")]
    await cloud.ask(cloud.new())
    await cloud.rest()
    cloud.hypervisors["host0"].faults.latency = 5.0
    unwanted = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.calls("create_disks")[-1:] and cloud.server(unwanted).host)
    await cloud.delete(unwanted)
    await cloud.rest()
    cloud.heal()
    assert cloud.failed_builds("host0") == 3
    await cloud.build()
    assert cloud.failed_builds("host0") == 0


@pytest.mark.spec("BLD-45")
@in_cloud(hosts=2)
async def test_a_host_that_was_given_up_counts_although_the_build_succeeds(cloud: SmallCloud) -> None:
    cloud.fail("spawn", ELSEWHERE)
    uuid = await cloud.build()
    here = cloud.server(uuid).host
    assert here is not None
    assert (cloud.failed_builds(other(here)), cloud.failed_builds(here)) == (1, 0)


@pytest.mark.spec("BLD-46", "BLD-47")
@in_cloud(options=msgspec.structs.replace(OPTIONS, consecutive_build_service_disable_threshold=0))
async def test_with_a_threshold_of_zero_failures_are_not_counted(cloud: SmallCloud) -> None:
    cloud.fail("spawn", ELSEWHERE)
    await cloud.ask(cloud.new())
    await cloud.rest()
    assert cloud.failed_builds("host0") == 0
    target = Target(host="host0", node="host0", provider=cloud.provider("host0"))
    await placing_of(cloud).count_build(target, failed=True)
    await cloud.build()
    assert cloud.failed_builds("host0") == 0
