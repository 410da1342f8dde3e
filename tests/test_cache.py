"""The disk cache: round trips, damage, foreign files, privacy, and many processes at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tiledsl import config, ir
from tiledsl.backend import Artifact, Entry, Site, Workspace
from tiledsl.dtypes import as_dtype
from tiledsl.errors import Loc
from tiledsl.ir import build
from tiledsl.runtime import artifacts, cache

KEY = "ab" * 32
ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path):
    made = cache.DiskCache(tmp_path / "cache")
    assert made.problem() is None
    return made


def test_round_trip(store):
    assert store.get(KEY) is None
    store.put(KEY, {"a": [1, "x", None]}, b"\x00code\xff")
    assert store.get(KEY) == ({"a": [1, "x", None]}, b"\x00code\xff")
    store.put(KEY, {}, b"")
    assert store.get(KEY) == ({}, b"")
    assert store.size() == (1, store.path(KEY).stat().st_size)


def test_every_kind_of_damage_is_a_miss(store):
    store.put(KEY, {"a": 1}, b"code" * 10)
    path = store.path(KEY)
    good = path.read_bytes()
    damaged = [b"", good[:5], good[:40], good[:-1], good + b"x", b"other" + good]
    damaged += [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for text in damaged:
        path.write_bytes(text)
        assert store.get(KEY) is None
    store.put(KEY, {"a": 2}, b"new")
    assert store.get(KEY) == ({"a": 2}, b"new")


def test_a_file_under_another_key_is_a_miss(store):
    store.put(KEY, {}, b"code")
    other = "cd" * 32
    store.path(other).write_bytes(store.path(KEY).read_bytes())
    assert store.get(other) is None


def test_a_link_is_not_followed(store, tmp_path):
    store.put(KEY, {}, b"code")
    elsewhere = tmp_path / "elsewhere"
    store.path(KEY).rename(elsewhere)
    store.path(KEY).symlink_to(elsewhere)
    assert store.get(KEY) is None
    store.put(KEY, {}, b"mine")
    assert store.get(KEY) == ({}, b"mine") and elsewhere.exists()


def test_the_folder_is_private(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    os.chmod(folder, 0o777)
    assert cache.DiskCache(folder).problem() is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_trusted_is_not_used(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be used" in cache.DiskCache(file).problem()
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert "not a folder" in cache.DiskCache(link).problem()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "belongs to another user" in cache.DiskCache(tmp_path / "theirs").problem()
    with config.CACHE_DIR.override(str(tmp_path / "theirs")):
        assert cache.default_cache() is None


def test_a_file_of_another_user_is_a_miss(store, monkeypatch):
    store.put(KEY, {}, b"code")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert store.get(KEY) is None


def test_a_full_disk_is_an_empty_cache(store, monkeypatch):
    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    store.put(KEY, {}, b"code")
    assert store.get(KEY) is None
    assert list(store.root.iterdir()) == []  # nothing half-written stays


def test_knobs(tmp_path):
    with config.CACHE_DIR.override(str(tmp_path / "here")):
        assert cache.folder() == tmp_path / "here"
        assert cache.default_cache().root == tmp_path / "here"
        with config.DISABLE_CACHE.override(True):
            assert cache.default_cache() is None


def test_eight_processes_write_and_read_the_same_keys(tmp_path):
    """Each process writes its own version of ten artifacts, damages some files, and reads all: what it reads is
    always one of the versions, complete."""
    program = textwrap.dedent(
        """
        import random, sys
        from pathlib import Path
        from tiledsl.runtime.cache import DiskCache
        me, folder = int(sys.argv[1]), Path(sys.argv[2])
        store, rng = DiskCache(folder), random.Random(me)
        assert store.problem() is None
        hits = 0
        for step in range(150):
            i = rng.randrange(10)
            key = f"{i:064x}"
            action = rng.random()
            if action < 0.4:
                store.put(key, {"by": me, "i": i}, bytes([me]) * 20000)
            elif action < 0.5:
                path = store.path(key)
                if path.exists():
                    path.write_bytes(path.read_bytes()[: rng.randrange(20000)])
            found = store.get(key)
            if found is not None:
                data, code = found
                assert data["i"] == i and code == bytes([data["by"]]) * 20000
                hits += 1
        print(hits)
        """
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(me), str(tmp_path / "shared")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(8)
    ]
    hits = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        hits.append(int(out))
    assert sum(hits) > 8 * 20
    assert not list((tmp_path / "shared").glob(".new-*"))


# -- artifacts -----------------------------------------------------------------------------------------------------


def test_artifacts_survive_the_disk(store):
    i32, i64 = as_dtype("int32"), as_dtype("int64")
    m, n = ir.Var("m", i32), ir.Var("n", i64)
    blocks = build.ceildiv(m, 64)
    chosen = ir.Select(ir.Binary("lt", n, ir.Const(7, i64)), ir.Cast(m, i64), ir.Unary("neg", n))
    artifact = Artifact(
        source="text",
        code=b"\x7fELF",
        host_vars=(m, n),
        entries=(Entry("k0", (blocks, chosen), 4096), Entry("k1", (ir.Const(3, i32),), 0)),
        workspaces=(Workspace(as_dtype("bfloat16"), (m, ir.Const(8, i32))),),
        sites=(Site("assert", "must hold", (i32, as_dtype("bool")), Loc("a.py", 3, 5, 9, "f")), Site("print", "x")),
        meta={"any": ["json", 1]},
    )
    store.put(KEY, artifacts.to_json(artifact), artifact.code)
    back = artifacts.from_json(*store.get(KEY))
    assert [v.name for v in back.host_vars] == ["m", "n"] and back.host_vars[1].dtype is i64
    from tiledsl.analysis.evaluate import evaluate

    for values in ((1, 1), (64, 100), (65, -3), (1000, 7)):
        old, new = dict(zip((m, n), values, strict=True)), dict(zip(back.host_vars, values, strict=True))
        for a, b in zip(artifact.entries, back.entries, strict=True):
            assert (a.symbol, a.scratch_bytes) == (b.symbol, b.scratch_bytes)
            assert [evaluate(x, old) for x in a.grid] == [evaluate(x, new) for x in b.grid]
        shapes = [[evaluate(x, e) for x in w.workspaces[0].shape] for w, e in ((artifact, old), (back, new))]
        assert shapes[0] == shapes[1]
    assert back.sites == artifact.sites and back.meta == artifact.meta and back.code == artifact.code
    assert back.source == "text" and back.workspaces[0].dtype is as_dtype("bfloat16")


def test_only_host_expressions_are_stored():
    buffer = ir.Buffer("A", as_dtype("int32"), (), "global")
    artifact = Artifact("text", entries=(Entry("k", (ir.Load(buffer, ()),)),))
    with pytest.raises(TypeError, match="no host expression"):
        artifacts.to_json(artifact)
