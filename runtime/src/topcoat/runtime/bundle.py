"""Read a bundle: parse manifest.json, keep every path inside the folder, compare every hash.

The format is specified in docs/bundle.md. Nothing in a bundle is ever executed: the manifest is
JSON, and a model is handed to an inference engine as the bytes whose hash was just compared.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from topcoat.runtime._builtin import builtin_models, find_bundle, tell_unreadable, with_record
from topcoat.runtime._errors import BundleError, BundleIntegrityError, BundleVersionError
from topcoat.runtime._onnx_scan import external_data_location

FORMAT = "topcoat-bundle"
FORMAT_VERSION = 1
"""The only manifest version that this runtime reads."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

ENGINE_KINDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Kind of a variant that is a built engine -> the Python module whose library runs it."""

TEXTURE = "texture"
"""The task whose frames are noise: sizes are taken as they are or refused, never padded."""

_MANIFEST_LIMIT = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """Which frame sizes the network itself takes; others are padded, or refused for a texture."""

    multiple: int
    """Height and width given to the engine are multiples of this."""
    min: int
    """... and at least this; itself a multiple of ``multiple``."""
    max: int | None
    """... and at most this, or any size if None."""
    pad: str
    """How the missing rows and columns are made; "edge" repeats the last one."""
    halo: int | None = None
    """Output pixels depend on input pixels at most this many away (the larger of the distances
    along x and y), which lets the runtime cut a frame into tiles; None: on the whole frame, or the
    bundle does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Name, element type and layout of a model's input or output."""

    name: str
    dtype: str
    layout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Frame sizes, each (height, width), that a built engine takes, one frame at a time."""

    min: tuple[int, int]
    opt: tuple[int, int]
    """The size that the engine was tuned for."""
    max: tuple[int, int]

    def holds(self, height: int, width: int) -> bool:
        """Return whether a frame of this size lies between ``min`` and ``max``."""
        return (
            self.min[0] <= height <= self.max[0] and self.min[1] <= width <= self.max[1]
        )  # fmt: skip

    def __str__(self) -> str:
        sizes = [f"{width}x{height}" for height, width in (self.min, self.opt, self.max)]
        return sizes[0] if len(set(sizes)) == 1 else ":".join(sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a built engine was built by, and where it can run."""

    library: str
    """The Python module that built it: "tensorrt" or "tensorrt_rtx"."""
    version: str
    """... and its version; another one may refuse the engine."""
    targets: tuple[str, ...]
    """The GPU generations that it was built for, e.g. ("sm89", "sm120")."""
    driver: str | None
    """Major version of the driver that it was built with; None if it was built without a GPU."""
    profiles: tuple[Profile, ...]
    key: str
    """Hash of everything that the engine was made from; equal keys are equal engines."""
    platform: str | None = None
    """The operating system and processor that it is for, e.g. "linux-x86_64"; None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """What was measured for one backend at one compute precision."""

    backend: str
    compute: str
    passed: bool
    photographs: Mapping[str, float]
    """Figures on photographs, e.g. max_steps, psnr_db, changed, within_4_steps; may be empty."""
    noise: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """The same figures on noise: what a texture has in their place."""
    device: str | None = None
    """The kind of device that it was measured on and holds for, e.g. "sm89"; None: any."""
    where: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """For people: what that device was, its driver and library; may be empty."""
    reference: str | None = None
    """For people: what it was compared with; None if the bundle does not say."""
    sizes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """For people: the sizes that a built engine was made for, e.g. "1920x1080" (width x height),
    each with "compared" or why it was not; empty if the bundle does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model file of a bundle, and the backends on which it was compared with the network."""

    file: str
    sha256: str
    bytes: int
    kind: str
    precision: str
    opset: int | None
    input: Port
    output: Port
    parity: tuple[ParityRow, ...]
    engine: EngineInfo | None = None
    """Of a built engine; None for a model."""

    def parity_row(self, backend: str, compute: str, device: str | None = None) -> ParityRow | None:
        """Return the row for this backend, compute precision and device, or None.

        A row without a device holds for every one; a row of another device does not count.
        """
        for row in self.parity:
            if (row.backend, row.compute) == (backend, compute) and row.device in (None, device):
                return row
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Hash and size of a file that is not a model: a card, a report, a golden picture."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A parsed and checked manifest.json."""

    folder: Path
    """The bundle's folder, absolute."""
    format_version: int
    name: str
    task: str
    scale: int
    """Output height and width are this many times the input's."""
    channels: int
    size: SizeRule
    made_by: Mapping[str, str]
    checkpoint: Mapping[str, Any]
    variants: tuple[Variant, ...]
    files: Mapping[str, FileEntry]
    memory_per_pixel: int | None = None
    """About how many bytes an engine works with at its peak per input pixel, computing in fp32;
    None if the bundle does not say."""
    description: str | None = None
    """For people: what it is, in one line; None if the bundle does not say."""


