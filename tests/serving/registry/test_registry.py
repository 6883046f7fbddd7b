"""The registry: what is kept, looked up and decided, and that a crash leaves an act done or not done."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.checkpoints import prune, verify
from serving.registry import registry as module
from serving.registry.registry import Registry, RegistryError, State, as_version

Commit = Callable[..., Path]
KILLED = 9


@pytest.fixture
def three(tmp_path: Path, commit_checkpoint: Commit) -> tuple[Registry, list[str]]:
    """A registry with three versions; none is promoted."""
    known = Registry(tmp_path / "registry")
    made = [commit_checkpoint(tmp_path / "run", step, weight=step) for step in (1, 2, 3)]
    return known, [known.register(path).id for path in made]


def test_an_entry_tells_where_the_checkpoint_comes_from(tmp_path: Path, commit_checkpoint: Commit) -> None:
    run = tmp_path / "my-run"
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "hello"}\n')
    checkpoint = commit_checkpoint(run, 4)
    (run / "config.yaml").write_text(
        f"recipe: dpo\nseed: 7\ndata: {data}\nreward: mine:f\nmodel: {tmp_path}\n"
    )
    steps = [{"step": 3, "loss": 9.0}, {"step": 4, "loss": 0.5, "reward": float("nan")}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (run / "summary.json").write_text(
        json.dumps({"status": "finished", "steps": 4, "heldout": {"after": {"chair_i": 0.1}}})
    )

    entry = Registry(tmp_path / "registry").register(checkpoint)

    assert (entry.run, entry.recipe, entry.weight_version) == ("my-run", "dpo", 4)
    # of the file's one line, by coreutils' sha256sum
    assert entry.data_digest == "d0c701ca3a4738e94ec70d811a06979a8a7b75c8166047fee268dac48772bf8b"
    assert entry.metrics["step"] == {"step": 4, "loss": 0.5, "reward": None}
    assert entry.metrics["heldout"] == {"after": {"chair_i": 0.1}}
    assert entry.lineage["attempt"] == 2 and entry.lineage["seed"] == 7


def test_an_evaluation_of_another_step_is_not_the_checkpoints_own(
    tmp_path: Path, commit_checkpoint: Commit
) -> None:
    run = tmp_path / "run"
    commit_checkpoint(run, 4)
    (run / "config.yaml").write_text("name: run\n")
    (run / "summary.json").write_text(
        json.dumps({"status": "finished", "steps": 5, "heldout": {"after": {"chair_i": 0.1}}})
    )

    entry = Registry(tmp_path / "registry").register(run / "checkpoints" / "step-4")

    assert "heldout" not in entry.metrics


def test_a_registered_checkpoint_survives_the_runs_retention(
    tmp_path: Path, commit_checkpoint: Commit
) -> None:
    run, known = tmp_path / "run", Registry(tmp_path / "registry")
    entry = known.register(commit_checkpoint(run, 1, weight=1))
    commit_checkpoint(run, 2, weight=2)
    before = (entry.path / "model.safetensors").read_bytes()

    prune(run, keep=1)
    shutil.rmtree(run)

    assert verify(entry.path).step == 1
    assert (entry.path / "model.safetensors").read_bytes() == before
    assert not (entry.path / "learner").exists()  # nobody serves an optimizer


@pytest.mark.parametrize("links", [True, False])
def test_registering_again_changes_nothing(
    tmp_path: Path, commit_checkpoint: Commit, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "another file system")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    known, checkpoint = Registry(tmp_path / "registry"), commit_checkpoint(tmp_path / "run", 1)
    first = known.register(checkpoint)

    assert known.register(checkpoint) == known.register(first.path) == first
    assert known.register(tmp_path / "run") == first
    assert [act["act"] for act in known.history()] == ["registered"]
    same = os.stat(first.path / "config.json").st_ino == os.stat(checkpoint / "config.json").st_ino
    assert same is links


def test_a_model_of_somebodys_own_is_copied_and_named_by_its_content(
    tmp_path: Path, commit_checkpoint: Commit
) -> None:
    own, twin = tmp_path / "own", tmp_path / "twin"
    for folder in (own, twin):
        shutil.copytree(commit_checkpoint(tmp_path / "run", 1), folder)
        shutil.rmtree(folder / "learner")
        (folder / "manifest.json").unlink()
    known = Registry(tmp_path / "registry")
    entry = known.register(own)
    (own / "model.safetensors").write_bytes(b"written over")

    assert known.register(twin).id == entry.id
    assert verify(entry.path).path == entry.path
    assert (entry.run, entry.weight_version) == (None, None)
    version = as_version(entry)
    assert version.id == f"v-{version.digest[:12]}" and version.path == str(entry.path)


@pytest.mark.parametrize("name", ["model.safetensors", "learner/state.pt"])
def test_a_damaged_checkpoint_is_not_registered(tmp_path: Path, commit_checkpoint: Commit, name: str) -> None:
    checkpoint, known = commit_checkpoint(tmp_path / "run", 1), Registry(tmp_path / "registry")
    content = bytearray((checkpoint / name).read_bytes())
    content[-1] ^= 1
    (checkpoint / name).write_bytes(content)

    with pytest.raises(RegistryError, match="SHA-256"):
        known.register(checkpoint)

    assert known.entries() == []


@pytest.mark.parametrize("asked", ["../../etc", "v-../..", "/etc/passwd", "v-0123456789AB", "", "stable"])
def test_versions_are_looked_up_by_id_alone(three: tuple[Registry, list[str]], asked: str) -> None:
    with pytest.raises(RegistryError, match="expected a version such as"):
        three[0].entry(asked)


def test_an_unknown_version_is_named(three: tuple[Registry, list[str]]) -> None:
    with pytest.raises(RegistryError, match="v-000000000000 is not registered"):
        three[0].promote("v-000000000000", why="", against=None)


def test_rollback_goes_back_step_by_step_and_forgets_what_it_left(
    three: tuple[Registry, list[str]],
) -> None:
    known, (a, b, c) = three
    for version, before in ((a, None), (b, a), (c, b)):
        known.promote(version, why="better", against=before)

    assert known.rollback("first").id == b
    assert known.rollback("second").id == a
    known.promote(c, why="again", against=a)
    assert known.rollback("third").id == a  # not b: it was left
    assert known.rollback("fourth", to=b).id == b
    current = known.promoted()
    assert current is not None and current.id == b
    assert [(act["act"], act["version"], act["previous"]) for act in known.history()[-2:]] == [
        ("rolled_back", a, c),
        ("rolled_back", b, a),
    ]


def test_what_cannot_be_undone_is_said(three: tuple[Registry, list[str]]) -> None:
    known, (a, b, c) = three
    with pytest.raises(RegistryError, match="nothing was ever promoted"):
        known.rollback("why not")
    known.promote(a, why="first", against=None)
    with pytest.raises(RegistryError, match="the only version that was promoted"):
        known.rollback("why not")
    with pytest.raises(RegistryError, match=f"{c} was never promoted"):
        known.rollback("why not", to=c)
    with pytest.raises(RegistryError, match=f"{a} is promoted already"):
        known.rollback("why not", to=a)
    with pytest.raises(RegistryError, match=f"compared with nothing, but meanwhile {a} was"):
        known.promote(b, why="late", against=None)


def test_a_canary_runs_beside_the_promoted_version_until_it_is_promoted_or_ended(
    three: tuple[Registry, list[str]],
) -> None:
    known, (a, b, c) = three
    with pytest.raises(RegistryError, match="there is none yet"):
        known.set_canary(b, 0.1, "try")
    known.promote(a, why="first", against=None)
    with pytest.raises(RegistryError, match="promoted already"):
        known.set_canary(a, 0.1, "try")
    with pytest.raises(RegistryError, match="share of the clients"):
        known.set_canary(b, 1.5, "try")
    known.set_canary(b, 0.1, "try")
    known.set_canary(None, 0, "late verdict", only=c)  # of a canary that is gone
    found = known.canary()
    assert found is not None and (found[0].id, found[1]) == (b, 0.1)
    known.promote(b, why="good", against=a)
    assert known.canary() is None
    known.set_canary(c, 0.5, "try")
    known.set_canary(None, 0, "bad", only=c)
    assert known.canary() is None
    assert known.history()[-1]["act"] == "canary_ended"


def test_every_act_says_who_when_and_why(three: tuple[Registry, list[str]]) -> None:
    known, (a, _, _) = three
    evidence = known.keep_evidence({"records": [1, 2]})
    known.refuse(a, why="too long", against=None, decision={"holds": False}, evidence=evidence)

    act = known.history()[-1]

    assert act["why"] == "too long" and act["by"].count("@") == 1 and act["at"].endswith("+00:00")
    assert known.evidence(act["evidence"]) == {"records": [1, 2]}
    assert known.promoted() is None
    [file] = (known.folder / "evidence").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RegistryError, match="evidence"):
        known.evidence(evidence)


def test_history_is_only_ever_appended_to(three: tuple[Registry, list[str]]) -> None:
    known, (a, b, _) = three
    contents = [(known.folder / "history.jsonl").read_bytes()]
    for act in (
        lambda: known.promote(a, why="", against=None),
        lambda: known.set_canary(b, 0.5, ""),
        lambda: known.promote(b, why="", against=a),
        lambda: known.rollback(""),
    ):
        act()
        contents.append((known.folder / "history.jsonl").read_bytes())
    assert all(later.startswith(earlier) and later != earlier for earlier, later in pairwise(contents))


def test_a_history_that_was_tampered_with_is_refused(three: tuple[Registry, list[str]]) -> None:
    file = three[0].folder / "history.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:1] + lines[2:]))

    with pytest.raises(RegistryError, match=r"history\.jsonl:2: the history was changed or damaged"):
        Registry(three[0].folder).entries()


# -- crashes ------------------------------------------------------------------------------------------------

CALLS = ("mkdir", "link", "pwrite", "ftruncate", "fsync", "rename", "replace", "unlink", "rmdir")


def killed_at(call: int, act: Callable[[], Any], torn: bool = False) -> bool:
    """Run `act` in a forked process that dies before its `call`-th system call that changes a disk, as by a
    signal: nothing is cleaned up. With `torn` it dies at writes alone, which have written half. Whether it
    died."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == call:
                    if torn:
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                    os._exit(KILLED)
                return real(*arguments, **options)

            return called

        for name in ("pwrite",) if torn else CALLS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), f"the act failed instead: {code}"
    return code == KILLED


