"""The package: what is installed, what is exported, what the documents promise."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import cachekd

ROOT = Path(__file__).parent.parent


def test_every_sub_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cachekd").rglob("__init__.py")
    }
    assert set(listed) == there | {"cachekd_cli"}


def test_everything_exported_can_be_had() -> None:
    for name in cachekd.__all__:
        assert getattr(cachekd, name) is not None
    assert sorted(cachekd.__all__) == cachekd.__all__
    assert callable(cachekd.precompute) and callable(cachekd.train)


def test_the_folder_cli_is_not_imported_under_its_own_name() -> None:
    assert "cli" not in sys.modules


def test_the_readme_names_flags_that_exist() -> None:
    main = import_module("cachekd_cli.commands")
    known = {"--help", "--version"}
    for name in main.COMMANDS:
        command = main.group.get_command(None, name)
        for parameter in command.get_params(main.click.Context(command)):
            known |= {*parameter.opts, *parameter.secondary_opts}
    from dataclasses import fields

    from transformers import TrainingArguments

    known |= {"--" + field.name.replace("_", "-") for field in fields(TrainingArguments)}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert len(pages) > 1
    said = "\n".join(page.read_text() for page in pages)
    text = "\n".join(re.findall(r"cachekd [^\n`]*(?:\\\n[^\n`]*)*", said))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert used and used <= known, used - known


def test_the_readme_names_every_command() -> None:
    main = import_module("cachekd_cli.commands")
    text = (ROOT / "README.md").read_text()
    assert all(f"cachekd {name}" in text for name in main.COMMANDS)


def test_no_code_is_run_from_files() -> None:
    """Nothing in the product unpickles, evaluates or loads YAML unsafely."""
    forbidden = re.compile(r"\b(pickle|marshal|dill|torch\.load|eval\(|exec\(|yaml\.load\()")
    for path in [*(ROOT / "cachekd").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        found = forbidden.search(re.sub(r"\.eval\(", "", path.read_text()))
        assert found is None, f"{path.name}: {found}"
