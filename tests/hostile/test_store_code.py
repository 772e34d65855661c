"""Nothing of a cache is run: not by the source as it stands, nor when hostile files are read."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachekd.data.digests import bytes_digest
from cachekd.store.tables import SAMPLES

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "cachekd").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "os.execv", "os.execve", "os.spawnv", "pty.spawn",
    "runpy.run_path", "pandas.read_pickle", "torch.hub.load", "torch.jit.load",
    "torch.package.PackageImporter", "dist_cp.load", "tarfile.open", "np.fromregex",
}  # fmt: skip
ALLOWED = {
    # (file, what): why
    ("cachekd/engines/_writers.py", "subprocess"): "our own writer process: a list, no shell",
    (
        "cachekd/plugins.py",
        "importlib",
    ): "plugins that the user names",
    ("cachekd/__init__.py", "importlib"): "our own modules, when they are asked for",
    ("cli/commands.py", "importlib"): "the command's own module",
    (
        "cachekd/costs/comparison/children.py",
        "subprocess",
    ): "our own module, by a list",
    ("cachekd/costs/comparison/energy.py", "importlib"): "pynvml, by its name",
    (
        "cachekd/exchange/_megatron.py",
        "tarfile.open",
    ): "a stream: members are read, not unpacked",
}


def findings(path: Path) -> Iterator[str]:
    """What of a source file could run what it reads."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names}:
                if name in MODULES | {"subprocess", "importlib"} and names != ["version"]:
                    yield name
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in CALLS:
        yield name
    for keyword in node.keywords:
        true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        if true and keyword.arg in ("shell", "trust_remote_code", "allow_pickle"):
            yield f"{keyword.arg}=True"
    if name.endswith("np.load") and "allow_pickle" not in {word.arg for word in node.keywords}:
        yield "np.load without allow_pickle=False"


def test_no_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 200
    found = {(str(path.relative_to(ROOT)), what) for path in SOURCES for what in findings(path)}
    found = {(path, what) for path, what in found if not _metadata(path, what)}
    assert found == set(ALLOWED)


def _metadata(path: str, what: str) -> bool:
    """Whether only `importlib.metadata` or `importlib.util` is used, which run nothing."""
    text = (ROOT / path).read_text()
    return what == "importlib" and "importlib.import_module" not in text


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill as d", "eval(x)", "exec(x)",
        "torch.load(f)", "torch.load(f, weights_only=True)", "yaml.load(f)", "os.system(x)",
        "subprocess.run(x, shell=True)", "f(trust_remote_code=True)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "import marshal",
    ],
)  # fmt: skip
def test_the_check_of_sources_bites(tmp_path: Path, source: str) -> None:
    (tmp_path / "x.py").write_text(source)
    assert list(findings(tmp_path / "x.py"))


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary-was-run",)


CODE = b"import os\nos.system('touch canary-was-run')\n"
BOMB = pickle.dumps(Bomb())
STRANGE = {
    "logits/x.pkl": BOMB, "optimizer.pt": BOMB, "rng_state.pth": BOMB, "training_args.bin": BOMB,
    ".metadata": BOMB, "logits/.metadata": BOMB, "pytorch_model.bin": BOMB, "data.joblib": BOMB,
    "cache.pickle": BOMB, "logits/_metadata": BOMB, "x.npy": BOMB, "plans/x.json": BOMB,
    "__init__.py": CODE, "conftest.py": CODE, "sitecustomize.py": CODE, "pyarrow.py": CODE,
    "logits/__init__.py": CODE, "modeling_x.py": CODE, "x.pth": b"import os;os.system('touch x')",
    "config.json": json.dumps({"auto_map": {"AutoConfig": "modeling_x.X"}}).encode(),
    "tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": "modeling_x.X"}}).encode(),
}  # fmt: skip
CHILD = """
import json, sys
cache = sys.argv[1]
from forged import DOORS
for door in DOORS.values():  # what is imported lazily is imported now
    try:
        door(sys.argv[2])
    except Exception as error:
        sys.exit(f"the whole cache: {error!r}")
seen = []
WATCHED = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class",
           "exec", "compile", "import", "marshal.loads", "ctypes.dlopen", "socket.connect"}
sys.addaudithook(lambda event, args: seen.append([event, repr(args)[:200]])
                 if event in WATCHED or (event == "open" and args[1] not in (None, "r", "rb"))
                 else None)
ended = []
from cachekd.errors import CachekdError
for name, door in DOORS.items():
    try:
        door(cache)
        ended.append("read")
    except CachekdError as error:
        ended.append("refused")
print(json.dumps([ended, seen]))
"""


def read_in_child(cache: Path, whole: Path) -> tuple[list[str], list[list[str]]]:
    """How each door ended, and what was seen meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(cache), str(whole)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ended, seen = json.loads(done.stdout)
    return ended, seen


def harmful(seen: list[list[str]], cache: Path) -> list[list[str]]:
    """Events other than imports of our own libraries and writes below the cache."""
    inside = (str(cache.parent), "forged", "cachekd", "encodings", "json", "pyarrow", "numpy")
    return [
        [event, args]
        for event, args in seen
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
                     "pickle.find_class", "socket.connect")
        or (event in ("import", "exec", "compile") and str(cache) in args)
        or (event == "open" and not any(word in args for word in inside) and "'w" in args)
    ]  # fmt: skip


def test_strange_files_beside_those_of_a_cache_are_nobodys(cache: Path, sealed: Path) -> None:
    whole = Path(shutil.copytree(sealed, cache.with_name("whole")))
    for name, data in STRANGE.items():
        (cache / name).write_bytes(data)
    assert len(STRANGE) >= 20
    ended, seen = read_in_child(cache, whole)
    assert ended == ["read"] * len(ended) and harmful(seen, cache) == []
    assert not list(cache.parent.rglob("canary-was-run"))


def extension_table() -> bytes:
    """Samples whose keys are of a type that its reader was once asked to unpickle."""
    field = pa.field(
        "key",
        pa.binary(16),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": BOMB,
        },
    )
    schema = SAMPLES.set(1, field)
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return bytes(sink.getvalue())


def test_pickles_under_every_name_are_refused(cache: Path, sealed: Path) -> None:
    """Of each kind of file one is a pickle, or a table that would have one unpickled."""
    whole = Path(shutil.copytree(sealed, cache.with_name("whole")))
    kinds = ("cache.json", "logits/capture.json", "manifest-1.json", "index/*", "samples/*",
             "logits/*.parquet", "priors/*", "plans/*", "units/*")  # fmt: skip
    for bomb in (BOMB, extension_table()):
        broken = Path(shutil.copytree(sealed, cache.with_name(f"broken-{len(bomb)}")))
        for kind in kinds:
            sorted(broken.glob(kind))[0].write_bytes(bomb)
        ended, seen = read_in_child(broken, whole)
        assert ended == ["refused"] * len(ended) and harmful(seen, broken) == []
    assert not list(cache.parent.rglob("canary-was-run"))


def test_a_table_that_asks_to_be_unpickled_is_another_table() -> None:
    from cachekd.errors import CorruptCache
    from cachekd.store.samples import read_samples

    data = extension_table()
    assert len(bytes_digest(data)) == 64
    with pytest.raises(CorruptCache):
        read_samples("x", pa.py_buffer(data))
