"""Reading a bundle: what is accepted, and one line for everything that is not."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import topcoat.runtime as tr

Edit = Callable[[Callable[[dict[str, Any]], object]], Path]


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_the_manifest_is_parsed_into_frozen_dataclasses(blocks: Path) -> None:
    manifest = tr.read_manifest(blocks)
    assert manifest.name == "blocks"
    assert (manifest.scale, manifest.channels, manifest.task) == (1, 3, "style")
    assert manifest.size == tr.SizeRule(multiple=4, min=8, max=None, pad="edge")
    assert [v.precision for v in manifest.variants] == ["fp32", "fp16"]
    assert manifest.folder == blocks.absolute()
    row = manifest.variants[0].parity_row("onnxruntime-cpu", "fp32")
    assert row is not None
    assert row.passed
    assert row.photographs["max_steps"] <= 1
    assert manifest.variants[0].parity_row("onnxruntime-cpu", "bf16") is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        manifest.files["x"] = 1  # type: ignore[index]


def test_halo_and_memory_are_read_where_the_bundle_says_them(blocks: Path) -> None:
    manifest = tr.read_manifest(blocks.with_name("local4.topcoat"))
    assert manifest.task == "super-resolution"
    assert manifest.size == tr.SizeRule(multiple=1, min=2, max=None, pad="edge", halo=2)
    assert manifest.memory_per_pixel == 576
    assert tr.read_manifest(blocks.with_name("local2.topcoat")).memory_per_pixel is None
    assert tr.read_manifest(blocks).size.halo is None


def test_halo_and_memory_may_be_null(edit_manifest: Edit) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["size"]["halo"] = manifest["memory_per_pixel"] = None

    manifest = tr.read_manifest(edit_manifest(change))
    assert (manifest.size.halo, manifest.memory_per_pixel) == (None, None)
    assert tr.read_manifest(edit_manifest(lambda m: m["size"].update(halo=0))).size.halo == 0


def test_the_path_of_the_manifest_itself_will_do(blocks: Path) -> None:
    assert tr.read_manifest(blocks / "manifest.json") == tr.read_manifest(blocks)


def test_every_hash_of_the_fixture_bundles_matches(blocks: Path, double: Path) -> None:
    assert tr.verify_files(blocks).name == "blocks"
    assert tr.verify_files(tr.read_manifest(double)).name == "double"
    for name in ("local2", "local4", "local8"):
        assert tr.verify_files(blocks.with_name(f"{name}.topcoat")).name == name


def test_keys_that_this_version_does_not_know_are_ignored(edit_manifest: Edit) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["colour_of_the_sky"] = "blue"
        manifest["size"]["shape"] = "round"
        manifest["variants"][0]["parity"][0]["synthetic"] = {"max_steps": 2}

    assert tr.verify_files(edit_manifest(change)).name == "blocks"


@pytest.mark.parametrize("file", ["model.fp32.onnx", "card.md"])
def test_a_changed_byte_is_found_and_named(bundle: Path, file: str) -> None:
    data = bytearray((bundle / file).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / file).write_bytes(data)
    with pytest.raises(tr.BundleIntegrityError, match="damaged or was changed") as caught:
        tr.verify_files(bundle)
    assert file in one_line(caught.value)


def test_a_changed_model_is_not_opened(bundle: Path) -> None:
    data = bytearray((bundle / "model.fp32.onnx").read_bytes())
    data[-40] ^= 1
    (bundle / "model.fp32.onnx").write_bytes(data)
    with pytest.raises(tr.BundleIntegrityError, match=r"model\.fp32\.onnx"):
        tr.open(bundle, backend="onnxruntime-cpu")


@pytest.mark.parametrize("file", ["model.fp16.onnx", "card.md"])
def test_a_missing_file_is_named(bundle: Path, file: str) -> None:
    (bundle / file).unlink()
    with pytest.raises(tr.BundleError, match=r"is listed in .* but cannot be opened") as e:
        tr.read_manifest(bundle)
    assert file in one_line(e.value)


def test_a_cut_file_is_found_without_reading_it(bundle: Path) -> None:
    data = (bundle / "model.fp32.onnx").read_bytes()
    (bundle / "model.fp32.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(tr.BundleIntegrityError, match=r"manifest\.json says 953"):
        tr.read_manifest(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../model.fp32.onnx",
        "/etc/passwd",
        "sub/model.onnx",
        "sub\\model.onnx",
        "C:model.onnx",
        "..",
        ".",
        "",
        "a\0b",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("where", ["variant", "files"])
def test_a_path_that_leads_out_of_the_folder_is_refused(
    edit_manifest: Edit, name: str, where: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if where == "variant":
            manifest["variants"][0]["file"] = name
        else:
            manifest["files"][name] = manifest["files"]["card.md"]

    with pytest.raises(tr.BundleError) as caught:
        tr.read_manifest(edit_manifest(change))
    assert "manifest.json" in one_line(caught.value)


def test_a_link_that_leads_out_of_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.onnx"
    shutil.move(bundle / "model.fp32.onnx", outside)
    (bundle / "model.fp32.onnx").symlink_to(outside)
    with pytest.raises(tr.BundleError, match="link that leads outside the bundle"):
        tr.read_manifest(bundle)
    with pytest.raises(tr.BundleError, match="link that leads outside the bundle"):
        tr.open(bundle)


def test_a_manifest_that_is_a_link_to_outside_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "manifest.json", tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(tr.BundleError, match="link that leads outside"):
        tr.read_manifest(bundle)


def test_a_bundle_that_is_itself_reached_by_a_link_is_fine(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "latest.topcoat").symlink_to(blocks, target_is_directory=True)
    assert tr.verify_files(tmp_path / "latest.topcoat").name == "blocks"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_file_does_not_block(bundle: Path) -> None:
    (bundle / "card.md").unlink()
    os.mkfifo(bundle / "card.md")
    with pytest.raises(tr.BundleError, match="not an ordinary file"):
        tr.read_manifest(bundle)


def test_a_newer_format_version_says_what_to_update(edit_manifest: Edit) -> None:
    path = edit_manifest(lambda manifest: manifest.update(format_version=2))
    with pytest.raises(tr.BundleVersionError) as caught:
        tr.open(path)
    text = one_line(caught.value)
    assert "version 2" in text
    assert "reads version 1" in text
    assert "update topcoat-runtime" in text


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(tr.BundleError, match=r"nope\.topcoat does not exist"):
        tr.open(tmp_path / "nope.topcoat")


def test_an_empty_folder_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(tr.BundleError, match="is empty; it is not a bundle"):
        tr.open(tmp_path)


def test_a_folder_of_other_things_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(tr.BundleError, match=r"holds no manifest\.json"):
        tr.open(tmp_path)


def test_a_checkpoint_is_told_to_go_through_the_export(tmp_path: Path) -> None:
    (tmp_path / "candy.pt").write_bytes(b"PK")
    with pytest.raises(tr.BundleError, match=r"`export-engine candy\.pt`"):
        tr.open(tmp_path / "candy.pt")


def test_a_bare_onnx_file_is_not_a_bundle(blocks: Path) -> None:
    with pytest.raises(tr.BundleError, match="bare ONNX file"):
        tr.open(blocks / "model.fp32.onnx")


def test_another_file_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(tr.BundleError, match="is a file; the runtime wants a bundle"):
        tr.open(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "'format' is 'list'"),
        (b"{}", "'format' is None"),
        (b'{"format": "other"}', "'format' is 'other'"),
        (b'{"format": "topcoat-bundle"}', "format_version is missing"),
        (b'{"format": "topcoat-bundle", "format_version": "1"}', "whole number"),
        (b'{"format": "topcoat-bundle", "format_version": true}', "whole number"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(bundle: Path, text: bytes, says: str) -> None:
    (bundle / "manifest.json").write_bytes(text)
    with pytest.raises(tr.BundleError) as caught:
        tr.open(bundle)
    assert says in one_line(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop("size"), "size is missing"),
        (lambda m: m.update(size=4), "size is 4, wanted an object"),
        (lambda m: m["size"].update(min=6), "wanted a multiple of size.multiple (4)"),
        (lambda m: m["size"].update(multiple=0), "size.multiple is 0"),
        (lambda m: m["size"].update(max=4), "size.max is 4"),
        (lambda m: m["size"].update(halo=-1), "size.halo is -1, wanted a whole number"),
        (lambda m: m["size"].update(halo="all"), "size.halo is 'all'"),
        (lambda m: m.update(memory_per_pixel=0), "memory_per_pixel is 0, wanted a whole number"),
        (lambda m: m.update(memory_per_pixel=1.5), "memory_per_pixel is 1.5"),
        (lambda m: m["size"].update(pad="reflect"), "size.pad is 'reflect'"),
        (lambda m: m.update(channels=4), "channels is 4"),
        (lambda m: m.update(scale=0), "scale is 0"),
        (lambda m: m.update(scale=2.5), "scale is 2.5"),
        (lambda m: m.update(variants=[]), "variants is empty"),
        (lambda m: m.update(variants={}), "variants is {}"),
        (lambda m: m["variants"].append(m["variants"][0]), "names one file twice"),
        (lambda m: m["variants"][0].update(sha256="ABC"), "64 lower-case"),
        (lambda m: m["variants"][0].update(bytes=-1), "variants[0].bytes is -1"),
        (lambda m: m["variants"][0].update(precision="int3"), "variants[0].precision"),
        (lambda m: m["variants"][0]["input"].update(dtype="float32"), "variants[0].input.dtype"),
        (lambda m: m["variants"][0]["output"].update(layout="NCHW"), "variants[0].output.layout"),
        (lambda m: m["variants"][0]["parity"][0].update(passed=1), "wanted true or false"),
        (lambda m: m["variants"][0].pop("parity"), "variants[0].parity is missing"),
        (lambda m: m["files"].update({"card.md": {}}), "sha256 is missing"),
        (lambda m: m["files"].update({"model.fp32.onnx": {}}), "is also a variant"),
        (lambda m: m.update(name=""), "name is ''"),
        (lambda m: m.update(checkpoint=[1]), "checkpoint is [1]"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wanted(
    edit_manifest: Edit, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(tr.BundleError) as caught:
        tr.read_manifest(edit_manifest(change))
    assert says in one_line(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_manifest_makes_the_reader_fail_in_another_way(
    data: st.DataObject, blocks: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = json.loads((blocks / "manifest.json").read_text())
    # Walk to a random place and put a random value there.
    at: Any = manifest
    while True:
        keys: list[Any] = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans())):
            at[key] = data.draw(JSON)
            break
        at = at[key]
    folder = tmp_path_factory.mktemp("fuzz") / "b.topcoat"
    shutil.copytree(blocks, folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        tr.read_manifest(folder)
    except tr.BundleError as error:
        one_line(error)


# ---------------------------------------------------------------------------------------- engines


def engine_entry(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "library": "tensorrt_rtx",
        "version": "1.7.1.116",
        "targets": ["sm89"],
        "driver": None,
        "profiles": [{"min": [16, 16], "opt": [48, 64], "max": [256, 256]}],
        "key": "5c" * 32,
        **changes,
    }


def test_an_engine_says_what_it_was_built_for(edit_manifest: Edit) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["variants"][0] |= {"kind": "tensorrt-rtx", "engine": engine_entry()}

    engine = tr.read_manifest(edit_manifest(change)).variants[0].engine
    assert engine is not None
    (profile,) = engine.profiles
    assert str(profile) == "16x16:64x48:256x256"
    assert profile.holds(16, 256)
    assert not profile.holds(15, 64)
    assert not profile.holds(48, 257)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"library": "tensorrt"}, "wanted 'tensorrt_rtx'"),
        ({"version": None}, "engine.version is None"),
        ({"targets": []}, "engine.targets is \\[\\]"),
        ({"targets": "sm89"}, "wanted a list"),
        ({"profiles": []}, "wanted the sizes"),
        ({"profiles": [{"min": [1], "opt": [1, 1], "max": [2, 2]}]}, "wanted height and width"),
        ({"profiles": [{"min": [0, 1], "opt": [1, 1], "max": [2, 2]}]}, "whole numbers from 1 up"),
        ({"profiles": [{"min": [4, 4], "opt": [2, 8], "max": [8, 8]}]}, "between min and max"),
        ({"key": "abc"}, "64 lower-case"),
        ({"driver": 580}, "engine.driver is 580"),
        ({"platform": ["linux"]}, "engine.platform is"),
    ],
)
def test_an_engine_entry_that_makes_no_sense_is_refused(
    edit_manifest: Edit, changes: dict[str, Any], words: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["variants"][0] |= {"kind": "tensorrt-rtx", "engine": engine_entry(**changes)}

    with pytest.raises(tr.BundleError, match=words):
        tr.read_manifest(edit_manifest(change))


def test_a_row_holds_for_its_own_device_alone(edit_manifest: Edit) -> None:
    def change(manifest: dict[str, Any]) -> None:
        row = {"backend": "tensorrt-rtx", "compute": "fp32", "passed": True, "device": "sm89"}
        manifest["variants"][0] |= {"kind": "tensorrt-rtx", "engine": engine_entry()}
        manifest["variants"][0]["parity"] = [row]

    variant = tr.read_manifest(edit_manifest(change)).variants[0]
    assert variant.parity_row("tensorrt-rtx", "fp32", "sm89") is not None
    assert variant.parity_row("tensorrt-rtx", "fp32", "sm120") is None
    assert variant.parity_row("tensorrt-rtx", "fp32") is None
