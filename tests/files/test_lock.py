"""Who works in a folder keeps others out, and where there are no locks that is said and not guessed."""

import errno

import pytest

from altclip_jax.files.lock import ALLOWED, hold_alone, hold_together

SENTENCES = {"busy": "Another one is at work: wait for it.", "risk": "another one out"}


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP", "no fcntl"])
def no_locks(request, monkeypatch):
    def fail(*_):
        raise OSError(getattr(errno, request.param), "as the system says it")

    if request.param == "no fcntl":
        monkeypatch.setattr("altclip_jax.files.lock.fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", fail)


def test_one_is_alone(tmp_path):
    with hold_alone(tmp_path / ".lock", **SENTENCES) as guarded:
        assert guarded
        with (
            pytest.raises(OSError, match="Another one is at work: wait for it"),
            hold_alone(tmp_path / ".lock", **SENTENCES),
        ):
            pass
    with hold_alone(tmp_path / ".lock", **SENTENCES) as guarded:
        assert guarded


def test_what_a_lock_file_held_stays(tmp_path):
    (tmp_path / ".lock").write_text("of the user")
    with hold_alone(tmp_path / ".lock", **SENTENCES), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError  # as it is
    assert (tmp_path / ".lock").read_text() == "of the user"


def test_only_the_first_of_many_is_alone(tmp_path):
    called = []
    with hold_together(tmp_path / ".lock", lambda: called.append(1)):
        with hold_together(tmp_path / ".lock", lambda: called.append(2)):
            assert called == [1]
        with hold_together(tmp_path / ".lock", lambda: called.append(3)):
            assert called == [1]
    with hold_together(tmp_path / ".lock", lambda: called.append(4)):
        assert called == [1, 4]


def test_without_locks_a_sentence_says_what_is_not_guarded_and_how_to_go_on(tmp_path, no_locks, monkeypatch):
    with pytest.raises(OSError, match=rf"no file locks, so nothing keeps another one out\. .*{ALLOWED}=1") as caught:
        hold_alone(tmp_path / ".lock", **SENTENCES).__enter__()
    assert "Errno" not in str(caught.value)
    monkeypatch.setenv(ALLOWED, "1")
    with hold_alone(tmp_path / ".lock", **SENTENCES) as guarded:
        assert not guarded


def test_without_locks_nobody_is_alone(tmp_path, no_locks):
    with hold_together(tmp_path / ".lock", lambda: pytest.fail("nobody knows that")):
        pass


def test_other_faults_of_a_lock_name_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", fail)
    monkeypatch.setenv(ALLOWED, "1")
    for lock in (hold_alone(tmp_path / ".lock", **SENTENCES), hold_together(tmp_path / ".lock", list)):
        with pytest.raises(OSError, match=r"\.lock could not be locked: Input/output error"):
            lock.__enter__()
