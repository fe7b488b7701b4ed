"""How much memory is left: what Linux says, in containers too; and a frame for which it is not."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from topcoat.runtime._memory import available_memory

GIB = 1 << 30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def machine(root: Path, cgroup: str, files: dict[str, object] | None = None) -> Path:
    meminfo = f"MemTotal: 99999999 kB\nMemAvailable:   {8 * GIB // 1024} kB"
    common: dict[str, object] = {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup}
    return write(root, common | (files or {}))


def test_a_machine_without_limits_has_what_meminfo_says(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path, "0::/")) == 8 * GIB
    unlimited = {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": 5}
    assert available_memory(machine(tmp_path, "0::/", unlimited)) == 8 * GIB


def test_a_control_group_leaves_what_is_not_used(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/job/"
    files: dict[str, object] = {
        group + "memory.max": 3 * GIB,
        group + "memory.current": 2 * GIB,
        group + "memory.stat": f"anon 5\ninactive_file {GIB // 2}",
    }
    assert available_memory(machine(tmp_path, "0::/user/job", files)) == 3 * GIB // 2


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "sys/fs/cgroup/user/memory.max": GIB,
        "sys/fs/cgroup/user/memory.current": GIB // 4,
        "sys/fs/cgroup/user/job/memory.max": 3 * GIB,
        "sys/fs/cgroup/user/job/memory.current": 0,
    }
    assert available_memory(machine(tmp_path, "0::/user/job", files)) == GIB * 3 // 4


def test_version_1_and_a_path_of_the_host(tmp_path: Path) -> None:
    # In a container, /proc names the host's path and the group itself lies at the top.
    files: dict[str, object] = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GIB,
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}",
    }
    root = machine(tmp_path, "5:cpu:/\n4:memory:/docker/0123\n0::/", files)
    assert available_memory(root) == GIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "sys/fs/cgroup/memory.max": GIB,
        "sys/fs/cgroup/memory.current": 2 * GIB,
    }
    assert available_memory(machine(tmp_path, "0::/", files)) == 0


def test_where_nobody_says_it_is_half_of_the_machine_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    half = available_memory(tmp_path)
    if hasattr(os, "sysconf"):
        assert half == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        monkeypatch.delattr(os, "sysconf")  # Windows
    assert available_memory(tmp_path) is None


def test_this_machine_has_a_believable_amount() -> None:
    left = available_memory()
    assert left is None or (1 << 20) < left < (1 << 46)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process to RLIMIT_AS")
def test_a_result_that_does_not_fit_into_memory_is_one_line(
    run_python: Callable[..., Any], tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.new("RGB", (3200, 3200)).save(tmp_path / "large.png")
    bundle = Path(__file__).parent / "data" / "local8.topcoat"
    arguments = ["run", "large.png", "o.png", "--model", str(bundle), "--tile", "64"]
    code = (
        "import os, resource, sys\n"
        "from topcoat.runtime.cli.topcoat import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        # The picture takes 31 MB, the engine some hundred MB, the result 2.0 GB.
        "resource.setrlimit(resource.RLIMIT_AS, (1500 << 20, 1500 << 20))\n"
        f"sys.exit(main({[*arguments, '--backend', 'onnxruntime-cpu', '--threads', '1']!r}))"
    )
    done = run_python("-c", code)
    assert done.stderr == (
        "topcoat: the result of 25600x25600 pixels would take 2.0 GB, more memory than this process"
        " can get; give a smaller frame, or cut it into parts\n"
    )
    assert done.returncode == 2
    assert not (tmp_path / "o.png").exists()
