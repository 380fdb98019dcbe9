"""Filters of server lists: who may use which since when, and what each means. Spec: API-620 to API-627."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import re2  # type: ignore[import-untyped]
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.server_status import states_of
from kilonova.api.compute.server_view import seconds
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import QueryValues
from kilonova.api.schema import FALSE_WORDS, TRUE_WORDS
from kilonova.db.instance_list import Filter
from kilonova.db.instances import instances
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState

ALLOW_ALL = Rule("servers:allow_all_filters", Audience.ADMIN)
ADMIN_ONLY = 1000
"""As a microversion: callers who fail ALLOW_ALL may never use the filter."""

JOINS = frozenset({
    "block_device_mapping", "services", "metadata", "system_metadata", "info_cache", "security_groups", "pci_devices"
})
"""Names that no filter may have. Spec: API-621."""

_LITERAL = re.compile(r"[\w -]+", re.ASCII)

_columns = instances.c


def boolean(name: str, text: str) -> bool:
    """A boolean in a query. Raises InvalidInput."""
    words = text.strip().lower()
    if words in ("t", "y") or text in TRUE_WORDS or words in ("true", "on", "yes"):
        return True
    if words in ("f", "n") or text in FALSE_WORDS or words in ("false", "off", "no"):
        return False
    raise InvalidInput(f"Invalid input for query parameters {name}. Value: {text}. It is not a boolean.")


def time(name: str, text: str) -> float:
    """A time in a query, in seconds since the epoch. Raises InvalidInput. Spec: API-056."""
    try:
        found = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"Invalid input for query parameters {name}. Value: {text}. "
                           f"{text!r} is not a 'date-time'") from error


def expression(text: str) -> Callable[[str], bool]:
    """A search by a regular expression of a user; time is linear in the text whatever the expression.

    Raises:
        InvalidInput: it is none. Spec: API-627.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(text, options)
    except re2.error as error:
        raise InvalidInput(f"Invalid regular expression: {text!r}") from error
    return lambda value: compiled.search(value) is not None


class Kind(msgspec.Struct, frozen=True):
    """One filter: from which microversion everybody may use it, and how it is made from its text."""

    since: int
    make: Callable[[str, str], Filter]


def _exact(field: str, column: str = "", value: Callable[[Instance], Any] | None = None) -> Any:
    def make(name: str, text: str) -> Filter:
        read = value or (lambda i: getattr(i, field))
        condition = _columns[column or field] == text if column or field in _columns else None
        return Filter(lambda i: _text(read(i)) == text, condition)

    return make


def _matching(field: str, value: Callable[[Instance], Any] | None = None) -> Any:
    def make(name: str, text: str) -> Filter:
        search = expression(text)
        read = value or (lambda i: getattr(i, field))

        def matches(instance: Instance) -> bool:
            found = read(instance)
            return found is not None and search(_text(found))

        return Filter(matches, None if value else _containing(field, text))

    return make


def _containing(field: str, text: str) -> sa.ColumnElement[bool] | None:
    """The same as SQL, if a column has the field and the expression means no more than its letters."""
    if field not in _columns or not isinstance(_columns[field].type, sa.String) or not _LITERAL.fullmatch(text):
        return None
    return sa.func.replace(_columns[field], text, "") != _columns[field]  # LIKE heeds case here and not there


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(getattr(value, "value", value))


def _addresses(version: int) -> Any:
    def make(name: str, text: str) -> Filter:
        search = expression(text)
        return Filter(lambda i: any(
            ip.subnet.version == version and search(ip.address) for vif in i.network_info for ip in vif.fixed_ips
        ))

    return make


def _tags(*, every: bool, negated: bool) -> Any:
    def make(name: str, text: str) -> Filter:
        wanted = frozenset(text.split(","))

        def matches(instance: Instance) -> bool:
            held = wanted.intersection(instance.tags)
            return (len(held) == len(wanted) if every else bool(held)) is not negated

        return Filter(matches)

    return make


def _flag(value: Callable[[Instance], bool], condition: Callable[[bool], Any] | None = None) -> Any:
    def make(name: str, text: str) -> Filter:
        wanted = boolean(name, text)
        return Filter(lambda i: value(i) is wanted, condition(wanted) if condition else None)

    return make


