"""Disk images are hostile input: what they are is read from a bounded part of them, and never believed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.domain.errors import InvalidInput
from kilonova.imaging import facts as facts_module
from kilonova.imaging.facts import READ_LIMIT, BoundedFile
from kilonova.imaging.inspect import ACCEPTED, check, inspect

MIB = 1024 * 1024
SIZE = 10 * MIB


def create(path: Path, format_: str, *options: str, size: int = SIZE) -> Path:
    arguments = ["qemu-img", "create", "-q", "-f", format_]
    for option in options:
        arguments += ["-o", option]
    subprocess.run([*arguments, str(path), str(size)], check=True, capture_output=True, timeout=30)
    return path


@pytest.mark.parametrize(("made_as", "options", "expected"), [
    ("raw", (), "raw"),
    ("qcow2", (), "qcow2"),
    ("qcow2", ("compat=0.10",), "qcow2"),
    ("qcow2", ("extended_l2=on", "compression_type=zstd"), "qcow2"),
    ("vmdk", (), "vmdk"),
    ("vmdk", ("subformat=streamOptimized",), "vmdk"),
    ("vdi", (), "vdi"),
    ("vhdx", (), "vhdx"),
    ("qed", (), "qed"),
    ("parallels", (), "ploop"),
])
def test_a_real_image_is_recognised_with_its_virtual_size(tmp_path, made_as, options, expected):
    facts = inspect(create(tmp_path / "image", made_as, *options))
    assert (facts.format, facts.virtual_size) == (expected, SIZE)
    assert facts.backing_file is None
    assert facts.data_file is None


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_a_vhd_has_the_size_its_readers_may_believe(tmp_path, subformat):
    facts = inspect(create(tmp_path / "image", "vpc", f"subformat={subformat}"))
    assert facts.format == "vhd"
    assert SIZE <= facts.virtual_size < SIZE + MIB


def test_plain_bytes_are_told_apart_by_contents(tmp_path):
    path = tmp_path / "disk"
    sector = bytearray(4096 * 16)
    path.write_bytes(sector)
    assert inspect(path).format == "raw"
    sector[510:512] = b"\x55\xaa"
    path.write_bytes(sector)
    assert inspect(path).format == "raw", "a boot sector without partitions is no partition table"
    sector[446], sector[450] = 0x80, 0x83
    path.write_bytes(sector)
    assert inspect(path).format == "mbr"
    sector[512:520] = b"EFI PART"
    path.write_bytes(sector)
    assert inspect(path).format == "gpt"
    sector[0x8001:0x8006] = b"CD001"
    path.write_bytes(sector)
    assert inspect(path).format == "iso"
    path.write_bytes(b"LUKS\xba\xbe" + bytes(1000))
    assert inspect(path).format == "luks"
    path.write_bytes(b"")
    assert inspect(path) == facts_module.ImageFacts(format="raw", virtual_size=0, file_size=0)


@pytest.mark.spec("EMG-22")
@pytest.mark.parametrize("format_", ["qcow2", "vmdk", "qed"])
def test_a_difference_to_another_image_is_refused(tmp_path, format_):
    base = create(tmp_path / "base", format_)
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, "-b", str(base), "-F", format_, str(path)],
                   check=True, capture_output=True, timeout=30)
    facts = inspect(path)
    assert facts.backing_file is not None
    assert facts.backing_file.endswith("base")
    if format_ in ACCEPTED:
        with pytest.raises(InvalidInput, match="backing file"):
            check(path, format_)


@pytest.mark.spec("EMG-22")
def test_a_qcow2_with_its_data_elsewhere_is_refused(tmp_path):
    path = create(tmp_path / "image", "qcow2", f"data_file={tmp_path / 'data'}")
    assert inspect(path).data_file == str(tmp_path / "data")
    with pytest.raises(InvalidInput, match="another file"):
        check(path, "qcow2")
    renamed = bytearray(path.read_bytes())
    at = renamed.index(b"DATA")
    renamed[at:at + 4] = b"\x01\x02\x03\x04"
    path.write_bytes(renamed)
    assert inspect(path).data_file == "", "the feature bit alone is enough"


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
@pytest.mark.spec("EMG-22")
def test_a_vmdk_with_its_data_elsewhere_is_refused(tmp_path, subformat):
    path = create(tmp_path / "image", "vmdk", f"subformat={subformat}")
    with pytest.raises(InvalidInput, match="another file"):
        check(path, "vmdk")


def test_a_vmdk_whose_header_defers_to_its_descriptor_is_refused(tmp_path):
    path = create(tmp_path / "image", "vmdk")
    contents = bytearray(path.read_bytes())
    contents[12:20] = bytes(8)
    path.write_bytes(contents)
    with pytest.raises(InvalidInput, match="another file"):
        check(path, "vmdk")


@pytest.mark.spec("EMG-22")
def test_the_contents_must_be_what_is_declared(tmp_path):
    qcow2 = create(tmp_path / "a", "qcow2")
    raw = create(tmp_path / "b", "raw")
    check(qcow2, "qcow2")
    check(raw, "raw")
    with pytest.raises(InvalidInput, match="declared as raw but its contents are qcow2"):
        check(qcow2, "raw")
    with pytest.raises(InvalidInput, match="declared as qcow2 but its contents are raw"):
        check(raw, "qcow2")
    with pytest.raises(InvalidInput, match="not supported"):
        check(raw, "docker")
    with pytest.raises(InvalidInput, match="contents are qcow"):
        check(create(tmp_path / "c", "qcow"), "qcow2")


@pytest.mark.spec("EMG-22")
def test_a_guest_cannot_dress_its_raw_disk_as_qcow2(tmp_path):
    """The header that a guest writes into its first sector must not make a snapshot of the disk usable."""
    path = tmp_path / "disk"
    header = qcow2_header(backing=b"/etc/shadow")
    path.write_bytes(header.ljust(SIZE, b"\0"))
    for declared in ("raw", "qcow2", "iso"):
        with pytest.raises(InvalidInput):
            check(path, declared)


def test_the_virtual_size_has_a_limit(tmp_path):
    path = create(tmp_path / "image", "qcow2", size=1 << 50)
    assert inspect(path).virtual_size == 1 << 50
    check(path, "qcow2", 1 << 50)
    with pytest.raises(InvalidInput, match="exceeds the limit"):
        check(path, "qcow2", (1 << 50) - 1)


def qcow2_header(*, version: int = 3, bits: int = 16, size: int = SIZE, encryption: int = 0, l1: int = 1,
                 incompatible: int = 0, length: int = 104, order: int = 4, backing: bytes = b"") -> bytes:
    backing_at = 512 if backing else 0
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing_at, len(backing), bits, size,
                       encryption, l1, 3 << 16, 1 << 16, 1, 0, 0)
    head += struct.pack(">QQQII", incompatible, 0, 0, order, length)
    return head.ljust(512, b"\0") + backing.ljust(65536 - 512, b"\0")


@pytest.mark.parametrize(("change", "message"), [
    ({"incompatible": 1 << 5}, "unknown features"),
    ({"incompatible": 1 << 1}, "corrupt"),
    ({"incompatible": 1 << 2}, "another file"),
    ({"encryption": 2}, "encrypted"),
    ({"version": 4}, "version 4"),
    ({"bits": 8}, "clusters"),
    ({"bits": 4_000_000_000}, "clusters"),
    ({"size": (1 << 64) - 1}, "cannot be"),
    ({"l1": (1 << 32) - 1}, "tables"),
    ({"length": 72}, "length"),
    ({"length": 1 << 30}, "length"),
    ({"order": 7}, "reference counts"),
    ({"backing": b"x" * 1024}, "outside the header"),
])
def test_an_absurd_qcow2_header_is_refused_with_the_reason(tmp_path, change, message):
    path = tmp_path / "image"
    path.write_bytes(qcow2_header())
    check(path, "qcow2")
    path.write_bytes(qcow2_header(**change))
    with pytest.raises(InvalidInput, match=message):
        check(path, "qcow2")


def test_only_regular_files_are_opened(tmp_path):
    for special in (Path("/dev/zero"), tmp_path):
        with pytest.raises(InvalidInput, match="regular file"):
            inspect(special)


HEADS = [b"QFI\xfb", b"QED\0", b"KDMV", b"COWD", b"# Disk DescriptorFile\ncreateType=\"", b"vhdxfile",
         b"conectix", b"WithoutFreeSpace", b"LUKS\xba\xbe", bytes(64) + b"\x7f\x10\xda\xbe", b""]

PATCHES = [b"\xff" * 8, bytes(8), b"\xff" * 4, b"\x01", b"\x7f" + b"\xff" * 7]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HEADS), st.binary(max_size=2048), st.sampled_from(sorted(ACCEPTED)))
def test_no_header_breaks_the_inspection(tmp_path, head, rest, declared):
    path = tmp_path / "image"
    path.write_bytes(head + rest)
    try:
        check(path, declared)
    except InvalidInput as refusal:
        assert str(refusal)


@pytest.fixture(scope="module")
def real_images(tmp_path_factory) -> list[bytes]:
    directory = tmp_path_factory.mktemp("seeds")
    seeds = [("qcow2", ()), ("vmdk", ()), ("vmdk", ("subformat=monolithicFlat",)), ("vdi", ()), ("vpc", ()),
             ("vhdx", ()), ("qed", ()), ("parallels", ())]
    return [create(directory / f"{n}", format_, *options).read_bytes()[:3 * MIB]
            for n, (format_, options) in enumerate(seeds)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_a_real_image_breaks_the_inspection(tmp_path, real_images, data):
    image = bytearray(data.draw(st.sampled_from(real_images)))
    interesting = st.one_of(st.integers(0, 600), st.integers(192 * 1024, 192 * 1024 + 128),
                            st.integers(2 * MIB, 2 * MIB + 256), st.integers(0, len(image) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(interesting)
        patch = data.draw(st.sampled_from(PATCHES))
        image[at:at + len(patch)] = patch
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(image))))
    path = tmp_path / "image"
    path.write_bytes(image[:cut])
    with BoundedReads() as reads:
        try:
            inspect(path)
        except InvalidInput as refusal:
            assert str(refusal)
    assert reads.total <= READ_LIMIT


class BoundedReads:
    """Counts what the inspection really reads."""

    def __init__(self) -> None:
        self.total = 0
        self._pread = facts_module.os.pread

    def __enter__(self) -> BoundedReads:
        facts_module.os.pread = self._count  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        facts_module.os.pread = self._pread

    def _count(self, fd: int, length: int, offset: int) -> bytes:
        data = self._pread(fd, length, offset)
        self.total += len(data)
        return data


def test_reads_stop_at_the_limit(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(2 * READ_LIMIT))
    with BoundedFile(path) as file:
        file.read(0, READ_LIMIT)
        with pytest.raises(InvalidInput, match="too large"):
            file.read(0, 1)
        assert file.read(path.stat().st_size, 10) == b""
