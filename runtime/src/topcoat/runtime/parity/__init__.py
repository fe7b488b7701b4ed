"""Compare engines with the network that they were made of, in 8-bit steps, and judge them.

The exporter compares with PyTorch. :func:`topcoat.runtime.verify` compares where there is none, on
the machine that an engine was built for. Both use what is here: the frames (:func:`noise_probes`,
:func:`synthetic_probes`, ...), the measures (:func:`difference`, :func:`flatness`), the limits
(:data:`GATES`), and :func:`measure_parity`, which runs the engines.
"""

from topcoat.runtime._errors import ParityError
from topcoat.runtime.parity._difference import Difference, Summary, Tile, difference, summary
from topcoat.runtime.parity._engines import OFFERS, Engine, engine_here, engines_for
from topcoat.runtime.parity._flat import Flatness, areas_to_judge, flatness, together
from topcoat.runtime.parity._gates import GATES, Gate
from topcoat.runtime.parity._layouts import Arrangement, arrangements
from topcoat.runtime.parity._measure import Reference, measure_parity
from topcoat.runtime.parity._probes import (
    LONGEST_SIDE,
    MOST_PHOTOGRAPHS,
    Group,
    ProbeFrame,
    flat_colours,
    flat_probes,
    noise_probes,
    picture_probes,
    size_probes,
    synthetic_frames,
    synthetic_probes,
)
from topcoat.runtime.parity._report import ParityReport, ParityRow, gate_failures, machine
from topcoat.runtime.parity._table import parity_table, reasons_not_run
from topcoat.runtime.parity._verify import Verification

__all__ = [
    "GATES",
    "LONGEST_SIDE",
    "MOST_PHOTOGRAPHS",
    "OFFERS",
    "Arrangement",
    "Difference",
    "Engine",
    "Flatness",
    "Gate",
    "Group",
    "ParityError",
    "ParityReport",
    "ParityRow",
    "ProbeFrame",
    "Reference",
    "Summary",
    "Tile",
    "Verification",
    "areas_to_judge",
    "arrangements",
    "difference",
    "engine_here",
    "engines_for",
    "flat_colours",
    "flat_probes",
    "flatness",
    "gate_failures",
    "machine",
    "measure_parity",
    "noise_probes",
    "parity_table",
    "picture_probes",
    "reasons_not_run",
    "size_probes",
    "summary",
    "synthetic_frames",
    "synthetic_probes",
    "together",
]
