"""The lock of a run's folder: the system's own, so no number in a file decides who works there."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank.errors import InputError
from rerank.experiment.workspace import LOCK, locked

fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")


def test_a_number_in_a_lock_that_nobody_holds_keeps_nobody_out(tmp_path):
    """A process that is alive and has the id of one that was killed: in containers small ids come again and again."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        for left in (str(stranger.pid), "1", str(os.getppid()), "", "no number", "9" * 400, "\ud800"):
            (tmp_path / LOCK).write_text(left, errors="surrogatepass")
            with locked(tmp_path):
                assert (tmp_path / LOCK).read_text() == str(os.getpid())
            assert not (tmp_path / LOCK).exists()
        stranger.stdin.close()


def test_a_lock_that_is_held_is_told_with_what_it_says_of_its_owner(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()} is working in"), locked(tmp_path):
            pass
        (tmp_path / LOCK).write_text("")
        with pytest.raises(InputError, match=r"another process is working in .*wait for it"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists(), "a process that is kept out leaves the lock as it is"


def test_a_lock_whose_name_was_taken_away_meanwhile_is_none(tmp_path, monkeypatch):
    """Its owner ends between our opening of the file and our holding of it, and another one begins."""
    flock, holders = fcntl.flock, []

    def after_a_change(file, operation):
        if not holders:
            (tmp_path / LOCK).unlink()
            holders.append((tmp_path / LOCK).open("a+"))
            flock(holders[0], fcntl.LOCK_EX)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_change)
    with pytest.raises(InputError, match="another process is working in"), locked(tmp_path):
        pass
    holders[0].close()


def test_a_file_system_without_locks_is_told_and_worked_on(tmp_path, monkeypatch, caplog):
    def none_here(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        assert Path(tmp_path / LOCK).is_file()
    assert "cannot be locked (No locks available)" in caplog.text
