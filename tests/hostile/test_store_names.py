"""Names in a forged cache that lead elsewhere: refused at every door that reads them.

All checksums are made anew, so that only the check of names can refuse. An audit hook sees what is
opened, made, linked or taken away; a test under strace sees it from outside.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forged import DOORS, OF_SEAL, OF_STATE, forge, load, put, read_all
from tiny import Ran

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache
from cachekd.store.layout import dump_document

D = "0a" * 32
OUTSIDE = "outside-canary"
NAMES = [
    "..", "../..", f"../{OUTSIDE}", f"../../{OUTSIDE}", f"../../../{OUTSIDE}", f"./{D}",
    f"x/../../{OUTSIDE}", f"{D}/../../../{OUTSIDE}", "/etc/passwd", "//etc/passwd", "/dev/zero",
    "/proc/self/mem", f"/tmp/{D}", "file:///etc/passwd", "memory://x", "s3://bucket/key",
    "https://127.0.0.1:9/x", "C:\\windows\\system.ini", "C:/windows/system.ini", f"C:{D}",
    "\\\\server\\share\\x", "//server/share/x", "..\\..\\x", f"..\\{D}", f"{D}\0", f"\0{D}",
    f"{D}\0.parquet", f"{D}.", f"{D} ", f" {D}", f"{D}\n", f"\n{D}", f"{D}\t", f"{D}\r", "CON",
    "NUL", "AUX.parquet", "COM1", "LPT1", "%2e%2e%2f" + OUTSIDE, f"..%2f{OUTSIDE}", f"%00{D}",
    "\u2024\u2024/x", "\uff0e\uff0e\uff0f" + OUTSIDE, "\u2025/x", "caf\u00e9", "cafe\u0301",
    "\u202e" + D, "\ufeff" + D, "\uff10\uff21" * 32, "a" * 63, "a" * 65, "a" * 255, "a" * 4096,
    "a/" * 2000, "x" * 1_000_000, "", ".", " ", "~", "~root", "$HOME", "`id`", ";id", "-rf", "*",
    "?" * 64, D.upper(), "0b" * 31, "g" * 64, ".hidden", ".tmp-x", "0x" + "0" * 62,
    "-" + "0" * 63, "_" * 64, "a b", "lost+found", "NTFS:stream", f"{D}:stream",
]  # fmt: skip


def shards_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["kinds"]["logits"]["shards"]
    return found


def other_file(name: str) -> Callable[[dict[str, Any]], None]:
    """A further name beside those of a seal, with the digest of a file that is outside."""
    return lambda document: document["files"].update({name: bytes_digest(b"outside")})


Place = Callable[[str], Callable[[dict[str, Any]], Any]]
PLACES: dict[str, tuple[str, Place]] = {
    "manifest shard": ("manifest", lambda name: lambda d: shards_of(d)[0].update(digest=name)),
    "manifest prior": ("manifest", lambda name: lambda d: shards_of(d)[0].update(prior=name)),
    "manifest priors": ("manifest", lambda name: lambda d: d["priors"].update({name: 7})),
    "manifest samples": ("manifest", lambda name: lambda d: d["samples"].append(name)),
    "manifest index": ("manifest", lambda name: lambda d: d.update(index=name)),
    "manifest files": ("manifest", other_file),
    "manifest run": ("manifest", lambda name: lambda d: d["runs"][0].update(plan=name)),
    "manifest written": (
        "manifest",
        lambda name: lambda d: d["runs"][0].update(written=[name], responses={}),
    ),
    "unit shard": ("unit", lambda name: lambda d: d["shards"]["logits"].update(digest=name)),
    "unit prior": ("unit", lambda name: lambda d: d["shards"]["logits"].update(prior=name)),
    "unit plan": ("unit", lambda name: lambda d: d.update(plan=name)),
    "plan samples": ("plan", lambda name: lambda d: d["samples"].append(name)),
    "plan prior": ("plan", lambda name: lambda d: d.update(prior=name)),
}
SOME = [
    (place, name) for i, place in enumerate(PLACES) for name in NAMES[i :: len(PLACES)]
]  # every name once, at every place several
EVERY = [(place, name) for place in PLACES for name in NAMES]

_watched: list[tuple[str, str]] | None = None
_EVENTS = {
    "open", "os.listdir", "os.scandir", "os.link", "os.rename", "os.remove", "os.mkdir",
    "os.symlink", "os.truncate", "shutil.rmtree", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "socket.connect", "import",
}  # fmt: skip


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event in _EVENTS:
        _watched.append((event, repr(args)))


sys.addaudithook(_hook)  # a hook cannot be taken away: it sleeps outside of `watched`


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """What the process does to files, other processes and sockets meanwhile."""
    global _watched
    _watched = seen = []
    try:
        yield seen
    finally:
        _watched = None


def is_outside(event: str, args: str) -> bool:
    """Whether an event names what no cache holds."""
    told = (OUTSIDE, "..", "/etc/", "/proc/self/mem", "/dev/zero", "~", "%2e", "\\\\", "://")
    return event in ("subprocess.Popen", "os.system", "os.exec") or any(t in args for t in told)


def assert_refused(cache: Path, kind: str, change: Any, doors: tuple[str, ...]) -> None:
    whole = cache.with_name("whole")
    if not whole.exists():
        shutil.copytree(cache, whole)
    forge(cache, **{kind: change})
    before = {path.name for path in cache.parent.iterdir()}
    for door in doors:
        with watched() as seen, pytest.raises(CorruptCache):
            DOORS[door](str(cache))
        assert [event for event in seen if is_outside(*event)] == [], door
    assert {path.name for path in cache.parent.iterdir()} == before
    shutil.rmtree(cache)
    shutil.copytree(whole, cache)


def check(cache: Path, cases: list[tuple[str, str]]) -> None:
    outside = cache.parent.parent / OUTSIDE
    for folder in (cache.parent, cache.parent.parent):
        (folder / OUTSIDE).write_bytes(b"outside")
    for place, name in cases:
        kind, put_name = PLACES[place]
        doors = OF_SEAL if kind == "manifest" else OF_STATE
        assert_refused(cache, kind, put_name(name), doors)
    assert outside.read_bytes() == b"outside"


def test_names_that_lead_elsewhere_are_refused(cache: Path) -> None:
    assert len(NAMES) == len(set(NAMES)) >= 60
    check(cache, SOME)


@pytest.mark.reliability
def test_every_name_at_every_place_is_refused(cache: Path) -> None:
    check(cache, EVERY)


@pytest.mark.parametrize("place", ["manifest files", "manifest shard"])
def test_the_command_line_refuses_with_its_exit_code(
    cache: Path, cachekd: Callable[..., Ran], place: str
) -> None:
    kind, put_name = PLACES[place]
    whole = shutil.copytree(cache, cache.with_name("whole"))
    forge(cache, **{kind: put_name(f"../{OUTSIDE}")})
    for command in (["inspect", cache], ["verify", cache], ["seal", cache]):
        ran = cachekd(*command)
        assert ran.code == 4 and "manifest-1.json" in ran.err and "Traceback" not in ran.err
    forge(whole, unit=lambda d: d["shards"]["logits"].update(digest=f"../{OUTSIDE}"))
    ran = cachekd("merge", whole, "--out", cache.with_name("out"))
    assert ran.code == 4 and not cache.with_name("out").exists()


def test_names_twice_are_refused(cache: Path) -> None:
    assert_refused(cache, "manifest", lambda d: shards_of(d).append(shards_of(d)[0]), OF_SEAL)
    assert_refused(cache, "manifest", lambda d: d["samples"].append(d["samples"][0]), OF_SEAL)
    assert_refused(cache, "plan", lambda d: d["samples"].append(d["samples"][0]), OF_STATE)
    data = (cache / "manifest-1.json").read_bytes()
    put(cache / "manifest-1.json", data.replace(b'"index":', b'"index": "x",\n "index":'))
    for door in OF_SEAL:
        with pytest.raises(CorruptCache, match="names a key twice"):
            DOORS[door](str(cache))


def test_a_seal_under_the_number_of_another_is_refused(cache: Path) -> None:
    shutil.copy(cache / "manifest-1.json", cache / "manifest-2.json")
    for door in OF_SEAL:
        with pytest.raises(CorruptCache, match="it is of generation 1"):
            DOORS[door](str(cache))


def test_what_no_door_reads_changes_nothing(cache: Path) -> None:
    """A hint is never read; other files of a folder are nobody's, whatever their names are."""
    truth = read_all(str(cache))
    put(cache / "manifest.json", dump_document("hint", {"newest": f"../{OUTSIDE}"}))
    for name in (f"units/{'A' * 64}-0.json", "plans/..json", "generated/CON.parquet", "index/x"):
        put(cache / name, b"x")
    with watched() as seen:
        for door in DOORS.values():
            assert door(str(cache)) == truth
    assert not any(OUTSIDE in args for _, args in seen)