def told(known: Registry) -> tuple[Any, ...]:
    promoted, canary = known.promoted(), known.canary()
    return (
        [entry.id for entry in known.entries()],
        promoted and promoted.id,
        canary and (canary[0].id, canary[1]),
        [act["act"] for act in known.history()],
    )


@pytest.mark.parametrize(
    ("act", "torn"),
    [(act, False) for act in ("register", "promote", "rollback", "canary", "evidence")]
    + [(act, True) for act in ("register", "promote", "rollback", "canary")],
)
def test_a_crash_at_any_point_leaves_an_act_done_or_not_done(
    tmp_path: Path, commit_checkpoint: Commit, act: str, torn: bool
) -> None:
    folder, run = tmp_path / "registry", tmp_path / "run"
    known = Registry(folder)
    a, b = (known.register(commit_checkpoint(run, step, weight=step)).id for step in (1, 2))
    known.promote(a, why="first", against=None)
    known.promote(b, why="second", against=a)
    new = commit_checkpoint(run, 3, weight=3)
    shutil.copytree(folder, tmp_path / "before", symlinks=True)
    acts: dict[str, Callable[[Registry], Any]] = {
        "register": lambda r: r.register(new),
        "promote": lambda r: r.promote(a, why="again", against=b),
        "rollback": lambda r: r.rollback("bad"),
        "canary": lambda r: r.set_canary(a, 0.5, "try"),
        "evidence": lambda r: r.keep_evidence({"answers": 3}),
    }
    do = acts[act]
    before, deaths = told(known), 0
    do(known)
    after = told(known)
    for call in range(1, 1000):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder, symlinks=True)
        if not killed_at(call, lambda: do(Registry(folder)), torn):
            break
        deaths += 1
        found = Registry(folder)
        assert told(found) in (before, after)
        for entry in found.entries():
            verify(entry.path)
        if told(found) == before:
            do(found)  # it can be repeated
        assert told(Registry(folder)) == after
        found.register(new)
        assert not list((folder / ".staging").iterdir())
    assert deaths >= (1 if torn else 3)


