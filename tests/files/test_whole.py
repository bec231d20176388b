"""A folder changes as a whole, whatever stops the change, and is read as a whole while it changes."""

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from altclip_jax.files.lock import ALLOWED
from altclip_jax.files.whole import Change, read_whole, settle

NAMES = ("config", "tree", "one", "two", "three")  # nobody reads the others without config
OLD = {"config": "old", "one": "old", "two": "old"}
CHANGES = [
    (OLD, {"config": "new", "one": "new", "two": "new"}),
    (OLD, {"config": "new", "three": "new", "two": "new"}),
    (OLD, {"config": "new", "tree": {"leaf": "new"}}),
    ({"config": "old", "tree": {"leaf": "old", "other": "old"}}, {"config": "new", "tree": {"leaf": "new"}}),
    ({"config": "old", "tree": {"leaf": "old"}}, {"config": "new", "one": "new"}),
    ({}, {"config": "new", "one": "new"}),
    ({"one": "old", "two": "old"}, {"two": "new"}),
    ({"config": "old"}, {"config": "new"}),
]


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Here it is processes that stop, not machines."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def save(folder, content):
    with Change(folder) as change:
        for name, value in content.items():
            if isinstance(value, dict):
                (change.staged / name).mkdir()
                for leaf, text in value.items():
                    (change.staged / name / leaf).write_text(text)
            else:
                change.add(name, [value.encode()])
        change.install(NAMES)


def seen(folder, names=NAMES):
    """What anyone sees who knows nothing of this."""

    def content(path):
        return {leaf.name: leaf.read_text() for leaf in path.iterdir()} if path.is_dir() else path.read_text()

    return {name: content(folder / name) for name in names if (folder / name).exists()}


def read(folder):
    return read_whole(folder, NAMES, lambda: seen(folder))


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_a_kill_at_any_moment_leaves_the_one_or_the_other(old, new, tmp_path, interfere):
    for at in range(1, 99):
        folder = tmp_path / str(at)
        folder.mkdir()
        save(folder, old) if old else None
        (folder / "of the user").write_text("mine")
        with interfere(at) as stopped:
            save(folder, new)
        found = seen(folder)
        # without config only earlier files or only new ones, so that none stands beside one of another time
        assert "config" not in found or found in (old, new)
        assert found.items() <= old.items() or found.items() <= new.items()
        assert read(folder) in (old, new)
        assert read(folder) == seen(folder)
        save(folder, {"config": "third"})
        assert listed(folder) == ["config", "of the user"]
        if not stopped:
            break
    assert found == new
    assert 5 < at < 98


def test_a_kill_while_a_kill_is_undone_leaves_the_one_or_the_other(tmp_path, interfere):
    old, new = CHANGES[1]
    for at in range(10, 99):
        for then in range(1, 99):
            folder = tmp_path / f"{at}.{then}"
            save(folder, old)
            with interfere(at) as stopped:
                save(folder, new)
            with interfere(then) as undone:
                settle(folder)
            found = seen(folder)
            assert found.items() <= old.items() or found.items() <= new.items()
            assert read(folder) in (old, new)
            if not undone:
                break
        if not stopped:
            break
    assert found == new


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_an_error_at_any_moment_leaves_what_was_there_and_nothing_else(old, new, tmp_path, interfere):
    for at in range(1, 99):
        folder = tmp_path / str(at)
        folder.mkdir()
        save(folder, old) if old else None
        with interfere(at, OSError(errno.ENOSPC, "No space left on device")) as stopped:
            wanted, refused = new, None
            try:
                save(folder, new)
            except OSError as error:
                wanted, refused = old, error
        assert refused is None or (stopped and "No space left on device" in str(refused))
        assert seen(folder) == wanted
        save(folder, wanted) if wanted == new else None  # clears away what an error kept from being cleared
        assert listed(folder) == sorted(wanted)
        if not stopped:
            break
    assert wanted == new


