"""Checkpoints: what is put in comes out, and whatever happens to the folder, the last whole one is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rerank.errors import Mismatch, TrainingError
from rerank.training import checkpoint
from rerank.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    optimizer_tensors,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
)

ROOT = Path(__file__).parents[1]


def made(step=1):
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3) + step, "scale": torch.tensor(0.5)}
    return Checkpoint({"weights": weights, "best": {"x": torch.ones(3)}}, {"step": step, "best_dev": 0.1, "name": "ä"})


def keep_both(root):
    """Checkpoints of steps 1 and 2 side by side, as a kill between renaming and clearing leaves them."""
    save_checkpoint(root, 1, made(1))
    shutil.copytree(root / "step-000001", root / "kept")
    save_checkpoint(root, 2, made(2))
    (root / "kept").rename(root / "step-000001")


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    path = save_checkpoint(tmp_path / "new" / "folder", 7, made(7))
    assert path.name == "step-000007"
    found = latest_checkpoint(tmp_path / "new" / "folder")
    assert found.state == {"step": 7, "best_dev": 0.1, "name": "ä"}
    assert found.tensors.keys() == {"weights", "best"}
    for name, group in made(7).tensors.items():
        assert all(torch.equal(found.tensors[name][k], v) for k, v in group.items())


def test_tensors_of_every_kind_come_back_as_they_were(tmp_path):
    group = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "view": torch.arange(10)[2:5],
        "half": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "empty": torch.zeros(0),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    save_checkpoint(tmp_path, 1, Checkpoint({"weights": group}, {}))
    for name, value in latest_checkpoint(tmp_path).tensors["weights"].items():
        assert value.dtype == group[name].dtype
        assert torch.equal(value.nan_to_num(7.0), group[name].detach().nan_to_num(7.0)), name


def test_only_the_newest_is_kept_and_nothing_half_written(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, made(step))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000010"]
    assert latest_checkpoint(tmp_path).state["step"] == 10


def test_a_step_may_be_saved_again(tmp_path):
    save_checkpoint(tmp_path, 3, made(3))
    save_checkpoint(tmp_path, 3, made(4))
    assert latest_checkpoint(tmp_path).state["step"] == 4


def test_there_is_nothing_to_find_where_nothing_is(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None
    remove_checkpoints(tmp_path / "nowhere")


def test_removing_leaves_nothing(tmp_path):
    save_checkpoint(tmp_path / "a", 3, made(3))
    remove_checkpoints(tmp_path / "a")
    assert latest_checkpoint(tmp_path / "a") is None
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path):
    path = save_checkpoint(tmp_path, 1, made())
    assert sorted(p.name for p in path.iterdir()) == [
        "best.safetensors",
        "manifest.json",
        "state.json",
        "weights.safetensors",
    ]
    for file in path.glob("*.json"):
        json.loads(file.read_text(encoding="utf8"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink, lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_a_torn_checkpoint_is_passed_over_aloud_for_the_one_before(name, harm, tmp_path, caplog):
    keep_both(tmp_path)
    harm(tmp_path / "step-000002" / name)
    assert latest_checkpoint(tmp_path).state["step"] == 1
    assert "step-000002 is passed over" in caplog.text


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', '{"format": "x", "files": {}}', "null"])
def test_a_manifest_that_is_no_manifest_is_passed_over(content, tmp_path, caplog):
    keep_both(tmp_path)
    (tmp_path / "step-000002" / "manifest.json").write_text(content)
    assert latest_checkpoint(tmp_path).state["step"] == 1
    assert "manifest" in caplog.text


def test_when_all_are_torn_there_is_none(tmp_path, caplog):
    path = save_checkpoint(tmp_path, 1, made())
    (path / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert "no manifest" in caplog.text


def test_what_a_kill_left_half_written_is_not_seen(tmp_path):
    save_checkpoint(tmp_path, 1, made(1))
    shutil.copytree(tmp_path / "step-000001", tmp_path / ".tmp-0123")
    (tmp_path / "step-000009").write_text("a file")
    assert latest_checkpoint(tmp_path).state["step"] == 1


def test_a_checkpoint_of_a_newer_version_asks_for_an_upgrade(tmp_path):
    path = save_checkpoint(tmp_path, 1, made())
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(Mismatch, match=r"newer rerank .*format 2.*; upgrade to resume"):
        latest_checkpoint(tmp_path)


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["os.replace", "save_file", "_fsync", "Path.write_text"])
def test_a_full_disk_is_told_and_keeps_the_earlier_checkpoint(where, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, made(1))
    with monkeypatch.context() as full:
        if where == "os.replace":
            full.setattr(os, "replace", no_space)
        elif where == "Path.write_text":
            full.setattr(Path, "write_text", no_space)
        else:
            full.setattr(checkpoint, where, no_space)
        with pytest.raises(TrainingError, match=r"step 2 could not be written .*No space left.*--resume"):
            save_checkpoint(tmp_path, 2, made(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert latest_checkpoint(tmp_path).state["step"] == 1
    save_checkpoint(tmp_path, 2, made(2))
    assert latest_checkpoint(tmp_path).state["step"] == 2


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from rerank.errors import TrainingError
from rerank.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint

root = Path(sys.argv[1])
save_checkpoint(root, 1, Checkpoint({"weights": {"w": torch.ones(4)}}, {"step": 1}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_checkpoint(root, 2, Checkpoint({"weights": {"w": torch.ones(100_000)}}, {"step": 2}))
except TrainingError as error:
    assert "earlier ones are intact" in str(error), error
    assert latest_checkpoint(root).state == {"step": 1}
    assert [p.name for p in root.iterdir()] == ["step-000001"]
    print("told")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_write_that_the_system_itself_cuts_short_is_told_and_keeps_the_earlier_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "told\n", done.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from rerank.training import checkpoint

root, n = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
original = checkpoint._fsync

def fsync(path):
    global calls
    original(path)
    calls += 1
    if calls == n:
        os.kill(os.getpid(), signal.SIGKILL)

tensors = {"weights": {"w": torch.ones(100)}, "optimizer": {"0/m": torch.ones(100)}}
checkpoint.save_checkpoint(root, 1, checkpoint.Checkpoint(tensors, {"step": 1}))
checkpoint._fsync = fsync
checkpoint.save_checkpoint(root, 2, checkpoint.Checkpoint(tensors, {"step": 2}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("n", "step"), [(1, 1), (4, 1), (5, 2)])
def test_a_kill_while_writing_leaves_a_whole_checkpoint(n, step, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(n)], cwd=ROOT, timeout=60)
    assert done.returncode == -9
    assert latest_checkpoint(tmp_path).state == {"step": step}


def test_an_optimizer_goes_on_with_the_same_bits(tmp_path):
    def problem():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def learn(model, optimizer, steps):
        for i in range(steps):
            optimizer.zero_grad()
            (model(torch.full((1, 3), float(i))) ** 2).sum().backward()
            optimizer.step()

    whole, whole_optimizer = problem()
    learn(whole, whole_optimizer, 3)
    save_checkpoint(
        tmp_path, 3, Checkpoint({"w": whole.state_dict(), "o": optimizer_tensors(whole_optimizer)}, {"step": 3})
    )
    learn(whole, whole_optimizer, 3)
    again, optimizer = problem()
    found = latest_checkpoint(tmp_path)
    again.load_state_dict(found.tensors["w"])
    restore_optimizer(optimizer, found.tensors["o"])
    learn(again, optimizer, 3)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