def this_platform() -> str:
    """Return what :attr:`EngineInfo.platform` is for engines of this machine's system.

    >>> this_platform().count("-")
    1
    """
    return f"{sys.platform}-{platform.machine().lower()}"


def read_manifest(path: str | Path) -> Manifest:
    """Read and check the manifest of a bundle, without reading its models.

    Args:
        path: the bundle's folder (``NAME.topcoat``), the manifest.json inside it, or the name of a
            built-in model, whose rows of parity are then those that were recorded here, too.

    Returns:
        The parsed manifest. Keys that this version does not know are ignored. Every file that it
        names exists in the folder and has the stated size; hashes are compared by
        :func:`verify_files`, and by ``topcoat.runtime.open`` for the model that it loads.

    Raises:
        BundleError: there is no such folder, it is not a bundle, the manifest is not valid, or a
            file is missing or lies outside the folder.
        BundleVersionError: the bundle has a format version other than 1.
        BundleIntegrityError: a file's size is not the stated one.
    """
    folder = _bundle_folder(Path(path))
    raw = _load_json(folder)
    manifest = _parse(folder, raw)
    if (recorded := with_record(folder, raw)) is not None:
        record, completed = recorded
        try:
            manifest = _parse(folder, completed)
        except BundleError as error:
            tell_unreadable(record, error)
    for name, _, size in _listed_files(manifest):
        _check_listed_file(folder, name, size)
    return manifest


def verify_files(path: str | Path | Manifest) -> Manifest:
    """Compare the hash of every file that a bundle's manifest lists.

    Args:
        path: a bundle's folder, or a manifest that was read before.

    Returns:
        The manifest.

    Raises:
        BundleError: as for :func:`read_manifest`, or a model keeps data outside its own file.
        BundleIntegrityError: a file is not the one that the manifest describes.
    """
    manifest = path if isinstance(path, Manifest) else read_manifest(path)
    for name, sha256, size in _listed_files(manifest):
        _read_verified(manifest.folder, name, sha256, size)
    for variant in manifest.variants:
        read_model(manifest, variant)
    return manifest


def read_model(manifest: Manifest, variant: Variant) -> bytes:
    """Read a variant's model and compare its hash; the returned bytes are the compared ones.

    Raises:
        BundleError: the file is missing or lies outside the folder, or the model keeps part of its
            data in other files, which format version 1 forbids.
        BundleIntegrityError: the bytes are not the ones that the manifest describes.
    """
    data = _read_verified(manifest.folder, variant.file, variant.sha256, variant.bytes)
    if variant.kind == "onnx" and (location := external_data_location(data)) is not None:
        raise BundleError(
            f"{manifest.folder / variant.file} keeps data in another file ({location!r});"
            " a bundle's model must be one self-contained file: export it again with export-engine"
        )
    return data


def read_file(manifest: Manifest, name: str) -> bytes:
    """Read one of the files that are no models and compare its hash.

    Raises:
        BundleError: the manifest does not list it, or the file is missing or lies outside.
        BundleIntegrityError: the bytes are not the ones that the manifest describes.
    """
    if name not in manifest.files:
        raise BundleError(f"{manifest.folder} lists no {name}; export the bundle again")
    entry = manifest.files[name]
    return _read_verified(manifest.folder, name, entry.sha256, entry.bytes)


# ------------------------------------------------------------------------------------------ files


