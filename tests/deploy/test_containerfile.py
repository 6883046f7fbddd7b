"""The container file parses, and what it copies exists and reaches the builder. No image is built here."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"
INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "USER", "WORKDIR", "COPY", "CMD"}


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def copied() -> list[str]:
    found: list[str] = []
    for name, rest in instructions():
        if name == "COPY":
            *sources, _ = [word for word in shlex.split(rest) if not word.startswith("--")]
            found += sources
    return found


def test_every_instruction_is_known_and_it_begins_with_its_base() -> None:
    parsed = instructions()

    assert {name for name, _ in parsed} <= INSTRUCTIONS
    assert parsed[0] == ("FROM", "python:3.11-slim")
    for name, rest in parsed:
        if name == "RUN":
            shlex.split(rest)  # quotes are closed


def test_what_it_copies_exists_and_is_all_that_is_installed() -> None:
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert {"pyproject.toml", "README.md", "LICENSE", "actors", "pipelines", "serving"} <= set(copied())


@pytest.mark.parametrize("source", copied())
def test_the_ignore_file_lets_through_what_is_copied(source: str) -> None:
    rules = [line for line in FILE.with_name("Containerfile.dockerignore").read_text().splitlines() if line]
    parts = Path(source).parts
    parents = ["/".join(parts[: length + 1]) for length in range(len(parts))]

    kept = True
    for rule in rules:  # the last one that matches decides
        if any(fnmatch(path, rule.removeprefix("!")) for path in parents):
            kept = rule.startswith("!")
    assert kept


def test_nothing_runs_as_root_after_the_system_packages() -> None:
    parsed = instructions()
    users = [index for index, (name, _) in enumerate(parsed) if name == "USER"]

    assert [parsed[index][1] for index in users] == ["1000:1000"]
    assert all("apt-get" not in rest for _, rest in parsed[users[0] :])


def test_the_working_folder_hides_none_of_our_packages() -> None:
    folders = [rest for name, rest in instructions() if name == "WORKDIR"]

    assert folders[-1] != folders[0]
