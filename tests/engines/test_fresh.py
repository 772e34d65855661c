"""Fresh interpreters: this one's import path, and nothing of the folder they start in."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cachekd.engines._fresh import environment, interpreter


def test_files_of_the_current_folder_do_not_take_a_modules_place(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("print('mine')")
    (tmp_path / "cachekd").mkdir()
    (tmp_path / "cachekd" / "__init__.py").write_text("print('not cachekd')")
    done = subprocess.run(
        interpreter("cachekd.engines._writer_process"),
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "mine" not in done.stdout + done.stderr and "not cachekd" not in done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    code = ["-c", "import cachekd, os; print(cachekd.__version__, os.environ['MARK'])"]
    (python, safe, *_) = interpreter("x")
    done = subprocess.run(
        [python, safe, *code],
        cwd=tmp_path,
        env=environment(MARK="7"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == "7" and "not cachekd" not in done.stdout
