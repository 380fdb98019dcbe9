"""One life of the process: start on the files that are there, do what the case says, rest, look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from invariants import Cloud, violations

from crash_matrix.cases import Case
from crash_matrix.clock import FastClock
from crash_matrix.cloud import CONTEXT, OneCloud, Stuck
from crash_matrix.plan import Plan
from crash_matrix.scenarios import LEADING, SCENARIOS, SERVER, Scenario
from crash_matrix.volumes import make_volumes
from kilonova.db import instances
from kilonova.db.journal import api_journal, cell_journal
from kilonova.domain.operation import EntryState, OperationRecord, OperationState
from kilonova.domain.states import VmState
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.operations.catalogue import API_OPERATIONS, CELL_OPERATIONS


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended, as far as two runs can be compared: which host it was is drawn at random."""

    server: dict[str, str | bool | int | None] | None
    guest: dict[str, str | bool | int | list[str]] | None
    mappings: list[tuple[str | None, str | None, str]]
    volumes: dict[str, str]
    ports: int
    users_port_bound: bool
    claims: dict[str, int]
    fault: bool
    operations: list[tuple[str, str]]


class Outcome(msgspec.Struct, kw_only=True):
    """What a life showed. end: what it came to, before anybody cleaned up."""

    problems: list[str]
    end: End | None = None


async def run_life(case: Case, number: int, directory: Path, clock: FastClock) -> Outcome:
    """The life of that number, from 0."""
    scenario = SCENARIOS[case.operation]
    last = number == len(case.lives) - 1
    plan = Plan(case.lives[number])
    cloud = OneCloud(directory, plan, clock, SERVER, case.limits)
    try:
        if last and case.before_last:
            await cloud.delete()
        await cloud.start()
        if number == 0:
            await cloud.until_hosts_known()
            await scenario.ask(cloud)
        await cloud.settle()
        await cloud.observe()
        return await _judge(case, scenario, cloud, plan)
    except Stuck as stuck:
        return Outcome(problems=[*cloud.problems, f"stuck: {stuck}"])
    finally:
        plan.disarm()
        await cloud.close()


async def _judge(case: Case, scenario: Scenario, cloud: OneCloud, plan: Plan) -> Outcome:
    problems = cloud.problems
    problems += [f"never came to {point}" for point in plan.left]
    if case.then and case.then[0] in OPERATORS:
        problems += await _operate(case, cloud, plan)
        await cloud.settle()
        await cloud.observe()
    there = cloud.look()
    end = _end(there, await _has_fault(cloud))
    tested = next((o for o in there.operations if o.kind == case.operation), None)
    if tested is None:
        problems.append(f"there is no {case.operation} in the journal")
    elif (scenario.server or tested.state is OperationState.SUCCEEDED) and not {"skip", "force"} & {*case.then}:
        problems += [*violations(there), *_told(case, scenario, tested, end)]
    if "delete" in case.then:
        plan.disarm()
        await scenario.clean_up(cloud)
        await cloud.settle()
        problems += _cleaned(case, cloud.look())
    elif _deletes(case):
        problems += _cleaned(case, there)
    if not {"skip", "force"} & {*case.then}:
        problems += await cloud.told()
    return Outcome(problems=problems, end=end)


def _deletes(case: Case) -> bool:
    """Whether a user deletes the server in the midst of it."""
    return case.before_last == "delete" or any(act.does == "delete" for life in case.lives for act in life)


def _told(case: Case, scenario: Scenario, tested: OperationRecord, end: End) -> Iterator[str]:
    """A server does not vanish, and a failure says why."""
    if tested.state is not OperationState.FAILED or not scenario.server or _deletes(case):
        return
    if end.server is None:
        yield "the server is gone although nobody deleted it"
    elif tested.kind == "place":
        if end.server["vm_state"] != VmState.ERROR.value:
            yield f"the placing failed, but the server is {end.server['vm_state']}"
    elif scenario.blamed and not end.fault:
        yield f"{tested.kind} failed and the server has no fault"


