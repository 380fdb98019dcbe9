"""What commands print and read, without an installation."""

from __future__ import annotations

import pwd
import shutil
import tempfile
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from kilonova.audit.differences import ADVICE, HEALS, Kind
from kilonova.cli import checks, main
from kilonova.cli.checks import Outcome
from kilonova.cli.configuration import options
from kilonova.cli.operations import Told, describe
from kilonova.cli.output import clock_time, columns, counts, duration
from kilonova.cli.session import _message
from kilonova.config import Config, load
from kilonova.control.documents import Fault, OperationView, StepView
from kilonova.domain.errors import InvalidInput
from kilonova.domain.operation import OperationState
from kilonova.embedded.shares import SharedDirectory
from kilonova.hypervisor.libvirt import account

if not main.app.registered_commands:
    main._register()
RUN = CliRunner().invoke


def operation(**changes: object) -> OperationView:
    steps = (
        StepView(step="claim host", state="done", attempt=1, started_at=1.0, finished_at=2.0),
        StepView(step="create disks", state="failed", attempt=2, host="host-1", started_at=2.0, finished_at=3.5,
                 fault=Fault(kind="KilonovaError", message="no space")),
        StepView(step="claim host", state="started", undo=True, attempt=1, started_at=3.5),
    )
    made = OperationView(
        id="op", kind="build", version=1, about="server", subject="one", state=OperationState.UNDOING, journal="cell1",
        step="claim host", waits_for="", cancel=None, parent=None, round=0, user_id="u", project_id="p",
        request_id="req-1", created_at=1.0, updated_at=4.0, finished_at=None, worked_on_by="me@host", fault=None,
        steps=steps,
    )
    return msgspec.structs.replace(made, **changes)


def test_columns_are_as_wide_as_their_longest_entry() -> None:
    assert columns(("A", "LONG", "Z"), [("aaa", "b", "c"), ("d", "e", "")]) == (
        "A    LONG  Z\naaa  b     c\nd    e"
    )


@pytest.mark.parametrize(("seconds", "text"), [
    (0.004, "0.00 s"), (9.99, "9.99 s"), (61, "61 s"), (600, "10 min"), (3 * 3600 + 120, "3 h 2 min"),
    (50 * 3600, "2 d 2 h"),
])
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_of_other_days_have_a_date() -> None:
    now = time.time()
    assert len(clock_time(now)) == 8
    assert clock_time(now - 3 * 86400).startswith(time.strftime("%Y-", time.localtime(now - 3 * 86400)))
    assert clock_time(None) == "-"


def test_counts_of_nothing_are_none() -> None:
    assert counts({}) == "none"
    assert counts({"error": 1, "active": 3}) == "3 active, 1 error"


def test_an_operation_is_described_with_steps_errors_and_directions() -> None:
    text = describe(operation(waits_for="host host-1 to answer", parent="other", cancel="changed my mind"))
    for part in ("create disks", "no space", "undo claim host", "host-1", "waits    for host host-1 to answer",
                 "a debt of operation other", "changed my mind", "req-1", "me@host"):
        assert part in text


def test_a_follower_hears_each_state_of_a_step_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    told.tell(operation())
    assert len(capsys.readouterr().out.splitlines()) == 3
    told.tell(operation())
    assert capsys.readouterr().out == ""
    told.tell(operation(state=OperationState.FAILED, finished_at=5.0,
                        fault=Fault(kind="x", message="no space", step="create disks")))
    (line,) = capsys.readouterr().out.splitlines()
    assert "failed after 4.00 s: no space in step 'create disks'" in line