def test_a_full_disk_leaves_the_history_as_it_was(
    three: tuple[Registry, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, (a, _, _) = three
    before = (known.folder / "history.jsonl").read_bytes()

    whole = os.pwrite

    def half(handle: int, line: bytes, at: int) -> int:
        return whole(handle, line[:10], at)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "pwrite", half)
        with pytest.raises(RegistryError, match="cannot be written"):
            known.promote(a, why="", against=None)

    assert (known.folder / "history.jsonl").read_bytes() == before
    assert known.promote(a, why="", against=None).id == a


# -- several processes --------------------------------------------------------------------------------------


def toggle(folder: Path, ids: list[str], turns: int) -> None:
    known = Registry(folder)
    for turn in range(turns):
        known.set_canary(ids[turn % len(ids)], 0.5, f"{os.getpid()} {turn}")


def test_processes_that_write_at_once_lose_no_act(three: tuple[Registry, list[str]]) -> None:
    known, (a, b, c) = three
    known.promote(a, why="first", against=None)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=toggle, args=(known.folder, [b, c], 25)) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        known.canary()  # a reader never sees half a line
        writers[0].join(0.01)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(known.history()) == 4 + 75


def test_several_registrations_at_once(tmp_path: Path, commit_checkpoint: Commit) -> None:
    paths = [commit_checkpoint(tmp_path / "run", step, weight=step) for step in (1, 2)]
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "registry"
    workers = [
        context.Process(target=lambda path=path: Registry(folder).register(path)) for path in (*paths, *paths)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(Registry(folder).entries()) == len(Registry(folder).history()) == 2


# -- folding ------------------------------------------------------------------------------------------------


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["promoted", "rolled_back", "canary"]), st.sampled_from("abc"))))
def test_the_promoted_version_is_the_last_promoted_or_rolled_back_one(
    tmp_path: Path, acts: list[tuple[str, str]]
) -> None:
    state, known, last = State(), Registry(tmp_path), None
    for act, version in acts:
        known._apply(state, {"act": act, "version": version, "weight": 0.5})
        last = version if act != "canary" else last
        assert (state.promoted[-1] if state.promoted else None) == last
        assert state.canary is None or state.canary[0] != last
