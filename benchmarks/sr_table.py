"""Train every row of docs/super-resolution.md's table and measure it, next to the paper's.

    python benchmarks/sr_table.py --content photos/ --eval set5/ --output runs/sr

Two protocols: ``plain`` (bicubic shrinking, as the paper's bicubic row is measured) and ``blur``
(σ 1.0 before it, as the paper trains); every network is trained on the degradation that it is
tested on. A row whose checkpoint is finished is not trained again, one that was interrupted goes
on; a row that has no checkpoint is left out of the table. ``--only`` picks rows, ``--measure``
trains nothing. Writes OUTPUT/sr_table.json and a page of pictures per protocol, and prints the
table as Markdown.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def measure(folder: Path, protocol: str, scale: int, pictures: Path) -> dict[str, Any]:
    """Evaluate what is trained; the row's figures, and those after histogram matching."""
    from topcoat.train import load_checkpoint
    from topcoat.train._evaluation_models import load_models
    from topcoat.train._evaluation_page import Page
    from topcoat.train.evaluation import evaluate, find_originals

    paths = {row: checkpoint(folder, row, protocol, scale) for row in ROWS}
    paths = {row: path for row, path in paths.items() if path.exists()}
    models = load_models(list(paths.items()))
    networks = {model.name: network for model, network in models}
    found = find_originals(pictures)
    common: dict[str, Any] = {"scale": scale, "blur": PROTOCOLS[protocol], "lpips": False}
    page = Page()
    result = evaluate(found, networks, **common, on_picture=page.add)
    html = page.render(f"{pictures.name}, {protocol}", result, [model for model, _ in models])
    (folder / f"sr_table-x{scale}-{protocol}.html").write_text(html, encoding="utf-8")
    matched = evaluate(found, networks, **common, match_histogram=True)
    rows: dict[str, Any] = {}
    for name in result.methods:
        mean, after = result.mean(name), matched.mean(name)
        rows[name] = {
            "psnr_y": round(mean.psnr_y, 3),
            "ssim_y": round(mean.ssim_y, 4),
            "over_bicubic": round(mean.psnr_y - result.mean("bicubic").psnr_y, 3),
        }
        if name in paths:
            trained = load_checkpoint(paths[name])
            rows[name] |= {
                "histogram_matched_psnr_y": round(after.psnr_y, 3),
                "histogram_matched_ssim_y": round(after.ssim_y, 4),
                "options": ROWS[name],
                "steps": trained.step,
                "batch": trained.recipe["batch"],
                "patch": trained.recipe["patch"],
                "precision": trained.recipe["precision"],
                "minutes": round(trained.history[-1]["seconds"] / 60, 1),
                "parameters": sum(p.numel() for p in networks[name].parameters()),
            }
    return rows


def markdown(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| | plain: PSNR / SSIM | gain | σ 1.0: PSNR / SSIM | gain | steps, minutes |",
        "|---|---|---|---|---|---|",
    ]
    for row in ("bicubic", *ROWS):
        cells, cost = [], []
        for rows in results.values():
            if row not in rows:
                cells += ["not trained", ""]
                continue
            found = rows[row]
            cells += [f"{found['psnr_y']:.2f} / {found['ssim_y']:.4f}"]
            cells += [f"{found['over_bicubic']:+.2f}" if row != "bicubic" else ""]
            if "steps" in found:
                cost.append(f"{found['steps']}, {found['minutes']:.0f}")
        lines.append(f"| {row} | {' | '.join(cells)} | {' and '.join(cost)} |")
    return "\n".join(lines)


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
    if args.only != list(ROWS):
        return  # a part of the table: train it, measure when all is there
    results = {
        protocol: measure(args.output, protocol, args.scale, args.eval)
        for protocol in args.protocols
    }
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found = {"scale": args.scale, "set": args.eval.name, "machine": machine, "results": results}
    (args.output / "sr_table.json").write_text(json.dumps(found, indent=2) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
