"""The engines themselves: no telemetry, no fallback, no spinning, one line when they fail."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import topcoat.runtime as tr
from topcoat.runtime.backends import find_backend
from topcoat.runtime.bundle import read_model

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]

OPEN_AND_RUN = """
import sys
import numpy as np, topcoat.runtime as tr
with tr.open(sys.argv[1], backend=sys.argv[2], threads=1) as model:
    model.process(np.zeros((9, 9, 3), np.uint8))
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""


def test_an_engine_leaves_no_file_in_the_users_home(
    run_python: Callable[..., Any], tmp_path: Path, blocks: Path, backend: str
) -> None:
    # Both engines' telemetry begins by writing an id or a database there.
    done = run_python("-c", OPEN_AND_RUN, str(blocks), backend, XDG_CACHE_HOME="", CI="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list((tmp_path / "home").rglob("*")) == []


def test_hiding_the_telemetry_package_is_undone_after_the_import(
    run_python: Callable[..., Any], backend: str
) -> None:
    if backend != "openvino-cpu":
        pytest.skip("only openvino has such a package")
    done = run_python(
        "-c",
        "import sys; from topcoat.runtime.backends.openvino import import_openvino as i;"
        " assert i() is i(); print('openvino_telemetry' in sys.modules)",
    )
    assert done.stdout.strip() == "False", done.stderr


def test_telemetry_of_onnxruntime_is_off_before_its_import(
    run_python: Callable[..., Any],
) -> None:
    code = (
        "import os; from topcoat.runtime.backends.onnxruntime import import_onnxruntime as i;"
        " i(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    assert run_python("-c", code, ORT_DISABLE_TELEMETRY="").stdout.strip() == ""
    import os

    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"


def replace_model(edit_manifest: Edit, bundle: Path, data: bytes) -> Path:
    (bundle / "model.fp32.onnx").write_bytes(data)

    def change(manifest: dict[str, Any]) -> None:
        manifest["variants"][0]["sha256"] = hashlib.sha256(data).hexdigest()
        manifest["variants"][0]["bytes"] = len(data)

    return edit_manifest(change)


@pytest.mark.parametrize("data", [b"\x08\x0a", b"garbage", b"\0" * 100])
def test_a_model_that_is_none_gives_one_line(
    edit_manifest: Edit, bundle: Path, backend: str, data: bytes
) -> None:
    path = replace_model(edit_manifest, bundle, data)
    with pytest.raises(tr.TopcoatError) as caught:
        tr.open(path, backend=backend, precision="fp32")
    assert "\n" not in str(caught.value)


def test_a_model_whose_ports_have_other_names_is_refused(edit_manifest: Edit, backend: str) -> None:
    path = edit_manifest(lambda m: m["variants"][0]["input"].update(name="image"))
    with pytest.raises(tr.BackendError, match=r"manifest\.json says 'image' of uint8"):
        tr.open(path, backend=backend, precision="fp32")


def test_a_wrong_size_rule_gives_one_line_and_the_model_goes_on(
    edit_manifest: Edit, backend: str
) -> None:
    path = edit_manifest(lambda m: m["size"].update(multiple=2))
    with tr.open(path, backend=backend, precision="fp32", threads=1) as model:
        with pytest.raises(tr.BackendError, match="failed on a frame of shape") as caught:
            model.process(np.zeros((10, 10, 3), np.uint8))
        assert "\n" not in str(caught.value)
        assert model.process(np.zeros((12, 12, 3), np.uint8)).shape == (12, 12, 3)


def test_a_wrong_scale_gives_one_line_and_no_half_picture(
    edit_manifest: Edit, backend: str
) -> None:
    path = edit_manifest(lambda m: m.update(scale=2))
    with (
        tr.open(path, backend=backend, precision="fp32", threads=1) as model,
        pytest.raises(tr.BackendError, match="failed on a frame of shape"),
    ):
        model.process(np.zeros((12, 12, 3), np.uint8))


def test_an_exporter_can_load_a_model_before_there_are_parity_rows(
    blocks: Path, backend: str
) -> None:
    manifest = tr.read_manifest(blocks)
    variant = manifest.variants[0]
    engine = find_backend(backend)
    assert engine.version()
    engine.start()
    session = engine.load(variant, read_model(manifest, variant), compute="fp32", threads=1)
    source = np.full((1, 8, 8, 3), 100, np.uint8)
    result = np.zeros_like(source)
    session.run(source, result)
    session.close()
    assert (result == 100).all()


def test_onnxruntime_does_not_pretend_to_compute_in_bf16(blocks: Path) -> None:
    manifest = tr.read_manifest(blocks)
    with pytest.raises(tr.BackendError, match="at fp32, not at bf16"):
        find_backend("onnxruntime-cpu").load(manifest.variants[0], b"", compute="bf16", threads=1)


def test_the_command_line_offers_exactly_the_backends_that_there_are() -> None:
    from topcoat.runtime.backends import all_backends
    from topcoat.runtime.cli._shared import BACKEND_NAMES

    assert list(BACKEND_NAMES) == ["auto", *(backend.name for backend in all_backends())]


def test_bf16_is_offered_only_where_the_processor_has_it(blocks: Path) -> None:
    from topcoat.runtime.backends.openvino import OpenVino

    class Core:
        def __init__(self, *capabilities: str) -> None:
            self.capabilities = capabilities

        def get_property(self, device: str, name: str) -> tuple[str, ...]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return self.capabilities

    variant = tr.read_manifest(blocks).variants[0]
    offers = OpenVino("CPU", lambda: Core("FP32", "INT8")).computes(variant)
    assert [(o.compute, o.obstacle is None) for o in offers] == [("bf16", False), ("fp32", True)]
    offers = OpenVino("CPU", lambda: Core("FP32", "BF16")).computes(variant)
    assert all(o.obstacle is None for o in offers)
