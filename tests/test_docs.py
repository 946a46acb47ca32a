"""Every Python block of README, first page and guides runs as it stands, and every command in them parses."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from preresnet.cli import entry, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guide").rglob("*.md"))]
# a comment `<!-- no-run: needs ... -->` above a block says why it is not run
BLOCK = re.compile(r"(?:<!-- no-run: (?P<reason>.+?) -->\n)?^```(?P<kind>\w+)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)


def blocks(*kinds: str) -> list[tuple[str, str, str]]:
    """Place, text and reason not to run, of blocks of these kinds."""
    found = []
    for page in PAGES:
        content = page.read_text()
        for match in BLOCK.finditer(content):
            if match["kind"] in kinds:
                line = content.count("\n", 0, match.start("text")) + 1
                found.append((f"{page.relative_to(ROOT)}:{line}", match["text"], match["reason"] or ""))
    return found


PYTHON = blocks("python", "py")
COMMANDS = [
    (place, command)
    for place, text, _ in blocks("sh", "bash", "shell", "console")
    for line in text.replace("\\\n", " ").splitlines()
    if (command := line.split(" #")[0].strip()).startswith("preresnet ")
]


@pytest.mark.parametrize(("place", "code", "reason"), PYTHON, ids=[place for place, _, _ in PYTHON])
def test_a_block_runs_as_it_stands(
    place: str, code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile(code, place, "exec")
    if reason:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    exec(compiled, {"__name__": "__main__"})


@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=[f"{place} {command}" for place, command in COMMANDS])
def test_a_command_parses(
    place: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, kind, _ in entry.COMMANDS.values():
        monkeypatch.setattr(getattr(importlib.import_module(f"preresnet.cli.{module}"), kind), "run", lambda self: 0)
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", command))  # "[--json]": either way
    if ">" in words:
        words = words[: words.index(">")]
    assert main(words[1:]) == 0, f"{place}: {capsys.readouterr().err}"


def test_the_pages_have_blocks_and_commands() -> None:
    assert len(PYTHON) > 5
    assert len(COMMANDS) > 30
