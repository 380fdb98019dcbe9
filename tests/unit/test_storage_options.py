"""What an operator may say about storage pools."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.config import load
from kilonova.domain.errors import InvalidInput


def configured(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "kilonova.toml"
    file.write_text(text)
    return file


def test_pools_are_tables(tmp_path: Path) -> None:
    text = '[[volume.pool]]\nname = "a"\n[[volume.pool]]\nname = "b"\ndirectory = "/srv/b"\nformat = "raw"\n'
    pools = load(configured(tmp_path, text), {}).volume.pool
    assert [(each.name, each.format) for each in pools] == [("a", "qcow2"), ("b", "raw")]
    assert [each.within(Path("/data")).directory for each in pools] == ["/data/volumes/a", "/srv/b"]


@pytest.mark.parametrize(("text", "said"), [
    ('name = "a/b"', "name 'a/b'"),
    ('name = "a"\ndirectory = "b"', "not absolute"),
    ('name = "a"\nlisten = "192.0.2.1"\ntls = "b"', "not absolute"),
    ('name = "a"\ntls = "/b"', "no address to listen on"),
    ('name = "a"\n[[volume.pool]]\nname = "a"', "same name"),
    ('name = "a"\nformat = "vmdk"', "vmdk"),
])
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        load(configured(tmp_path, f"[[volume.pool]]\n{text}\n"), {})


@pytest.mark.parametrize(("text", "names"), [
    ("", ["local"]),
    ("[volume]\ndefault_pool = false", []),
    ('[[volume.pool]]\nname = "a"', ["a"]),
    ('[agent]\ndriver = "fake"', []),
    ('[volume_service]\nendpoint = "http://192.0.2.1:8776"', []),
    ('[bus]\nservers = ["nats://192.0.2.1"]', []),
])
def test_one_machine_has_a_pool_without_being_told(tmp_path: Path, text: str, names: list[str]) -> None:
    assert [pool.name for pool in load(configured(tmp_path, text), {}).pools] == names
