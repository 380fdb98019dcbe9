"""The repository keeps its own rules: addresses, sizes, documents, locks, and the contract that tests cite."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
DECISIONS = ROOT / "docs/explanation/decisions"

# Written in pieces, so that this file does not contain what it looks for.
PRIVATE_PATHS = re.compile(r"(?<![\w.])/(?:work|farm)/|\.\./" + r"(?:shared|design)\b")
REGISTRY_HOSTS = re.compile(
    "|".join(re.escape(host + domain) for host, domain in [
        ("pypi", ".org"), ("pythonhosted", ".org"), ("registry.npmjs", ".org"), ("deb.debian", ".org"),
        ("archive.ubuntu", ".com"), ("security.debian", ".org"), ("proxy.golang", ".org"),
    ])
)
MAX_LINES = 400
CLOSED_AREAS = ("SNP", "BLD", "BDM", "NET", "DEL", "PWR", "RBD", "RBT", "RSC", "FND", "EVT", "INI", "LCE", "CON",
                "API", "DIA", "EMG", "EMI", "EMN", "EMP", "RBN", "RSZ", "PWD", "FIP", "SUS", "SHV", "IFC",
                "PER", "PSY", "RSU", "XEV", "IMC", "QUI", "VER", "XCR", "XCD", "XCL")
"""Areas of the contract of which every requirement is cited, waived or pending."""
VAGUE_MODULES = {"utils", "util", "helpers", "common", "manager", "base", "misc"}


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is or would be in the repository."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    return found


def test_no_paths_of_a_developers_machine() -> None:
    assert lines_matching(PRIVATE_PATHS) == []


def test_no_addresses_of_package_registries() -> None:
    assert lines_matching(REGISTRY_HOSTS) == []


def test_a_module_tells_one_story() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in (ROOT / "kilonova").rglob("*.py")}
    assert {str(path.relative_to(ROOT)): size for path, size in sizes.items() if size > MAX_LINES} == {}


def test_modules_are_named_after_something() -> None:
    modules = [path for path in (ROOT / "kilonova").rglob("*.py") if path.stem in VAGUE_MODULES]
    assert modules == []


def package_of(init: Path) -> str:
    return ".".join(init.parent.relative_to(ROOT).parts)


def test_no_module_takes_the_place_of_what_its_package_exports() -> None:
    """Importing a module sets it in its package, over a function of that name that came from another module."""
    shadowed = [
        f"{init.relative_to(ROOT)}: {name}"
        for init in (ROOT / "kilonova").rglob("__init__.py")
        for node in ast.walk(ast.parse(init.read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in (alias.asname or alias.name for alias in node.names)
        if (init.parent / f"{name}.py").is_file()
        and node.module not in (package_of(init), f"{package_of(init)}.{name}")
    ]
    assert shadowed == []


def test_test_modules_have_names_of_their_own() -> None:
    """pytest imports them by their name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("path", [*sorted((ROOT / "script").iterdir()), ROOT / ".ci/run"], ids=lambda p: p.name)
def test_commands_can_be_run_and_stop_at_errors(path: Path) -> None:
    if path.suffix == ".py":
        return
    text = path.read_text()
    assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
    assert text.startswith("#!/usr/bin/env ")
    if "bash" in text.splitlines()[0]:
        assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE)
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=30)


def test_files_beside_the_modules_are_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in settings["kilonova"] for path in (ROOT / "kilonova").glob(pattern)}
    beside = {path for path in tracked() if path.is_relative_to(ROOT / "kilonova") and path.suffix != ".py"}
    assert sorted(str(path.relative_to(ROOT)) for path in beside - packaged) == []


class TestDecisions:
    FILES = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")

    def test_are_numbered_without_gaps(self) -> None:
        assert [int(path.name[:4]) for path in self.FILES] == list(range(1, len(self.FILES) + 1))

    @pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
    def test_say_context_decision_and_consequences(self, path: Path) -> None:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]

    def test_are_all_in_the_index(self) -> None:
        index = (DECISIONS / "README.md").read_text()
        assert [path.name for path in self.FILES if f"({path.name})" not in index] == []


class TestDependencies:
    @staticmethod
    def declared() -> dict[str, list[str]]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
        return {group: [_distribution(line) for line in lines] for group, lines in groups.items()}

    def test_each_has_a_line_that_says_why(self) -> None:
        text = (ROOT / "docs/explanation/dependencies.md").read_text()
        explained = re.findall(r"^- `([^`]+)`: \S.*\.$", text, re.MULTILINE)
        assert sorted(explained) == sorted({name for names in self.declared().values() for name in names})

    @pytest.mark.parametrize(
        ("lock", "groups"), [("runtime", {"", "client"}), ("dev", {"", "dev", "client", "cluster", "messaging"})]
    )
    def test_each_is_locked(self, lock: str, groups: set[str]) -> None:
        locked = set(_locked(lock))
        wanted = {name for group, names in self.declared().items() if group in groups for name in names}
        assert {name.replace(".", "-") for name in wanted} - locked == set()

    @pytest.mark.parametrize("lock", ["build", "runtime", "dev", "tempest"])
    def test_locks_give_exact_versions_and_hashes(self, lock: str) -> None:
        text = (ROOT / f"requirements/{lock}.lock").read_text()
        for requirement in re.split(r"\n(?! )", text.strip()):
            assert re.match(r"[a-z0-9][a-z0-9.-]*(\[[a-z,]+\])?==[\w.+!]+", requirement), requirement
            assert "--hash=sha256:" in requirement, requirement

    def test_tests_run_what_clouds_run(self) -> None:
        runtime, dev = _locked("runtime"), _locked("dev")
        assert {name: versions for name, versions in runtime.items() if dev.get(name) != versions} == {}


