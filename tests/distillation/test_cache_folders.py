"""Caches of several runs within one limit: what is evicted, what never is, and what a kill leaves behind."""

import logging
import multiprocessing
import os
import signal
import time

import pytest

import tiny
from distillation.test_teacher_cache import prepare
from itrd_nlp.distillation import cache_folders, folder_locks, teacher_outputs
from itrd_nlp.distillation.cache_folders import LIMIT, USED, entries, find_room, make_room, total_limit
from itrd_nlp.distillation.folder_locks import lock_in_use
from itrd_nlp.training.arguments import ITRDArguments
from itrd_nlp.utils.errors import UserError

KB = 1000
FORK = multiprocessing.get_context("fork")


def cached(root, name, size, used):
    """A folder as a run leaves it, last used so many hours ago."""
    folder = root / (name * 12)[:12]
    folder.mkdir(parents=True)
    (folder / "000000-a-b.safetensors").write_bytes(bytes(size))
    (folder / "key.json").write_text("{}")
    lock_in_use(folder).close()
    cache_folders.announce(folder, {"layer": size})
    os.utime(folder / USED, (time.time() - 3600 * used,) * 2)
    return folder


def make(root, name="f", size=40 * KB, limit=100 * KB, hold=lambda: True):
    """Why there is no room for a folder, or None; and the messages."""
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    cache_folders.logger.addHandler(handler)
    reason = make_room(root / (name * 12), {"layer": size}, size, limit, hold)
    cache_folders.logger.removeHandler(handler)
    return reason, messages


def names(root):
    return {path.name[0] for path in root.iterdir() if path.is_dir()}


def test_the_least_recently_used_goes_and_no_more_than_is_needed(tmp_path):
    for name, used in (("a", 2), ("b", 5), ("c", 3), ("d", 1)):
        cached(tmp_path, name, 20 * KB, used)
    reason, said = make(tmp_path)
    assert reason is None and names(tmp_path) == {"a", "d", "f"}
    assert [text.partition(" was evicted")[0] for text in said] == [
        f"[teacher cache] {tmp_path / (n * 12)}" for n in "bc"
    ]


def test_what_fits_evicts_nothing(tmp_path):
    cached(tmp_path, "a", 55 * KB, 9)
    assert make(tmp_path) == (None, []) and names(tmp_path) == {"a", "f"}


def test_nothing_goes_where_that_would_not_be_enough(tmp_path):
    cached(tmp_path, "a", 20 * KB, 9)
    kept = lock_in_use(cached(tmp_path, "b", 70 * KB, 10))
    reason, said = make(tmp_path, size=50 * KB)
    assert (
        "other runs or users have 0.1 MiB" in reason and LIMIT in reason and not said and names(tmp_path) == {"a", "b"}
    )
    kept.close()
    assert make(tmp_path, size=50 * KB)[0] is None and names(tmp_path) == {"a", "f"}


def use(folder, taken, go_on):
    lock = lock_in_use(folder)
    taken.set()
    go_on.wait(60)
    lock.close()


def test_one_in_use_is_never_evicted_until_its_process_ends_even_by_a_kill(tmp_path):
    folder = cached(tmp_path, "a", 80 * KB, 9)
    taken, go_on = FORK.Event(), FORK.Event()
    readers = [FORK.Process(target=use, args=(folder, taken, go_on)) for _ in range(2)]
    for reader in readers:  # both at once: the lock is shared
        taken.clear()
        reader.start()
        assert taken.wait(30)
    assert make(tmp_path)[0] and folder.is_dir()
    os.kill(readers[0].pid, signal.SIGKILL)
    readers[0].join(10)
    assert make(tmp_path)[0] and folder.is_dir()
    os.kill(readers[1].pid, signal.SIGKILL)
    readers[1].join(10)
    assert make(tmp_path)[0] is None and not folder.exists()


