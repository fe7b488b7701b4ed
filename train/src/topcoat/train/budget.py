"""Which real-time network fits a frame's budget, by a table of measured networks.

``benchmarks/realtime_networks.py`` writes such a table; the one that ships was measured on the
machine that it names. Nothing here imports torch: a budget that cannot be met is answered at once.
"""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, get_type_hints

from topcoat.train._errors import RecipeError
from topcoat.train.recipes import STYLE_RECIPES, StyleRecipe

TABLE_FORMAT = "topcoat-realtime-networks"
TABLE_VERSION = 1
BENCHMARK = "benchmarks/realtime_networks.py"
_SHIPPED = "realtime_networks.json"
_SIZES = {
    "360p": (640, 360),
    "480p": (854, 480),
    "540p": (960, 540),
    "720p": (1280, 720),
    "900p": (1600, 900),
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "2160p": (3840, 2160),
    "4k": (3840, 2160),
}
_FORM = re.compile(
    r"\s*(?P<size>\d{1,5}p|4k|(?P<width>\d{1,5})\s*[x×]\s*(?P<height>\d{1,5}))"
    r"[\s,@/]+(?P<amount>\d{1,5}(?:\.\d{1,20})?)\s*(?P<unit>ms|fps)\s*",
    re.IGNORECASE,
)
_EXAMPLE = 'give a frame size and a time, such as "1080p 16ms", "720p 60fps" or "1280x720 20 ms"'


class BudgetError(RecipeError):
    """A budget is malformed, its table cannot be used, or no network of the table meets it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A frame size, and the time that one frame may take."""

    width: int
    """In pixels."""
    height: int
    milliseconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a budget as people write it.

        Args:
            text: a size (``720p``, ``4k``, ``1280x720``) and a time (``16ms``, ``60fps``).

        Raises:
            BudgetError: it is none; the message has examples.

        >>> Budget.parse("720p 50fps")
        Budget(width=1280, height=720, milliseconds=20.0)
        """
        found = _FORM.fullmatch(text)
        if found is None:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise BudgetError(f"{shown!r} is no budget; {_EXAMPLE}")
        if found["width"]:
            width, height = int(found["width"]), int(found["height"])
        elif (name := found["size"].lower()) in _SIZES:
            width, height = _SIZES[name]
        else:
            raise BudgetError(
                f"{text!r} names the frame size {found['size']}, known are {', '.join(_SIZES)}; "
                "write others as WIDTHxHEIGHT, such as 1920x800"
            )
        amount = float(found["amount"])
        if not (min(width, height) >= 16 and max(width, height) <= 16384 and amount > 0):
            raise BudgetError(
                f"{text!r} is out of range: a side has 16 to 16384 pixels, and the time is above "
                f"0; {_EXAMPLE}"
            )
        return cls(width, height, amount if found["unit"].lower() == "ms" else 1000 / amount)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} in {self.milliseconds:.4g} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a frame costs with one engine: a row of a table."""

    network: str
    width: int
    height: int
    engine: str
    """Backend of the runtime, such as ``openvino-cpu``."""
    precision: str
    """What it computes in: ``fp32``, ``int8``, ``bf16``."""
    threads: int
    milliseconds: float
    """Median from uint8 frame to uint8 frame."""

    def scaled(self, budget: Budget) -> float:
        """Milliseconds at the budget's size, in proportion to the pixels."""
        return self.milliseconds * (budget.width * budget.height) / (self.width * self.height)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEntry:
    """A network that was measured."""

    name: str
    recipe: str
    """That trains it."""
    settings: Mapping[str, Any]
    """Fields of the recipe that make the network: width, blocks, …"""
    objective: float | None
    """On photographs that it was not trained on, smaller is better; None: never trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTable:
    """Networks, what they are worth and what a frame of them costs, on one machine."""

    source: str
    """File, or "the shipped table"."""
    processor: str
    logical: int
    """Processors that the system counts."""
    networks: Sequence[NetworkEntry]
    timings: Sequence[Timing]

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read a table.

        Args:
            path: that the benchmark wrote; None: the one that ships.

        Raises:
            BudgetError: no such file, or no table, or one of another version, or one whose networks
                no real-time recipe of this version makes.
        """
        again = f"make one with {BENCHMARK} --json FILE"
        source = "the shipped table" if path is None else str(path)
        try:
            place = files("topcoat.train").joinpath(_SHIPPED) if path is None else path
            content = json.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BudgetError(f"no budget table at {source}; {again}") from None
        except OSError as error:
            raise BudgetError(f"cannot read {source}: {error.strerror}; {again}") from None
        except ValueError:
            raise BudgetError(f"{source} is not JSON; {again}") from None
        if not isinstance(content, dict) or content.get("format") != TABLE_FORMAT:
            raise BudgetError(f"{source} is not a table of real-time networks; {again}")
        if content.get("version") != TABLE_VERSION:
            raise BudgetError(
                f"{source} has table version {content.get('version')!r}, this version reads "
                f"{TABLE_VERSION}; {again}"
            )
        try:
            return cls._from(content, source)
        except RecipeError as error:
            raise BudgetError(f"{source}: {error}; {again}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BudgetError(
                f"{source} is damaged ({type(error).__name__}: {error}); {again}"
            ) from None

    @classmethod
    def _from(cls, content: Mapping[str, Any], source: str) -> Self:
        networks = [
            NetworkEntry(
                name=str(row["name"]),
                recipe=str(row["recipe"]),
                settings=_settings(str(row["recipe"]), dict(row["settings"])),
                objective=None if row["objective"] is None else _number(row["objective"]["total"]),
            )
            for row in content["networks"]
        ]
        names = {network.name for network in networks}
        timings = [
            Timing(
                network=str(row["network"]),
                width=int(_number(row["width"])),
                height=int(_number(row["height"])),
                engine=str(row["engine"]),
                precision=str(row["precision"]),
                threads=int(_number(row["threads"])),
                milliseconds=_number(row["p50_ms"]),
            )
            for row in content["latency"]
        ]
        if not timings or any(row.network not in names for row in timings):
            raise ValueError("its latencies are not of its networks")
        return cls(
            source=source,
            processor=str(content["machine"]["processor"]),
            logical=int(_number(content["machine"]["logical"])),
            networks=networks,
            timings=timings,
        )