def test_a_folder_that_was_made_goes_with_a_failure(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        save(tmp_path / "new", {"config": "new", "one": "\ud800"})
    assert not (tmp_path / "new").exists()


def test_of_many_at_once_one_wins_whole(tmp_path):
    contents = [{"config": str(n), "one": str(n), **({"two": str(n)} if n % 2 else {})} for n in range(4)]
    failures, done = [], threading.Event()

    def writer(content):
        try:
            for _ in range(8):
                save(tmp_path, content)
        except BaseException as error:
            failures.append(error)

    def reader():
        try:
            while not done.is_set():
                assert read(tmp_path) in contents
        except BaseException as error:
            failures.append(error)

    save(tmp_path, contents[0])
    writers = [threading.Thread(target=writer, args=[content]) for content in contents]
    readers = [threading.Thread(target=reader) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert seen(tmp_path) in contents
    assert set(listed(tmp_path)) == set(seen(tmp_path))


def test_processes_that_are_killed_for_good_leave_the_one_or_the_other(tmp_path):
    program = """
import io, os, sys
from pathlib import Path
from altclip_jax.files.whole import Change
folder, count = Path(sys.argv[1]), 0
def counted(function):
    def call(*arguments, **keywords):
        global count
        count += 1
        if count == at:
            os._exit(9)
        return function(*arguments, **keywords)
    return call
for name in ("open", "replace", "unlink", "rmdir", "mkdir", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
io.open = counted(io.open)
for at in range(1, 99):
    child = os.fork()
    if not child:
        with Change(folder / str(at)) as change:
            for name in ("config", "one", "three"):
                change.add(name, [b"new"])
            change.install(("config", "one", "two", "three"))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(at)
"""
    old, new = OLD, {"config": "new", "one": "new", "three": "new"}
    for at in range(1, 99):
        save(tmp_path / str(at), old)
    last = int(subprocess.run([sys.executable, "-c", program, tmp_path], check=True, capture_output=True).stdout)
    ends = [read(tmp_path / str(at)) for at in range(1, last + 1)]
    assert ends[0] == old
    assert ends[-1] == new
    assert all(end in (old, new) for end in ends)


@pytest.fixture
def half_done(tmp_path, interfere):
    """A folder in which a change was killed when all earlier files were away and some new ones there."""
    for at in range(1, 99):
        folder = tmp_path / f"half done {at}"
        save(folder, OLD)
        with interfere(at):
            save(folder, {"config": "new", "one": "new", "two": "new"})
        if seen(folder) == {"two": "new"}:
            return folder
    raise AssertionError


def test_what_was_written_after_a_kill_is_not_lost(half_done):
    (half_done / "two").write_text("of the user")
    (half_done / "one").write_text("of the user")
    for attempt in (read, lambda folder: save(folder, OLD)):
        with pytest.raises(OSError, match=r"killed half way, and one, two changed after that\. .*save/old: put into"):
            attempt(half_done)
    assert seen(half_done) == {"one": "of the user", "two": "of the user"}


def test_a_copy_of_a_half_done_folder_is_put_right_too(half_done, tmp_path):
    subprocess.run(["cp", "-a", half_done, tmp_path / "copy"], check=True)
    assert read(tmp_path / "copy") == OLD


def test_who_may_not_write_says_who_must(half_done, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("altclip_jax.files.whole._PATIENCE", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr("altclip_jax.files.lock._opened", refuse)
        with pytest.raises(PermissionError, match=r"killed half way, .* only by who may write there"):
            read(half_done)
    assert read(half_done) == OLD


@pytest.mark.parametrize(
    "told",
    [
        *({"old": [name], "new": []} for name in ("../victim", "..", "", "/victim", "a\0b", 3, None)),
        {"old": [], "new": [["../victim", 0, 0]]},
        {"old": "x", "new": 3},
        [],
        "no JSON",
    ],
)
def test_a_journal_of_others_moves_nothing(told, tmp_path):
    folder = tmp_path / "folder"
    place = folder / ".altclip_jax.save"
    (place / "old").mkdir(parents=True)
    (place / "new").mkdir()
    (place / "journal.json").write_text(told if isinstance(told, str) else json.dumps(told))
    (tmp_path / "victim").write_text("mine")
    with pytest.raises(OSError, match="is none that this library has written"):
        read(folder)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("link", ["old", "new", "."])
def test_a_journal_beside_links_moves_nothing(link, half_done, tmp_path):
    place = half_done / ".altclip_jax.save"
    target = tmp_path / "elsewhere"
    (place / link).resolve().rename(target)
    (place / link).resolve().symlink_to(target)
    before = sorted(path.name for path in target.rglob("*"))
    with pytest.raises(OSError, match="is none that this library has written"):
        read(half_done)
    assert sorted(path.name for path in target.rglob("*")) == before


@pytest.fixture
def no_locks(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)


def test_without_locks_one_saves_and_two_are_told(no_locks, tmp_path, monkeypatch):
    save(tmp_path, OLD)
    with Change(tmp_path) as change:
        with pytest.raises(OSError, match=f"Another process saves into .* or was killed .* set {ALLOWED}=1"):
            save(tmp_path, {"config": "other"})
        change.add("config", [b"new"])
        change.install(NAMES)
    assert seen(tmp_path) == {"config": "new"}
    assert listed(tmp_path) == ["config"]


def test_without_locks_the_user_says_that_a_save_was_killed(half_done, no_locks, monkeypatch):
    with pytest.raises(OSError, match=f"set {ALLOWED}=1"):
        read(half_done)
    monkeypatch.setenv(ALLOWED, "1")
    assert read(half_done) == OLD


def test_what_changes_while_it_is_read_is_read_again(tmp_path):
    save(tmp_path, OLD)
    versions = iter(("first", "second", "third"))

    def reading():
        found = (tmp_path / "config").read_text()
        if (version := next(versions, None)) is not None:
            (tmp_path / "config").write_text(version)  # by a program that has no locks
            if version == "second":
                raise ZeroDivisionError  # as a mixture may make a reader do
        return found

    assert read_whole(tmp_path, NAMES, lambda: read_whole(tmp_path, NAMES, reading)) == "third"
    with pytest.raises(OSError, match="was saved into each of the 8 times that it was read"):
        read_whole(tmp_path, NAMES, lambda: (tmp_path / "config").write_text("again"))
    with pytest.raises(ZeroDivisionError):
        read_whole(tmp_path, NAMES, lambda: 1 / 0)
    assert Path(tmp_path / "config").read_text() == "again"