def test_a_lock_outlives_its_parent_in_a_forked_worker_and_not_the_other_way_round(tmp_path):
    folder = cached(tmp_path, "a", 80 * KB, 9)
    lock = lock_in_use(folder)
    worker = FORK.Process(target=lambda: lock.close())
    worker.start()
    worker.join(10)
    assert make(tmp_path)[0] and folder.is_dir()
    go_on = FORK.Event()
    worker = FORK.Process(target=go_on.wait, args=(30,))
    worker.start()
    lock.close()
    assert make(tmp_path)[0] and folder.is_dir()
    go_on.set()
    worker.join(10)
    assert make(tmp_path)[0] is None


def fill_turns(root, name, start, results):
    start.wait(30)
    held = []
    reason, said = make(root, name, hold=lambda: held.append(lock_in_use(root / (name * 12))) or True)
    results.put((name, reason, said))
    time.sleep(1)


def test_two_processes_that_make_room_at_once_stay_within_the_limit(tmp_path):
    for name, used in (("a", 4), ("b", 3), ("c", 2), ("d", 1)):
        cached(tmp_path, name, 24 * KB, used)
    start, results = FORK.Event(), FORK.Queue()
    others = [FORK.Process(target=fill_turns, args=(tmp_path, name, start, results)) for name in "ef"]
    for other in others:
        other.start()
    start.set()
    found = [results.get(timeout=30) for _ in others]
    for other in others:
        other.join(10)
    assert [reason for _, reason, _ in found] == [None, None]
    assert names(tmp_path) == {"e", "f"}  # 40 announced each: not even one of 24 is left beside them
    evicted = [line for _, _, said in found for line in said]
    assert len(evicted) == 4 == len({*evicted})


def test_what_a_killed_eviction_left_is_removed_by_the_next(tmp_path):
    def die(path, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    folder = cached(tmp_path, "a", 80 * KB, 9)

    def evict():
        cache_folders.shutil.rmtree = die
        make(tmp_path)

    killed = FORK.Process(target=evict)
    killed.start()
    killed.join(30)
    assert killed.exitcode == -signal.SIGKILL and not folder.exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(cache_folders.EVICTED)]
    assert make(tmp_path)[0] is None and names(tmp_path) == {"f"}


def test_clearing_removes_what_a_killed_eviction_left(tmp_path):
    (tmp_path / f"{cache_folders.EVICTED}1").mkdir()
    cached(tmp_path, "a", 80 * KB, 9)
    assert len(cache_folders.clear(tmp_path)[0]) == 1
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_evicted_folder_holds_no_open_file(tmp_path, monkeypatch):
    """NFS would keep such a file, and its folder."""
    cached(tmp_path, "a", 80 * KB, 9)
    locks, take, remove = [], cache_folders.lock_unused, cache_folders.shutil.rmtree
    monkeypatch.setattr(cache_folders, "lock_unused", lambda path: locks.append(take(path)) or locks[-1])
    monkeypatch.setattr(cache_folders.shutil, "rmtree", lambda *a, **k: locks[-1].descriptor < 0 and remove(*a, **k))
    assert make(tmp_path)[0] is None and not any(cache_folders.EVICTED in path.name for path in tmp_path.iterdir())


def test_only_folders_of_cached_outputs_count_and_go(tmp_path):
    mine = tmp_path / "my results"
    mine.mkdir()
    (mine / "thesis.pdf").write_bytes(bytes(90 * KB))
    elsewhere = cached(tmp_path / "elsewhere", "b", 90 * KB, 9)
    (tmp_path / ("b" * 12)).symlink_to(elsewhere)
    (tmp_path / ("c" * 12)).write_bytes(bytes(90 * KB))
    old = tmp_path / ("a" * 12)  # of a version that stamped and locked nothing
    old.mkdir()
    (old / "000000-a.safetensors").write_bytes(bytes(90 * KB))
    assert [entry.folder for entry in entries(tmp_path)] == [old] and entries(tmp_path)[0].size == 90 * KB
    assert make(tmp_path)[0] is None and not old.exists()
    assert (mine / "thesis.pdf").exists() and any(elsewhere.iterdir()) and (tmp_path / ("b" * 12)).is_symlink()


def test_a_clock_that_was_ahead_keeps_nothing_for_ever(tmp_path):
    ahead = cached(tmp_path, "a", 40 * KB, -1000)
    cached(tmp_path, "b", 40 * KB, 1)
    assert [entry.folder for entry in entries(tmp_path)][-1] == ahead  # at most as if it were used now
    assert entries(tmp_path)[-1].used <= time.time()


