"""Who may do what: the defaults, the operator's file, and that both ways of judging agree."""

import subprocess
import sys
from pathlib import Path

import pytest
from compute_cloud import OTHER_PROJECT, PERSONAS, PROJECT, SteppingClock, compute_cloud

from kilonova.api.compute.application import all_routes, all_rules
from kilonova.api.policy import Audience, Defaults, Policy, PolicyFileInvalid, Rule, Target, with_implied
from kilonova.api.policy_file import PolicyFile
from kilonova.domain.context import RequestContext

RULES = all_rules(all_routes())
SHOW = Rule("servers:show", Audience.READER)


def context(name: str) -> RequestContext:
    token = PERSONAS[name]
    roles = with_implied(token.roles)
    return RequestContext(request_id="req", user_id=token.user_id, project_id=token.project_id, roles=roles,
                          system=token.system, is_admin="admin" in roles)


@pytest.mark.spec("API-040")
def test_roles_imply_each_other() -> None:
    assert set(with_implied(("admin",))) == {"admin", "manager", "member", "reader"}
    assert set(with_implied(("x", "member"))) == {"x", "member", "reader"}
    assert with_implied(("service",)) == ("service",)


MATRIX: dict[Audience, set[str]] = {
    Audience.ANY: {"admin", "manager", "member", "colleague", "reader", "service", "stranger", "nobody"},
    Audience.READER: {"admin", "manager", "member", "colleague", "reader"},
    Audience.MEMBER: {"admin", "manager", "member", "colleague"},
    Audience.MANAGER: {"admin", "manager"},
    Audience.ADMIN: {"admin"},
    Audience.SERVICE: {"admin", "service"},
    Audience.USER: {"admin", "member"},
    Audience.NOBODY: set(),
}


@pytest.mark.spec("API-040")
@pytest.mark.parametrize("audience", Audience)
@pytest.mark.parametrize("name", PERSONAS)
def test_default_audiences(tmp_path: Path, audience: Audience, name: str) -> None:
    rule = Rule("a:b", audience)
    target = Target(PROJECT, "user-of-member")
    expected = name in MATRIX[audience]
    assert Defaults().allows(rule, context(name), target) is expected
    file = tmp_path / "policy.yaml"
    file.write_text('"other": "!"\n')
    assert PolicyFile(file, {rule.name: rule}).allows(rule, context(name), target) is expected


@pytest.mark.spec("API-040")
def test_foreign_targets() -> None:
    foreign = Target(OTHER_PROJECT, "x")
    for audience in (Audience.READER, Audience.MEMBER, Audience.MANAGER):
        rule = Rule("a:b", audience)
        assert Defaults().allows(rule, context("admin"), foreign)
        assert not Defaults().allows(rule, context("manager"), foreign)


def test_names() -> None:
    assert SHOW.name == "os_compute_api:servers:show"
    assert Rule("network:attach_external_network", Audience.ADMIN).name == "network:attach_external_network"
    assert len({rule.name for rule in RULES}) == len(RULES), "one rule with two audiences"
    assert "os_compute_api:servers:detail:get_all_tenants" in {rule.name for rule in RULES}


@pytest.mark.spec("API-041")
async def test_policy_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"os_compute_api:servers:create": "role:nobody"\n"context_is_admin": "role:service"\n')
    async with compute_cloud(policy_file=file) as cloud:
        server = await cloud.boot()
        answer = await cloud.post("/servers", {"server": {"name": "x", "flavorRef": "1"}})
        assert answer.status_code == 403
        assert answer.json()["forbidden"]["message"] == (
            "Policy doesn't allow os_compute_api:servers:create to be performed.")
        action, body = f"/servers/{server.uuid}/action", {"os-resetState": {"state": "error"}}
        assert (await cloud.post(action, body, as_="admin")).status_code == 403
        assert (await cloud.post(action, body, as_="service")).status_code == 202
        elsewhere = await cloud.boot(project_id=OTHER_PROJECT)
        assert (await cloud.get(f"/servers/{elsewhere.uuid}", as_="service")).status_code == 200
        assert (await cloud.get(f"/servers/{elsewhere.uuid}", as_="admin")).status_code == 404


async def test_policy_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    clock = SteppingClock()
    policy = Policy(RULES, file, clock)
    target = Target(PROJECT, "u")
    assert policy.allows(SHOW, context("reader"), target)
    file.write_text('"os_compute_api:servers:show": "!"\n')
    assert policy.allows(SHOW, context("reader"), target), "looked at too often"
    clock.time += 2
    assert not policy.allows(SHOW, context("reader"), target)
    file.write_text("broken: [")
    clock.time += 2
    assert not policy.allows(SHOW, context("reader"), target), "a broken file must not change the rules"
    file.unlink()
    clock.time += 2
    assert policy.allows(SHOW, context("reader"), target)


def test_broken_file_at_start(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("broken: [")
    with pytest.raises(PolicyFileInvalid):
        Policy(RULES, file, SteppingClock())


def test_start_does_not_load_oslo_policy() -> None:
    code = "import sys, kilonova.api.compute.application; sys.exit('oslo_policy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