class TestDocuments:
    PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

    @pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
    def test_links_lead_somewhere(self, page: Path) -> None:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
        local = [target for target in targets if not re.match(r"[a-z]+:", target)]
        assert [target for target in local if not (page.parent / target).exists()] == []

    def test_every_page_is_reached_from_the_index(self) -> None:
        reached: set[Path] = set()
        waiting = [ROOT / "docs/README.md"]
        while waiting:
            page = waiting.pop()
            if page in reached:
                continue
            reached.add(page)
            for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
                linked = (page.parent / target).resolve()
                if linked.exists():
                    waiting.append(linked)
        pages = {page for page in self.PAGES if page.is_relative_to(ROOT / "docs")}
        assert sorted(str(page.relative_to(ROOT)) for page in pages - reached) == []

    def test_the_readme_gives_the_two_commands(self) -> None:
        readme = (ROOT / "README.md").read_text()
        assert "script/demo" in readme
        assert "script/test" in readme


@cache
def citations() -> dict[str, set[str]]:
    """The tests of each requirement, as `script/spec-coverage` finds them."""
    found: dict[str, set[str]] = spec_coverage().static_citations()
    return found


class TestContract:
    def test_every_cited_requirement_exists(self) -> None:
        coverage = spec_coverage()
        cited = citations()
        defined = coverage.read_contract()
        assert {name: files for name, files in cited.items() if name not in defined} == {}

    def test_every_requirement_named_in_the_code_exists(self) -> None:
        defined = spec_coverage().read_contract()
        areas = {name[:3] for name in defined}
        unknown = set()
        for path in (ROOT / "kilonova").rglob("*.py"):
            for name in re.findall(r"\b[A-Z]{3}-\d{2,3}\b", path.read_text()):
                if name[:3] in areas and name not in defined:
                    unknown.add(f"{path.relative_to(ROOT)}: {name}")
        assert unknown == set()

    @pytest.mark.parametrize("document", ["WAIVERS", "PENDING"])
    def test_waived_and_pending_ones_exist_and_have_a_reason(self, document: str) -> None:
        coverage = spec_coverage()
        path = getattr(coverage, document)
        assert coverage.read_reasons(path).keys() - coverage.read_contract().keys() == set()
        lines = [line for line in path.read_text().splitlines() if line.startswith("- ")]
        assert [line for line in lines if not coverage.REASONED.match(line)] == []
        names = [name for line in lines for name in coverage.REASONED.match(line)[1].split(", ")]
        assert sorted({name for name in names if names.count(name) > 1}) == []

    def test_nothing_is_both_waived_and_cited(self) -> None:
        coverage = spec_coverage()
        assert coverage.read_reasons(coverage.WAIVERS).keys() & citations().keys() == set()

    def test_nothing_pending_is_cited_or_waived(self) -> None:
        coverage = spec_coverage()
        waived, pending = coverage.read_reasons(coverage.WAIVERS), coverage.read_reasons(coverage.PENDING)
        cited = citations()
        assert coverage.Coverage(coverage.read_contract(), waived, pending, cited).contradictions() == []

    def test_what_is_pending_is_not_open_and_must_not_be_cited(self) -> None:
        module = spec_coverage()
        defined = dict.fromkeys(["FND-01", "FND-02", "FND-03", "FND-04"], Path("contract.md"))
        coverage = module.Coverage(defined, {"FND-01": "moot"}, {"FND-02": "volumes"}, {"FND-03": {"test"}})
        assert coverage.open(set(defined)) == ["FND-04"]
        assert coverage.contradictions() == []
        coverage.pending = dict.fromkeys(defined, "volumes")
        assert coverage.contradictions() == ["FND-01", "FND-03"]

    @pytest.mark.parametrize("area", CLOSED_AREAS)
    def test_no_requirement_of_what_is_built_is_open(self, area: str) -> None:
        module = spec_coverage()
        coverage = module.Coverage(
            module.read_contract(), module.read_reasons(module.WAIVERS), module.read_reasons(module.PENDING),
            citations(),
        )
        assert coverage.open(coverage.areas()[area]) == []

    def test_a_failed_test_proves_nothing(self, tmp_path: Path) -> None:
        tests = tmp_path / "tests"
        tests.mkdir()
        (tests / "test_a.py").write_text(
            "import pytest\n@pytest.mark.spec('FND-02', 'FND-03', 'FND-04')\ndef test_x(): ...\n"
        )
        results = tmp_path / "results.json"
        results.write_text(
            '{"tests/test_a.py::test_x": {"ids": ["FND-02", "FND-03", "BLD-01"], "outcome": "passed"},'
            ' "tests/test_a.py::test_y": {"ids": ["FND-03"], "outcome": "failed"},'
            ' "tests/test_a.py::test_z": {"ids": ["FND-04"], "outcome": "skipped"}}'
        )
        assert spec_coverage().proven_citations(results, tests) == {"FND-02": {"tests/test_a.py::test_x"}}


@cache
def spec_coverage() -> ModuleType:
    """`script/spec-coverage` as a module."""
    loader = importlib.machinery.SourceFileLoader("spec_coverage", str(ROOT / "script/spec-coverage"))
    spec = importlib.util.spec_from_loader("spec_coverage", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["spec_coverage"] = module
    dont_write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = dont_write
    return module


def _distribution(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower()


def _locked(name: str) -> dict[str, list[str]]:
    """Distribution, with hyphens for dots -> versions (several where they depend on the version of Python)."""
    locked: dict[str, list[str]] = {}
    for line in (ROOT / f"requirements/{name}.lock").read_text().splitlines():
        if match := re.match(r"([a-z0-9.-]+)(?:\[[^]]*\])?==(\S+)", line):
            locked.setdefault(match[1], []).append(match[2])
    return locked