def _cleaned(case: Case, there: Cloud) -> list[str]:
    """Nothing is left of the server. A step that an operator had skipped may have left something on the host."""
    found = violations(there)
    if case.then[:1] == ("skip",):
        found = [line for line in found if not line.startswith("guest ")]
    if SERVER in there.alive or there.waiting:
        found.append("the server is still there after it was deleted")
    return found


async def _has_fault(cloud: OneCloud) -> bool:
    return bool(await cloud.cell.read(lambda conn: instances.latest_faults(conn, [SERVER])))


def _end(there: Cloud, fault: bool) -> End:
    server = there.alive.get(SERVER)
    if server is None:
        server = next((r.instance for r in there.waiting if r.instance.uuid == SERVER), None)
    guests = [g for host, guests in there.guests.items() for g in guests.values()]
    guest = guests[0] if guests else None
    return End(
        server=None if server is None else {
            "vm_state": server.vm_state.value, "task_state": server.task_state, "power": server.power_state.name,
            "has_host": server.host is not None, "launched": server.launched_at is not None,
            "flavor": server.flavor.name,
            "interfaces": len(server.network_info), "wired": sum(vif.active for vif in server.network_info),
        },
        guest=None if guest is None else {
            "disks": guest.disks, "defined": guest.defined, "power": guest.power_state.name,
            "interfaces": len(guest.devnames), "guests": len(guests), "vcpus": guest.vcpus,
            "root_gib": guest.sizes.root_gib, "kept": len(guest.kept),
            "volumes": sorted(one.device_name for one in guest.volumes.values()),
        },
        mappings=[(one.volume_id, one.device_name, one.state.value) for one in there.mappings.get(SERVER, ())],
        volumes=there.volumes.statuses,
        ports=sum(port.owned for port in there.ports),
        users_port_bound=any(not port.owned for port in there.ports),
        claims=there.claims.get(SERVER, {}),
        fault=fault,
        operations=sorted((o.kind, o.state.value) for o in there.operations if o.kind != "debt"),
    )


# --- operators --------------------------------------------------------------------------------------

OPERATORS = ("resume", "skip", "force")


async def _operate(case: Case, cloud: OneCloud, plan: Plan) -> list[str]:
    """The operation is stranded and says where; the operator does something about it."""
    way_out = case.then[0]
    stranded = [o for o in cloud.look().operations if o.state is OperationState.STRANDED]
    if len(stranded) != 1:
        return [f"{len(stranded)} operations are stranded"]
    record = stranded[0]
    problems = []
    entry = record.entries[-1] if record.entries else None
    if entry is None or entry.state is not EntryState.STARTED or entry.failure is None:
        problems.append(f"the stranded operation does not say why: {entry}")
    if way_out != "force":
        plan.disarm()  # what was broken is repaired
    api = await cloud.api.read(lambda conn: api_journal.get(conn, record.id)) is not None
    database, journal = (cloud.api, api_journal) if api else (cloud.cell, cell_journal)
    definitions = API_OPERATIONS if api else CELL_OPERATIONS
    calls = {
        "resume": lambda tx: submit.resume(tx, journal, record.id),
        "skip": lambda tx: submit.skip(tx, journal, record.id),
        "force": lambda tx: submit.force(tx, journal, definitions, record.id),
    }
    await database.write(lambda conn: calls[way_out](Tx(conn, cloud.clock.now())))
    (cloud.scheduler if api else cloud.conductor).wake()
    return problems


async def prepare(directory: Path, clock: FastClock, requests: tuple[str, ...]) -> None:
    """Make a cloud in which these requests have been made, one after the other, and have succeeded."""
    cloud = OneCloud(directory, Plan(()), clock, SERVER, {})
    try:
        if not requests:
            await cloud.create_tables()
        await cloud.start()
        await cloud.until_hosts_known()
        if not requests:
            await make_volumes(cloud.volumes, CONTEXT)
        for operation in requests[-1:]:
            await (LEADING.get(operation) or SCENARIOS[operation].ask)(cloud)
        await cloud.settle()
        untold = await cloud.told()
    finally:
        await cloud.close()
    there = cloud.look()
    wrong = [*violations(there), *untold]
    if wrong or any(o.state is not OperationState.SUCCEEDED for o in there.operations):
        raise AssertionError(f"{requests} did not work: {wrong}, {there.operations}")