@pytest.mark.parametrize(("body", "message"), [
    (b'{"error": {"code": 404, "title": "Not Found", "message": "No such thing."}}', "No such thing."),
    (b'{"itemNotFound": {"message": "Instance x could not be found.", "code": 404}}', "Instance x could not be found."),
    (b'{"NeutronError": {"type": "X", "message": "In use.", "detail": ""}}', "In use."),
    (b'{"message": "Hidden.", "code": 404, "title": "Not Found"}', "Hidden."),
    (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"), (b"", ""), (b"[]", ""), (b"{}", ""),
])
def test_error_texts_of_all_services_are_found(body: bytes, message: str) -> None:
    assert _message(body) == message


def test_every_difference_says_what_to_do() -> None:
    assert set(HEALS) | set(ADVICE) == set(Kind)
    assert set(HEALS) & set(ADVICE) == set()


def test_every_option_is_explained() -> None:
    assert [option.name for option in options(Config()) if not option.meaning] == []
    names = [option.name for option in options(Config())]
    assert len(set(names)) == len(names)
    for name in names:
        tree: object = Config()
        for part in name.split("."):
            tree = getattr(tree, part)


def test_what_config_show_prints_is_a_configuration(tmp_path: Path) -> None:
    shown = RUN(main.app, ["config", "show", "--data-dir", str(tmp_path)])
    assert shown.exit_code == 0
    file = tmp_path / "kilonova.toml"
    file.write_text(shown.output)
    assert load(file, {}) == load(None, {}, {"data_dir": str(tmp_path)})


def test_passwords_in_the_configuration_are_not_shown(tmp_path: Path) -> None:
    url = "postgresql+psycopg://kilonova:hu%23sh@db.example.org/kilonova"
    (tmp_path / "kilonova.toml").write_text(f'[database]\napi = "{url}"\n')
    for command in ("show", "explain", "check"):
        for options_ in ([], ["--json"] if command != "check" else []):
            shown = RUN(main.app, ["config", command, "--data-dir", str(tmp_path), *options_])
            assert shown.exit_code == 0 and "hu%23sh" not in shown.output
            assert "kilonova:(hidden)@db.example.org" in shown.output


def test_a_wrong_configuration_is_told(tmp_path: Path) -> None:
    (tmp_path / "kilonova.toml").write_text("[api]\nport = 'many'\n")
    shown = RUN(main.app, ["config", "check", "--data-dir", str(tmp_path)])
    assert isinstance(shown.exception, InvalidInput) and "port" in str(shown.exception)


def test_shares_are_a_table_that_config_show_prints_again(tmp_path: Path) -> None:
    id_, file = "6f0b4c1e-0d9a-4b0e-9d6e-3a1c5d0f7a11", tmp_path / "kilonova.toml"
    file.write_text(f'[shares.directories.{id_}]\npath = "/srv/a"\nprojects = ["p"]\n')
    assert load(file, {}).shares.directories[id_] == SharedDirectory(path="/srv/a", projects=("p",))
    shown = RUN(main.app, ["config", "show", "--data-dir", str(tmp_path)])
    before = load(file, {}, {"data_dir": str(tmp_path)})
    file.write_text(shown.output)
    assert load(file, {}) == before


@pytest.mark.parametrize(("id_", "path"), [
    ("6f0b4c1e-0d9a-4b0e-9d6e-3a1c5d0f7a11", "srv/a"), ("6F0B4C1E-0D9A-4B0E-9D6E-3A1C5D0F7A11", "/srv/a"),
    ("data", "/srv/a"),
])
def test_shares_need_a_uuid_and_an_absolute_path(tmp_path: Path, id_: str, path: str) -> None:
    file = tmp_path / "kilonova.toml"
    file.write_text(f'[shares.directories.{id_}]\npath = "{path}"\n')
    with pytest.raises(InvalidInput, match="of a share is not"):
        load(file, {})


@pytest.mark.spec("INI-002")
@pytest.mark.parametrize(("text", "why"), [
    ('device_spec = [{vendor_id = "10DE"}]', "vendor_id '10DE'"), ("device_spec = [{}]", "needs a vendor_id"),
    ('device_spec = [{address = "81:00.0"}]', "address '81:00.0'"), ('device_spec = [{devname = "eth1"}]', "devname"),
    ('device_spec = [{product_id = "1db6", resource_class = "gpu"}]', "resource_class 'gpu'"),
    ('device_spec = [{product_id = "1db6", traits = ["fast"]}]', "trait 'fast'"),
    ('alias = [{name = "a b", vendor_id = "10de"}]', "name 'a b'"), ('alias = [{name = "gpu"}]', "alias gpu needs"),
    ('alias = [{vendor_id = "10de"}]', "name"),
    ('alias = [{name = "gpu", vendor_id = "10de", device_type = "type-QF"}]', "type-QF"),
    ('alias = [{name = "a", vendor_id = "10de"}, {name = "a", vendor_id = "1af4", numa_policy = "required"}]',
     "different values of numa_policy"),
])
def test_a_wrong_device_keeps_a_process_from_starting(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "kilonova.toml").write_text(f"[pci]\n{text}\n")
    shown = RUN(main.app, ["up", "--data-dir", str(tmp_path)])
    assert isinstance(shown.exception, InvalidInput)
    assert why in str(shown.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["kilonova.toml"]


def test_devices_are_tables_that_config_show_prints_again(tmp_path: Path) -> None:
    file = tmp_path / "kilonova.toml"
    file.write_text(
        '[[pci.device_spec]]\naddress = "0000:81:*.*"\ntraits = ["CUSTOM_FAST"]\n'
        '[[pci.alias]]\nname = "nic"\nvendor_id = "8086"\ndevice_type = "type-VF"\n'
        '[[pci.alias]]\nname = "gpu"\nproduct_id = "1db6"\nnuma_policy = "required"\n'
    )
    before = load(file, {}, {"data_dir": str(tmp_path)})
    assert [one.name for one in before.pci.alias] == ["nic", "gpu"]
    file.write_text(RUN(main.app, ["config", "show", "--data-dir", str(tmp_path)]).output)
    assert load(file, {}) == before


@pytest.mark.parametrize("command", [
    ["status"], ["ops"], ["ops", "show", "x"], ["audit"], ["audit", "--heal"], ["ops", "cancel", "x"],
])
def test_commands_say_that_nothing_runs(tmp_path: Path, command: list[str]) -> None:
    ended = RUN(main.app, [*command, "--data-dir", str(tmp_path)])
    assert ended.exit_code == 1
    assert "does not run" in (ended.output + str(ended.exception))


def test_down_without_an_installation_changes_nothing(tmp_path: Path) -> None:
    assert RUN(main.app, ["down", "--data-dir", str(tmp_path)]).exit_code == 0
    precious = tmp_path / "precious"
    precious.write_text("mine")
    ended = RUN(main.app, ["down", "--purge", "--yes", "--data-dir", str(tmp_path)])
    assert "holds no installation" in str(ended.exception)
    assert precious.read_text() == "mine"


def test_purging_needs_a_yes(tmp_path: Path) -> None:
    (tmp_path / "installation.json").write_text("{}")
    ended = RUN(main.app, ["down", "--purge", "--data-dir", str(tmp_path)])
    assert "--yes" in str(ended.exception)
    assert (tmp_path / "installation.json").exists()


class TestDoctor:
    def test_a_healthy_machine_for_simulated_hosts(self, tmp_path: Path) -> None:
        ended = RUN(main.app, ["doctor", "--driver", "fake", "--port-base", "0", "--json", "--data-dir", str(tmp_path)])
        found = msgspec.json.decode(ended.output)
        assert [one["name"] for one in found["checks"] if one["outcome"] == "failed"] == []
        assert found["healthy"] and ended.exit_code == 0

    def test_a_broken_database_fails(self, tmp_path: Path) -> None:
        (tmp_path / "kilonova.db").write_bytes(b"not a database, whatever its name says" * 50)
        found = checks.run_check("database", lambda: checks._integrity(tmp_path))
        assert found.outcome is Outcome.FAILED and "backup" in found.hint

    def test_readable_secrets_fail_and_the_hint_closes_them(self, tmp_path: Path) -> None:
        (tmp_path / "openrc").write_text("x")
        (tmp_path / "openrc").chmod(0o644)
        found = checks._permissions(tmp_path)
        assert found.outcome is Outcome.FAILED and found.hint == f"chmod 600 {tmp_path}/openrc"
        (tmp_path / "openrc").chmod(0o600)
        assert checks._permissions(tmp_path).outcome is Outcome.OK

    def test_a_clock_behind_the_database_fails(self, tmp_path: Path) -> None:
        import os

        (tmp_path / "kilonova.db").touch()
        os.utime(tmp_path / "kilonova.db", (time.time() + 7200, time.time() + 7200))
        assert checks._clock(tmp_path).outcome is Outcome.FAILED

    def test_a_taken_port_fails(self, tmp_path: Path) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = load(None, {}, {"data_dir": str(tmp_path), "api.port": listener.getsockname()[1]})
            assert checks._port(config).outcome is Outcome.FAILED

    def test_a_missing_tool_names_its_package(self) -> None:
        found = checks._tool("no-such-tool", "its-package")
        assert (found.outcome, found.hint) == (Outcome.FAILED, "apt-get install its-package")

    @pytest.mark.parametrize("driver", ["libvirt", "fake"])
    def test_pools_need_their_tools_once(self, driver: str) -> None:
        def names(**pools: object) -> list[str]:
            return [name for name, _ in checks.all_checks(load(None, {}, {"agent.driver": driver, **pools}))]

        with_pool = names(**{"volume.pool": [{"name": "a"}]})
        without = names(**{"volume.default_pool": False})
        assert "qemu-storage-daemon" in with_pool and "qemu-storage-daemon" not in without
        assert len(with_pool) == len(set(with_pool))

    @pytest.mark.parametrize("listen", ["", "127.0.0.1"])
    def test_guests_must_be_able_to_pass_to_the_sockets_of_pools(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str
    ) -> None:
        monkeypatch.setattr(account, "guest_account", lambda: pwd.getpwnam("nobody"))
        home = Path(tempfile.mkdtemp(prefix="kn-", dir="/var/tmp"))  # pytest's own is closed to others
        try:
            pools = [{"name": "a", "directory": str(home / "closed" / "pool"), "listen": listen}]
            config = load(None, {}, {"agent.driver": "libvirt", "volume.pool": pools})
            home.chmod(0o711)
            found = [checks._pools(config)]
            for mode in (0o700, 0o750, 0o711):
                (home / "closed").mkdir(exist_ok=True)
                (home / "closed").chmod(mode)
                found.append(checks._pools(config))
        finally:
            shutil.rmtree(home)
        passed, closed = Outcome.OK, Outcome.OK if listen else Outcome.FAILED
        assert [one.outcome for one in found] == [passed, closed, closed, passed]
        assert listen or (str(home / "closed") in found[1].what and "chmod o+x" in found[1].hint)

    def test_a_check_that_breaks_has_failed(self) -> None:
        def broken() -> checks.Check:
            raise PermissionError(13, "Permission denied")

        assert checks.run_check("x", broken).outcome is Outcome.FAILED