CHILD = """
import sys
from forged import DOORS
from cachekd.errors import CorruptCache
for door in DOORS.values():
    try:
        door(sys.argv[1])
    except CorruptCache as error:
        print("refused")
"""


def test_strace_sees_nothing_outside(cache: Path, tmp_path: Path) -> None:
    """Also not by the libraries below Python, which an audit hook does not see."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    place = f"../../{OUTSIDE}"
    forge(
        cache,
        manifest=lambda d: d["samples"].append(place),
        plan=lambda d: d["samples"].append(place),
        unit=lambda d: d["shards"]["logits"].update(digest=place),
    )
    for folder in (cache.parent, cache.parent.parent):
        (folder / OUTSIDE).write_bytes(b"outside")
    log = tmp_path / "log"
    command = [strace, "-f", "-e", "trace=file", "-o", str(log), sys.executable, "-c", CHILD]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*command, str(cache)], capture_output=True, text=True, env={"PYTHONPATH": tests}
    )
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.stdout.split() == ["refused"] * len(DOORS), done.stderr
    calls = log.read_text()
    assert str(cache) in calls, "the log must show the cache"
    assert OUTSIDE not in calls
    written = re.findall(r"(?:O_WRONLY|O_RDWR|O_CREAT).*", calls)
    assert not [line for line in written if "cachekd" in line and str(cache.parent) not in line]


def test_units_and_plans_load_as_forged(cache: Path) -> None:
    """The forger makes caches that are whole: a change of nothing is refused by no door."""
    truth = read_all(str(cache))
    forge(cache, plan=lambda d: d.update(threads=2))
    assert load(cache / "manifest-1.json")["runs"][0]["plan"] != D
    for name, door in DOORS.items():
        assert door(str(cache)) == truth, name