def _moment(value: Callable[[Instance], float | None]) -> Callable[[Instance], str | None]:
    def text(instance: Instance) -> str | None:
        found = value(instance)
        return None if found is None else seconds(found)

    return text


def _bound(*, least: bool) -> Any:
    """Spec: API-053."""

    def make(name: str, text: str) -> Filter:
        moment = time(name, text)
        changed = sa.func.coalesce(_columns.updated_at, _columns.created_at)

        def matches(instance: Instance) -> bool:
            at = instance.created_at if instance.updated_at is None else instance.updated_at
            return at >= moment if least else at <= moment

        return Filter(matches, changed >= moment if least else changed <= moment)

    return make


def _state(field: str) -> Any:
    def make(name: str, text: str) -> Filter:
        wanted = text.lower()
        return Filter(lambda i: _text(getattr(i, field)) == wanted, _columns[field] == wanted)

    return make


FILTERS: dict[str, Kind] = {
    "reservation_id": Kind(1, _matching("reservation_id")),
    "name": Kind(1, _matching("display_name")),
    "image": Kind(1, _exact("image_ref")),
    "flavor": Kind(1, _exact("flavor", "flavor_id", lambda i: i.flavor.flavor_id)),
    "ip": Kind(1, _addresses(4)),
    "ip6": Kind(5, _addresses(6)),
    "changes-since": Kind(1, _bound(least=True)),
    "changes-before": Kind(66, _bound(least=False)),
    "tags": Kind(26, _tags(every=True, negated=False)),
    "tags-any": Kind(26, _tags(every=False, negated=False)),
    "not-tags": Kind(26, _tags(every=True, negated=True)),
    "not-tags-any": Kind(26, _tags(every=False, negated=True)),
    "locked": Kind(73, _flag(lambda i: i.locked_by is not None, lambda wanted: _columns.locked.is_(wanted))),
    "user_id": Kind(83, _exact("user_id")),
    "vm_state": Kind(83, _state("vm_state")),
    "task_state": Kind(83, _state("task_state")),
    "availability_zone": Kind(83, _matching("availability_zone")),
    "config_drive": Kind(83, _matching("config_drive")),
    "key_name": Kind(83, _matching("key_name")),
    "created_at": Kind(83, _matching("", _moment(lambda i: i.created_at))),
    "launched_at": Kind(83, _matching("", _moment(lambda i: i.launched_at))),
    "terminated_at": Kind(83, _matching("", _moment(lambda i: i.terminated_at))),
    "power_state": Kind(83, _matching("", lambda i: int(i.power_state))),
    "progress": Kind(83, _matching("progress")),
    "hostname": Kind(90, _matching("hostname")),
    "uuid": Kind(ADMIN_ONLY, _exact("uuid")),
    "host": Kind(ADMIN_ONLY, _exact("host")),
    "image_ref": Kind(ADMIN_ONLY, _exact("image_ref")),
    "launch_index": Kind(ADMIN_ONLY, _matching("launch_index")),
    "node": Kind(ADMIN_ONLY, _matching("node")),
    "kernel_id": Kind(ADMIN_ONLY, _matching("kernel_id")),
    "ramdisk_id": Kind(ADMIN_ONLY, _matching("ramdisk_id")),
    "root_device_name": Kind(ADMIN_ONLY, _matching("root_device_name")),
    "access_ip_v4": Kind(ADMIN_ONLY, _matching("access_ip_v4")),
    "access_ip_v6": Kind(ADMIN_ONLY, _matching("access_ip_v6")),
    "auto_disk_config": Kind(ADMIN_ONLY, _matching("", lambda i: int(i.auto_disk_config))),
    "description": Kind(ADMIN_ONLY, _matching("display_description")),
    "display_name": Kind(ADMIN_ONLY, _matching("display_name")),
    "display_description": Kind(ADMIN_ONLY, _matching("display_description")),
    "locked_by": Kind(ADMIN_ONLY, _matching("locked_by")),
}
"""Filters that test one field. status, deleted, soft_deleted and the project are put together below."""