def _settings(recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Check that a recipe makes a real-time network with these settings.

    Raises:
        RecipeError: it does not.
    """
    known = [name for name, each in STYLE_RECIPES.items() if each.network == "realtime"]
    if recipe not in known:
        raise RecipeError(f"{recipe!r} is no real-time recipe, known are {', '.join(known)}")
    fields = STYLE_RECIPES[recipe].network_settings()
    if unknown := sorted(set(settings) - set(fields)):
        raise RecipeError(
            f"this version does not have the network setting {', '.join(map(repr, unknown))}: "
            "update topcoat-train"
        )
    hints = get_type_hints(StyleRecipe)
    for name, value in settings.items():
        # type(), because a bool is an int to isinstance; other fields list their values.
        if hints[name] is int and (type(value) is not int or value < 1):
            raise RecipeError(f"{name} of {recipe} must be a whole number above 0, got {value!r}")
    replace(STYLE_RECIPES[recipe], **settings)
    return settings


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """The network that was picked, and by which figure."""

    network: NetworkEntry
    timing: Timing
    milliseconds: float
    """At the budget's size."""
    measured: bool
    """Whether that size was; else the figure is in proportion to the nearest one's pixels."""
    left_out: Sequence[str]
    """Precisions of the table that the processor does not compute in."""


def pick(budget: Budget, table: BudgetTable, *, bf16: bool) -> Pick:
    """Pick the network with the best objective among those whose frame fits.

    Every network counts with the engine and precision that is fastest at the budget's size.

    Args:
        budget: to meet.
        table: to pick from.
        bf16: whether the processor computes in bfloat16; rows in it count only then.

    Raises:
        BudgetError: none fits (the message names what comes nearest), or the table's networks were
            never trained.
    """
    untrained = [network.name for network in table.networks if network.objective is None]
    if untrained:
        raise BudgetError(
            f"{table.source} does not say how good {', '.join(untrained)} "
            f"{'is' if len(untrained) == 1 else 'are'}, for it was made with --latency-only; make "
            f"one with {BENCHMARK} --json FILE, without that"
        )
    usable = [row for row in table.timings if bf16 or row.precision != "bf16"]
    left_out = sorted({row.precision for row in table.timings} - {row.precision for row in usable})
    picks = [
        _best(network, [row for row in usable if row.network == network.name], budget, left_out)
        for network in table.networks
        if any(row.network == network.name for row in usable)
    ]
    if not picks:
        raise BudgetError(
            f"{table.source} has figures in {', '.join(left_out)} alone, which this processor does "
            f"not compute in; measure here with {BENCHMARK} --json FILE"
        )
    fitting = [each for each in picks if each.milliseconds <= budget.milliseconds]
    if not fitting:
        nearest = min(picks, key=lambda each: each.milliseconds)
        raise BudgetError(
            f"no network does {budget}; nearest is {nearest.network.name}, {figure(nearest)} on "
            f"{table.processor}: allow more time or a smaller frame, or measure on your machine "
            f"with {BENCHMARK} --json FILE and pass --budget-table FILE"
        )
    return min(fitting, key=lambda each: (each.network.objective, each.milliseconds))


def _best(
    network: NetworkEntry, rows: Sequence[Timing], budget: Budget, left_out: Sequence[str]
) -> Pick:
    pixels = budget.width * budget.height

    def distance(row: Timing) -> float:
        return abs(math.log(row.width * row.height / pixels))

    exact = [row for row in rows if (row.width, row.height) == (budget.width, budget.height)]
    near = min(map(distance, rows))
    candidates = exact or [row for row in rows if distance(row) == near]
    row = min(candidates, key=lambda each: each.milliseconds)
    return Pick(
        network=network,
        timing=row,
        milliseconds=row.scaled(budget),
        measured=bool(exact),
        left_out=left_out,
    )


def figure(chosen: Pick) -> str:
    """The pick's latency, and with what it was measured."""
    row = chosen.timing
    how = "" if chosen.measured else f", in proportion to {row.width}x{row.height}"
    threads = f"{row.threads} thread{'s' * (row.threads > 1)}"
    return f"{chosen.milliseconds:.3g} ms (median{how}; {row.engine}, {row.precision}, {threads})"


def describe(chosen: Pick, budget: Budget, table: BudgetTable, here: str) -> str:
    """Say in one line what was picked, by which figure, and on whose machine.

    Args:
        chosen: from :func:`pick`.
        budget: that it meets.
        table: that it comes from.
        here: this machine's processor.
    """
    parts = [
        f"budget {budget}: {chosen.network.name}, {figure(chosen)}, measured on {table.processor} "
        f"with {table.logical} logical processors"
    ]
    if chosen.left_out:
        parts.append(
            f"{', '.join(chosen.left_out)} left out, this processor does not compute in it"
        )
    if table.processor != here:
        parts.append(
            f"this is {here}: measure here with {BENCHMARK} --json FILE and pass "
            "--budget-table FILE"
        )
    return "; ".join(parts)


def processor() -> str:
    """Name the processor of this machine, as far as the system tells and as tables do."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