def _bundle_folder(path: Path) -> Path:
    try:
        path.exists()
    except OSError as error:  # a name too long for the file system, a folder that is closed to us
        raise BundleError(
            f"{path} cannot be looked up: {error.strerror}; give the folder NAME.topcoat of a"
            f" bundle{_or_builtin()}"
        ) from None
    if path.name == "manifest.json" and path.is_file():
        path = path.parent
    path = find_bundle(path)
    if not path.exists():
        raise BundleError(
            f"{path} does not exist; give the folder NAME.topcoat of a bundle{_or_builtin()}"
        )
    if path.is_dir():
        return path.absolute()
    if path.suffix in {".pt", ".pth", ".ckpt"}:
        raise BundleError(
            f"{path} is a checkpoint; the runtime wants a bundle: make one with"
            f" `export-engine {path.name}`"
        )
    if path.suffix == ".onnx":
        raise BundleError(
            f"{path} is a bare ONNX file; the runtime wants the bundle (a folder with"
            " manifest.json) that export-engine writes around it"
        )
    raise BundleError(
        f"{path} is a file; the runtime wants a bundle, which is a folder{_or_rename(path)}"
    )


def _or_builtin() -> str:
    """Name the built-in models for an error."""
    names = ", ".join(builtin_models())
    return f", or a built-in model: {names}" if names else ""


def _or_rename(path: Path) -> str:
    """Say in an error that what lies at the path hides a built-in model, if it does."""
    if path.name not in builtin_models():
        return ""
    return f", or rename it to use the built-in model {path.name}"


def _load_json(folder: Path) -> Mapping[str, Any]:
    path = folder / "manifest.json"
    _check_inside(folder, "manifest.json")
    if not path.is_file():
        holds = "is empty" if not any(folder.iterdir()) else "holds no manifest.json"
        raise BundleError(
            f"{folder} {holds}; it is not a bundle: give the folder that export-engine wrote"
            f"{_or_rename(folder)}"
        )
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(
                f"{path} is larger than {_MANIFEST_LIMIT >> 20} MiB, which no manifest is;"
                " export the bundle again"
            )
        raw = json.loads(path.read_bytes())
    # RecursionError: thousands of nested brackets; UnicodeDecodeError is a ValueError.
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{path} is not valid JSON ({_one_line(error)}); copy the bundle"
            " again or export it again"
        ) from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        came = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise BundleError(
            f"{path} is not a bundle's manifest: 'format' is {came!r}, wanted {FORMAT!r};"
            " give the folder that export-engine wrote"
        )
    return cast("Mapping[str, Any]", raw)


def _listed_files(manifest: Manifest) -> list[tuple[str, str, int]]:
    """Return (name, sha256, bytes) of every file, models first."""
    listed = [(v.file, v.sha256, v.bytes) for v in manifest.variants]
    listed += [(name, entry.sha256, entry.bytes) for name, entry in manifest.files.items()]
    return listed


def _check_inside(folder: Path, name: str) -> None:
    """Refuse a file that a symbolic link would lead out of the folder."""
    path = folder / name
    root = folder.resolve()
    if path.is_symlink() and path.resolve().parent != root:
        raise BundleError(
            f"{path} is a link that leads outside the bundle; a bundle holds its files itself:"
            " copy it with its links followed (cp -rL)"
        )


