"""Files are whole or not there, and a changed one is noticed."""

import errno
import json
import os
import random

import pytest

from itrd_nlp.utils.errors import DamagedError, UserError, writing
from itrd_nlp.utils.hashing import digests, first_damage
from itrd_nlp.utils.io import read_json, write_json

INNER = {"b": [], "a": True, "label": "[4, 8, 12]"}
VALUES = {"f1": 88.5, "each": [1.0, 2.5], "name": "größer", "nothing": None, "inner": INNER}


def test_what_is_read_is_what_was_written(tmp_path):
    write_json(tmp_path / "x.json", VALUES)
    assert read_json(tmp_path / "x.json") == VALUES
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.promise("damaged on disk")
@pytest.mark.parametrize("seed", range(20))
def test_any_changed_bit_and_any_missing_end_is_noticed(tmp_path, seed):
    path, draw = tmp_path / "x.json", random.Random(seed)
    write_json(path, VALUES)
    whole = path.read_bytes()
    place = draw.randrange(len(whole) - 1)
    path.write_bytes(whole[:place])
    with pytest.raises(DamagedError, match="x.json"):
        read_json(path)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(7)]) + whole[place + 1 :])
    try:
        found = read_json(path)
    except DamagedError:
        return
    # white space, or the key of the digest itself: then an unknown key tells
    assert found == VALUES or {*found} - {*VALUES}


def test_a_file_written_by_hand_has_no_digest(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(VALUES))
    assert read_json(tmp_path / "x.json") == VALUES
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(DamagedError, match="expected a JSON object, found list"):
        read_json(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "x.json", VALUES)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"x": object()})
    assert read_json(tmp_path / "x.json") == VALUES and len(list(tmp_path.iterdir())) == 1


def test_only_failures_of_the_system_are_failures_to_write(tmp_path):
    with pytest.raises(UserError, match=r"x cannot be written \(No space left on device\)"), writing("x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="no such model"), writing("x"):  # as libraries raise it
        raise OSError("no such model")


def test_damage_names_the_file(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "in/b"):
        (tmp_path / name).write_text(name)
    made = digests(tmp_path, [tmp_path / "a", tmp_path / "in" / "b"])
    assert [*made] == ["a", "in/b"] and first_damage(tmp_path, made) is None
    (tmp_path / "in" / "b").write_text("c")
    assert first_damage(tmp_path, made) == "in/b is damaged"
    (tmp_path / "a").unlink()
    assert first_damage(tmp_path, made) == "a is missing"