SPECIAL = frozenset({"status", "deleted", "soft_deleted", "all_tenants", "project_id", "tenant_id"})
EXISTS_SINCE = {
    "changes-before": 66, "tags": 26, "tags-any": 26, "not-tags": 26, "not-tags-any": 26, "locked": 73
}
"""Parameters that a list does not know before a microversion."""


class Selection(msgspec.Struct, frozen=True):
    """What a list holds.

    Args:
        project_id: None for all projects.
        narrowed: some filter besides all_tenants is in use.
    """

    filters: list[Filter]
    project_id: str | None
    narrowed: bool = False


def read_filters(call: Call, all_projects_rule: Rule) -> Selection:
    """Turn the query of a list into filters.

    Raises:
        InvalidInput, Forbidden, PolicyNotAuthorized.
    """
    query, everything = call.query, call.allows(ALLOW_ALL)
    project_id = _project(call, all_projects_rule, everything)
    filters = [] if project_id is None else [Filter(
        lambda i: i.project_id == project_id, _columns.project_id == project_id)]
    narrowed = False
    for name, kind in FILTERS.items():
        if name in query and (everything or call.version >= kind.since):
            filters.append(kind.make(name, str(query.last(name))))
            narrowed = True
    _check_bounds(query)
    status = _statuses(call, everything)
    if status is not None:
        filters.append(status)
    named = status is not None or ("vm_state" in query and (everything or call.version >= 83))
    filters += _presence(call, everything, named)
    narrowed = narrowed or status is not None or any(name in query for name in ("deleted", "soft_deleted"))
    return Selection(filters, project_id, narrowed)


def _project(call: Call, rule: Rule, everything: bool) -> str | None:
    """Spec: API-623, API-624."""
    asked = call.query.last("all_tenants")
    if asked is None or not (asked == "" or boolean("all_tenants", asked)):
        return call.context.project_id
    call.require(rule)
    named = call.query.last("project_id", call.query.last("tenant_id"))
    return str(named) if named is not None and everything else None


def _check_bounds(query: QueryValues) -> None:
    if "changes-since" in query and "changes-before" in query:
        since = time("changes-since", query.last("changes-since"))
        if since > time("changes-before", query.last("changes-before")):
            raise InvalidInput("The value of changes-since must be less than or equal to changes-before.")


_NOTHING = Filter(lambda i: False, sa.false())


def _statuses(call: Call, everything: bool) -> Filter | None:
    """Spec: API-490, API-626."""
    asked = [str(status) for status in call.query.all("status")]
    if not asked:
        return None
    vms, tasks = states_of(asked)
    if not vms:
        if call.version >= 38:
            raise InvalidInput("Invalid status value")
        return _NOTHING
    if vms == {VmState.DELETED} and not everything:
        raise Forbidden("Only administrators may list deleted instances")
    condition: sa.ColumnElement[bool] = _columns.vm_state.in_([vm.value for vm in vms])
    if tasks is not None:
        condition = sa.and_(condition, _columns.task_state.in_([task.value for task in tasks]))
    return Filter(lambda i: i.vm_state in vms and (tasks is None or i.task_state in tasks), condition)


def _presence(call: Call, everything: bool, states_named: bool) -> list[Filter]:
    """Deleted and soft-deleted servers. Spec: API-625."""
    query = call.query
    gone = _columns.deleted_at.is_not(None)
    named = [str(status).upper() for status in query.all("status")]
    wanted: bool | None = False
    if "deleted" in query and everything:
        wanted = boolean("deleted", query.last("deleted"))
    elif named == ["DELETED"]:
        wanted = True
    elif "changes-since" in query or ("changes-before" in query and call.version >= 66):
        wanted = None
    if wanted is None:
        return []
    if wanted:
        return [Filter(lambda i: i.deleted_at is not None, gone)]
    filters = [Filter(lambda i: i.deleted_at is None, sa.not_(gone))]
    soft = everything and "soft_deleted" in query and boolean("soft_deleted", query.last("soft_deleted"))
    if not soft and not states_named:
        hidden = VmState.SOFT_DELETED
        filters.append(Filter(lambda i: i.vm_state is not hidden, _columns.vm_state != hidden.value))
    return filters