def _check_listed_file(folder: Path, name: str, size: int) -> None:
    _check_inside(folder, name)
    path = folder / name
    try:
        status = path.stat()
    except OSError as error:
        raise BundleError(
            f"{path} is listed in manifest.json but cannot be opened ({error.strerror});"
            " copy the whole bundle again or export it again"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        # A FIFO or device would block or never end.
        raise BundleError(f"{path} is not an ordinary file; export the bundle again")
    if status.st_size != size:
        raise BundleIntegrityError(
            f"{path} has {status.st_size} bytes, manifest.json says {size}; the file is damaged or"
            " was changed: copy the bundle again or export it again"
        )


def _read_verified(folder: Path, name: str, sha256: str, size: int) -> bytes:
    _check_listed_file(folder, name, size)
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error
    came = hashlib.sha256(data).hexdigest()
    if came != sha256:
        raise BundleIntegrityError(
            f"{path} has sha256 {came[:12]}…, manifest.json says {sha256[:12]}…; the file is"
            " damaged or was changed: copy the bundle again or export it again"
        )
    return data


# ------------------------------------------------------------------------------------- validation


class _Reader:
    """Read typed values out of one JSON object, with errors that name the manifest and the key."""

    def __init__(self, folder: Path, where: str, values: object) -> None:
        self.folder = folder
        self.where = where
        if not isinstance(values, dict):
            self.fail("", f"is {_show(values)}, wanted an object")
        self.values = cast("dict[str, Any]", values)

    def fail(self, key: str, what: str) -> Any:  # noqa: ANN401 - never returns
        name = ".".join(part for part in (self.where, key) if part) or "the manifest"
        raise BundleError(
            f"{self.folder / 'manifest.json'}: {name} {what}; export the bundle again"
        )

    def get(self, key: str) -> object:
        if key not in self.values:
            self.fail(key, "is missing")
        return self.values[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            self.fail(key, f"is {_show(value)}, wanted a text")
        return cast("str", value)

    def choice(self, key: str, wanted: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in wanted:
            self.fail(key, f"is {_show(value)}, wanted {' or '.join(map(repr, wanted))}")
        return value

    def integer(self, key: str, least: int) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.fail(key, f"is {_show(value)}, wanted a whole number of at least {least}")
        return cast("int", value)

    def optional_integer(self, key: str, least: int) -> int | None:
        return None if self.values.get(key) is None else self.integer(key, least)

    def optional_text(self, key: str) -> str | None:
        return None if self.values.get(key) is None else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not values or not all(isinstance(value, str) and value for value in values):
            self.fail(key, f"is {_show(values)}, wanted a list of texts")
        return tuple(cast("list[str]", values))

    def pair(self, key: str) -> tuple[int, int]:
        values = self.items(key)
        if len(values) != 2 or not all(type(value) is int and value >= 1 for value in values):
            self.fail(key, f"is {_show(values)}, wanted height and width, whole numbers from 1 up")
        height, width = cast("list[int]", values)
        return height, width

    def items(self, key: str) -> list[object]:
        value = self.get(key)
        if not isinstance(value, list):
            self.fail(key, f"is {_show(value)}, wanted a list")
        return cast("list[object]", value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, f"is {_show(value)}, wanted an object")
        return MappingProxyType(cast("dict[str, Any]", value))

    def sha256(self, key: str) -> str:
        value = self.text(key)
        if not _SHA256.match(value):
            self.fail(key, f"is {_show(value)}, wanted 64 lower-case hexadecimal digits")
        return value

    def inner(self, key: str) -> _Reader:
        return _Reader(self.folder, ".".join(p for p in (self.where, key) if p), self.get(key))

    def plain_name(self, key: str, value: str) -> str:
        """Return ``value`` if it can only name a file directly inside the folder."""
        # ':' covers drive letters and NTFS streams, so a bundle is refused alike on every system.
        if (
            value in {"", ".", "..", "manifest.json"}
            or any(sign in value for sign in "/\\:\0")
            or any(ord(sign) < 32 for sign in value)
        ):
            self.fail(
                key, f"names {value!r}, wanted the plain name of another file inside the bundle"
            )
        return value


def _parse(folder: Path, raw: Mapping[str, Any]) -> Manifest:
    top = _Reader(folder, "", dict(raw))
    version = top.integer("format_version", 0)
    if version != FORMAT_VERSION:
        advice = (
            "update topcoat-runtime"
            if version > FORMAT_VERSION
            else "export the bundle again with export-engine"
        )
        raise BundleVersionError(
            f"{folder} has bundle format version {version}, this topcoat-runtime reads version"
            f" {FORMAT_VERSION}; {advice}"
        )
    size = top.inner("size")
    multiple = size.integer("multiple", 1)
    least = size.integer("min", 1)
    most = size.optional_integer("max", least)
    if least % multiple:
        size.fail("min", f"is {least}, wanted a multiple of size.multiple ({multiple})")
    variants = tuple(
        _parse_variant(_Reader(folder, f"variants[{i}]", item))
        for i, item in enumerate(top.items("variants"))
    )
    if not variants:
        top.fail("variants", "is empty, wanted at least one model")
    files = {}
    listed = {variant.file for variant in variants}
    if len(listed) != len(variants):
        top.fail("variants", "names one file twice, wanted a file for each")
    for name in top.mapping("files"):
        entry = _Reader(folder, f"files[{name!r}]", top.mapping("files")[name])
        entry.plain_name("", name)
        if name in listed:
            entry.fail("", "is also a variant, wanted each file once")
        files[name] = FileEntry(sha256=entry.sha256("sha256"), bytes=entry.integer("bytes", 0))
    channels = top.integer("channels", 1)
    if channels != 3:
        top.fail("channels", f"is {channels}, wanted 3 (RGB), all that format version 1 knows")
    task, scale = top.text("task"), top.integer("scale", 1)
    if task == TEXTURE and scale != 1:
        top.fail("scale", f"is {scale}, wanted 1: a texture is as large as its noise")
    return Manifest(
        folder=folder,
        format_version=version,
        name=top.text("name"),
        task=task,
        scale=scale,
        channels=channels,
        size=SizeRule(
            multiple=multiple,
            min=least,
            max=most,
            pad=size.choice("pad", ("edge",)),
            halo=size.optional_integer("halo", 0),
        ),
        made_by=top.mapping("made_by"),
        checkpoint=top.mapping("checkpoint"),
        variants=variants,
        files=MappingProxyType(files),
        memory_per_pixel=top.optional_integer("memory_per_pixel", 1),
        description=top.optional_text("description"),
    )


def _parse_variant(item: _Reader) -> Variant:
    rows = []
    for i, value in enumerate(item.items("parity")):
        row = _Reader(item.folder, f"{item.where}.parity[{i}]", value)
        passed = row.get("passed")
        if not isinstance(passed, bool):
            row.fail("passed", f"is {_show(passed)}, wanted true or false")
        rows.append(
            ParityRow(
                backend=row.text("backend"),
                compute=row.text("compute"),
                passed=cast("bool", passed),
                photographs=row.mapping("photographs"),
                noise=row.mapping("noise"),
                device=row.optional_text("device"),
                where=row.mapping("where"),
                reference=row.optional_text("reference"),
                sizes=row.mapping("sizes"),
            )
        )
    kind = item.text("kind")
    engine = _parse_engine(item.inner("engine"), kind) if kind in ENGINE_KINDS else None
    return Variant(
        file=item.plain_name("file", item.text("file")),
        sha256=item.sha256("sha256"),
        bytes=item.integer("bytes", 1),
        kind=kind,
        precision=item.choice("precision", PRECISIONS),
        opset=item.optional_integer("opset", 1),
        input=_parse_port(item.inner("input")),
        output=_parse_port(item.inner("output")),
        parity=tuple(rows),
        engine=engine,
    )


def _parse_engine(item: _Reader, kind: str) -> EngineInfo:
    profiles = []
    for i, value in enumerate(item.items("profiles")):
        profile = _Reader(item.folder, f"{item.where}.profiles[{i}]", value)
        least, best, most = (profile.pair(name) for name in ("min", "opt", "max"))
        if not (least[0] <= best[0] <= most[0] and least[1] <= best[1] <= most[1]):
            profile.fail("opt", f"is {list(best)}, wanted a size between min and max")
        profiles.append(Profile(min=least, opt=best, max=most))
    if not profiles:
        item.fail("profiles", "is empty, wanted the sizes that the engine takes")
    return EngineInfo(
        library=item.choice("library", (ENGINE_KINDS[kind],)),
        version=item.text("version"),
        targets=item.texts("targets"),
        driver=item.optional_text("driver"),
        profiles=tuple(profiles),
        key=item.sha256("key"),
        platform=item.optional_text("platform"),
    )


def _parse_port(item: _Reader) -> Port:
    return Port(
        name=item.text("name"),
        dtype=item.choice("dtype", ("uint8",)),
        layout=item.choice("layout", ("NHWC",)),
    )


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
