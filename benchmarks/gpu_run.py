"""A run on a GPU: its parts one after the other, and a JSON file that holds what they found."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gpu_bundles import (
    SIZES,
    PrepareError,
    builds_of,
    bundles_in,
    wanted_names,
    work_for,
    write_json,
)
from gpu_floors import FloorError, Peaks, floor_of, known_peaks
from gpu_measure import SPECIALISATION
from gpu_report import ENGINES, clocks, machine, verdicts

from topcoat.runtime.backends._cuda import Device

_PROGRAM = Path(__file__).with_name("gpu.py")


def earlier_run(path: Path, device: Device) -> dict[str, Any]:
    """Return what an earlier run wrote on this GPU.

    Raises:
        PrepareError: there is no such file, or it is of another GPU or driver.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        gpu = found["machine"]["gpu"]
        was = (gpu["name"], gpu["driver"])
    except (OSError, ValueError, KeyError, TypeError):
        raise PrepareError(
            f"--append: {path} is not the result of an earlier run; leave out --append"
        ) from None
    if was != (device.name, device.driver):
        raise PrepareError(
            f"--append: {path} was measured on a {was[0]} with driver {was[1]}, here is a"
            f" {device.name} with driver {device.driver}; give another file with --json"
        )
    return found


class Run:
    """One run: the parts in order of worth, and what is known so far."""

    def __init__(
        self,
        args: argparse.Namespace,
        work: Path,
        sizes: Sequence[str],
        seconds: float,
        deadline: float,
        earlier: dict[str, Any] | None = None,
    ) -> None:
        self._args = args
        self._earlier = earlier or {}
        self._names = wanted_names(args.networks, quick=args.quick)
        self._work = work
        self._sizes = list(sizes)
        self._seconds = seconds

        self._deadline = deadline
        self._started = time.monotonic()
        self.result: dict[str, Any] = {
            "format": "topcoat-gpu-benchmark",
            "format_version": 1,
            "machine": machine(),
            "settings": {
                "sizes": {name: list(self._size(name)) for name in sizes},
                "seconds_per_figure": seconds,
                "specialisation": SPECIALISATION,
                "weights": "random, seeded, but for the demo's or a given checkpoint",
                "quick": args.quick,
            },
            "peaks": None,
            "floors": {},
            "engines": [],
            "parity": [],
            "measurements": [],
            "failures": [],
            "seconds": {},
        }

    def everything(self) -> bool:
        """Run all parts; return whether anything was measured."""
        self._keep(set())  # until it is known what is measured anew, all of it
        self._part("peaks", {}, limit=90)
        if self._args.bundles is not None:
            prepared = self._args.bundles
        else:
            prepared = self._work / "prepared"
            job = {"folder": str(prepared), "checkpoint": None, "names": self._names}
            if self._args.checkpoint is not None:
                job["checkpoint"] = str(self._args.checkpoint.resolve())
            self._part("prepare", job, limit=240)
            if not any(prepared.glob("*.topcoat/manifest.json")):
                self._save()
                return False
        sources = bundles_in(prepared, self._names)
        # Engines and what they prove are added to copies: a bundle is its owner's.
        bundles = [Path(shutil.copytree(source, self._work / source.name)) for source in sources]
        stems = {bundle.stem for bundle in bundles}
        self._keep(stems)
        self.result["engines"] += [e for e in builds_of(prepared) if e.get("bundle") in stems]
        self._floors(bundles, prepared)
        for number, bundle in enumerate(bundles):
            job = {"bundle": str(bundle), "sizes": self._sizes}
            for backend, engine in ENGINES.items():
                self._part(f"build {engine} {bundle.stem}", {**job, "engine": engine}, limit=150)
                self._part(f"run {backend} {bundle.stem}", {**job, "backend": backend}, limit=120)
            self._part(f"verify {bundle.stem}", job, limit=120)
            self._part(f"onnxruntime {bundle.stem}", job, limit=90)
            self._part(f"eager {bundle.stem}", job, limit=90)
            if number == 0 and not self._args.quick:
                wanted = [size for size in self._sizes if size == "1080p"] or self._sizes[:1]
                self._part(f"compile {bundle.stem}", {**job, "sizes": wanted}, limit=150)
        self.result["machine"]["clocks after"] = clocks()
        self.result["verdicts"] = verdicts(self.result)
        self._save()
        return bool(self.result["measurements"])

    def _keep(self, stems: set[str]) -> None:
        """Take over what an earlier run found of networks that this one does not measure.

        Nothing else must have been measured yet.
        """
        for kind in ("engines", "parity", "measurements"):
            earlier = self._earlier.get(kind, ())
            self.result[kind] = [row for row in earlier if row["bundle"] not in stems]
        others = {row["bundle"] for row in self.result["measurements"]}
        earlier = self._earlier.get("failures", [])
        kept = [entry for entry in earlier if entry["part"].split()[-1] in others]
        own = [entry for entry in self.result["failures"] if entry not in earlier]
        self.result["failures"] = kept + own
        floors = self._earlier.get("floors", {})
        self.result["floors"] = {name: floors[name] for name in floors if name in others}

    def _part(self, name: str, job: Mapping[str, Any], *, limit: float) -> None:
        """Run one part in a process of its own, and take over what it found until its end."""
        left = self._deadline - time.monotonic()
        if left < 5:
            return self._failed(name, "no time was left; give more with --minutes")
        out = self._work / f"{name.replace(' ', '_')}.jsonl"
        file = self._work / "job.json"
        content = {**job, "out": str(out), "seconds": self._seconds, "work": str(self._work)}
        file.write_text(json.dumps(content), encoding="utf-8")
        began = time.monotonic()
        print(f"{began - self._started:6.1f} s  {name}", file=sys.stderr, flush=True)
        packs = [argument for pack in self._args.pack for argument in ("--pack", str(pack))]
        command = [
            sys.executable,
            str(_PROGRAM),
            *packs,
            "--part",
            name.split()[0],
            "--job",
            str(file),
        ]
        # Also for what the part itself starts.
        path = os.pathsep.join([*(str(p.resolve()) for p in self._args.pack), *_pythonpath()])
        why = None
        errors = self._work / "stderr"
        try:
            environment = {**os.environ, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1"}
            with errors.open("wb") as said:
                code = _run(command, said, environment, min(limit, left))
            if code:
                why = _ending(code, errors.read_text(errors="replace").strip())
        except subprocess.TimeoutExpired:
            why = f"was stopped after {min(limit, left):.3g} s"
        self._take(out)
        self.result["seconds"][name] = round(time.monotonic() - began, 1)
        if why is not None:
            return self._failed(name, why)
        self._save()
        return None

    def _take(self, out: Path) -> None:
        """Merge the lines that a part has written: each is a kind of result, and one of it."""
        if not out.exists():
            return
        for line in out.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a process that was stopped in mid-line
                kind, entry = json.loads(line)
                if isinstance(self.result.get(kind), list):
                    self.result[kind].append(entry)
                else:
                    self.result[kind] = entry

    def _floors(self, bundles: Sequence[Path], prepared: Path) -> None:
        try:
            if self.result["peaks"] is None:
                name = self.result["machine"]["gpu"]["name"]
                self.result["peaks"] = known_peaks(name).to_json()
            peaks = Peaks.from_json(self.result["peaks"])
            floors = {}
            for bundle in bundles:
                work = work_for(bundle, prepared)
                floors[bundle.stem] = {
                    precision: {
                        size: {**entry.to_json(), **floor_of(entry, peaks).to_json()}
                        for size, entry in entries.items()
                    }
                    for precision, entries in work.items()
                }
            self.result["floors"] = {**self.result["floors"], **floors}
        except FloorError as error:
            self._failed("floors", str(error))

    def _failed(self, name: str, why: str) -> None:
        why = why.replace(f"{self._work}{os.sep}", "")  # means nothing elsewhere
        print(f"        {name}: {why}", file=sys.stderr, flush=True)
        self.result["failures"].append({"part": name, "reason": why})
        self._save()

    def _save(self) -> None:
        write_json(self._args.json, self.result)

    @staticmethod
    def _size(name: str) -> tuple[int, int]:
        return SIZES[name]


def _run(
    command: Sequence[str], said: IO[bytes], environment: Mapping[str, str], limit: float
) -> int:
    """Run a command with all that it starts, and end all of it when its time is over.

    Raises:
        subprocess.TimeoutExpired: it was.
    """
    with subprocess.Popen(
        command, stdout=said, stderr=said, env=environment, start_new_session=True
    ) as process:
        try:
            return process.wait(limit)
        except BaseException:
            # A builder works in a process of the part's own, which would go on alone.
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            raise


def _ending(code: int, said: str) -> str:
    """Say why a part ended early: in its own words where it gave a reason, not a traceback."""
    last = said.splitlines()[-1][:400] if said else "it said nothing"
    if code < 0:
        return f"was killed by signal {-code}: {last}"
    return f"broke off: {last}" if "Traceback (most recent call last)" in said else last


def _pythonpath() -> list[str]:
    given = os.environ.get("PYTHONPATH", "")
    return [given] if given else []