def test_a_disk_that_is_nearly_full_evicts_too(tmp_path, monkeypatch):
    cached(tmp_path, "a", 40 * KB, 1)
    monkeypatch.setattr(cache_folders.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 20 * KB}))
    reason, said = make(tmp_path, limit=10**9)
    assert reason is None and len(said) == 1
    cached(tmp_path, "b", 10 * KB, 1)
    assert "its disk has" in make(tmp_path, limit=10**9)[0] and "b" in names(tmp_path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_folder_that_cannot_be_written_is_a_reason_and_no_failure(tmp_path, monkeypatch, error):
    folder = cached(tmp_path, "a", 80 * KB, 9)

    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(type(folder), "rename", refuse)
    reason, said = make(tmp_path)
    assert error.strerror in reason and not said and folder.is_dir()


def test_another_user_s_folder_is_read_under_a_lock_and_stays(tmp_path, monkeypatch):
    folder = cached(tmp_path, "a", 80 * KB, 9)
    opened = os.open

    def read_only(path, flags, *mode, **options):
        if str(path).startswith(str(folder)) and flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        lock = lock_in_use(folder)
        assert make(tmp_path)[0]  # nor does this user evict what is not theirs
    assert make(tmp_path)[0] and folder.is_dir()  # and its owner sees that it is read
    lock.close()
    assert make(tmp_path)[0] is None


def test_a_file_system_without_locks_evicts_nothing(tmp_path, monkeypatch):
    folder = cached(tmp_path, "a", 80 * KB, 9)

    def none(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder_locks.fcntl, "flock", none)
    assert lock_in_use(folder) is not None
    assert find_room(tmp_path / ("f" * 12), {"layer": 40 * KB}, 40 * KB, 100 * KB)[1] and folder.is_dir()


def test_a_folder_that_is_not_there_is_not_locked(tmp_path):
    assert lock_in_use(tmp_path / "none") is None and not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", ""])
def test_a_limit_that_is_none_is_told(monkeypatch, text):
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(UserError, match=f"{LIMIT} is .*expected GiB as a number"):
        total_limit()
    monkeypatch.setenv(LIMIT, "0.5")
    assert total_limit() == 2**29


def test_a_cache_that_cannot_be_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/inside"):
        with pytest.raises(UserError, match=f"{tmp_path / 'file'} is a file: expected a folder, auto or off"):
            ITRDArguments(str(tmp_path), teacher_cache=str(tmp_path / name))
    monkeypatch.setenv(LIMIT, "ten")
    with pytest.raises(UserError, match="expected GiB"):
        ITRDArguments(str(tmp_path))
    ITRDArguments(str(tmp_path), teacher_cache="off")


def test_runs_with_auto_stay_within_the_limit_and_a_named_folder_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_outputs, "AUTO_FOLDER", tmp_path / "auto")
    other, first = tiny.rows(seed=4), prepare(tmp_path / "a", "auto")
    size = entries(tmp_path / "auto")[0].size
    monkeypatch.setenv(LIMIT, str(1.5 * size / 2**30))
    capsys.readouterr()
    second = prepare(tmp_path / "b", "auto", data=other)  # the first is still there, with its lock
    said = capsys.readouterr().err
    assert second.teacher is not None and "not used, the teacher runs on each batch" in said and LIMIT in said
    os.utime(first.cache.folder / USED, (0, 0))
    again = prepare(tmp_path / "a", "auto")  # reading counts as use
    assert entries(tmp_path / "auto")[0].used > time.time() - 600
    first.cache.release(), again.cache.release()
    second = prepare(tmp_path / "b", "auto", data=other)
    assert second.teacher is None and f"{first.cache.folder} was evicted" in capsys.readouterr().err
    assert [entry.folder for entry in entries(tmp_path / "auto")] == [second.cache.folder]
    second.cache.release()
    for data in (tiny.rows(), other):  # far above the limit
        prepare(tmp_path / "c", tmp_path / "named", data=data)
    assert len(entries(tmp_path / "named")) == 2 and len(entries(tmp_path / "auto")) == 1
