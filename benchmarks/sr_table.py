"""Train every row of docs/super-resolution.md's table and measure it, next to the paper's.

    python benchmarks/sr_table.py --content photos/ --eval set5/ --output runs/sr

Two protocols: ``plain`` (bicubic shrinking, as the paper's bicubic row is measured) and ``blur``
(σ 1.0 before it, as the paper trains); every network is trained on the degradation that it is
tested on. A row whose checkpoint is finished is not trained again, one that was interrupted goes
on; a row that has no checkpoint is left out of the table. ``--only`` picks rows, ``--measure``
trains nothing. Writes OUTPUT/sr_table.json, a page of pictures per protocol and sr_crops.png (of
scikit-image's photographs), and prints the table as Markdown.
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
    # Total variation of 1e-6 on 0-255 is up to half of the pixel loss: it would blur.
    "paper's network, pixel": f"{_PAPER} --loss pixel --tv-weight 0 --steps 1000",
    "paper's network, feature": f"{_PAPER} --loss feature --steps 600",
    "modern, pixel": "--recipe modern --loss pixel --steps 4000",
    # As published: alone, and without the filter that keeps the grid out of the mix.
    "modern, feature": "--recipe modern --loss feature --feature-weight 0.05 "
    "--feature-filter none --batch 4 --steps 1500",
    "modern": "--recipe modern --batch 4 --steps 1500",
}


def checkpoint(folder: Path, row: str, protocol: str, scale: int) -> Path:
    name = row.replace("'s", "").replace(",", "").replace(" ", "-").lower()
    return folder / f"{name}-x{scale}-{protocol}.pt"


def check_settings(
    path: Path, stored: dict[str, Any], options: str, blur: float, scale: int
) -> None:
    """Stop where a checkpoint was trained with other settings than its row has now."""
    from topcoat.train.cli import _shared, train_sr
    from topcoat.train.recipes import SR_RECIPES

    asked = [*options.split(), "--blur", str(blur), "--scale", str(scale)]
    row = _shared.resolve(train_sr.parser().parse_args(asked), SR_RECIPES)
    idle = {*row.idle_fields(), "precision"}  # that one is stored as it was resolved
    wanted = {name: value for name, value in row.to_dict().items() if name not in idle}
    there = type(row).from_dict(stored).to_dict()  # a field that is younger gets its default
    other = {name: (there[name], v) for name, v in wanted.items() if there[name] != v}
    if other:
        sys.exit(f"{path} was trained with other settings (stored, wanted now): {other}; remove it")


def train(path: Path, options: str, blur: float, scale: int, content: Path) -> None:
    """Run train-sr, as a user would, until the checkpoint has all its steps."""
    from topcoat.train import load_checkpoint

    command = [sys.executable, "-m", "topcoat.train.cli.train_sr"]
    if path.exists():
        found = load_checkpoint(path)
        check_settings(path, found.recipe, options, blur, scale)
        if found.step >= found.recipe["steps"]:
            return
        command += ["--resume", str(path)]
    else:
        command += ["--scale", str(scale), "--blur", str(blur), "--content", str(content)]
        command += [*options.split(), "-o", str(path)]
    print("+", " ".join(command[2:]), file=sys.stderr, flush=True)
    subprocess.run([*command, "--log-every", "100"], check=True)


def evaluate_sr(*options: object) -> None:
    """Run evaluate-sr, as a user would."""
    command = [sys.executable, "-m", "topcoat.train.cli.evaluate_sr", *map(str, options)]
    subprocess.run([*command, "--force", "--quiet", "--no-lpips"], check=True)


def grid_peaks(pictures: Path, period: int) -> float:
    """How far a grid of a period stands out of the pictures' spectra.

    The power of Y at that period along rows, columns and diagonals over the median of its
    surroundings; the largest of the three, each the median over the pictures. About 1 to 3 where
    there is no grid.
    """
    import numpy as np

    from topcoat.train.metrics import luma
    from topcoat.train.pictures import open_rgb, to_array

    found = []
    for path in sorted(pictures.rglob("*.png")):
        y = luma(to_array(open_rgb(path)))
        height, width = (side // 8 * 8 for side in y.shape)
        window = np.outer(np.hanning(height), np.hanning(width))
        power = np.abs(np.fft.fft2(y[:height, :width] * window)) ** 2
        f = 1 / period
        peaks = []
        for down, across in ((f, f), (f, 0), (0, f)):
            rolled = np.roll(power, (12 - round(height * down), 12 - round(width * across)), (0, 1))
            peaks.append(rolled[11:14, 11:14].mean() / np.median(rolled[:25, :25]))
        found.append(peaks)
    return float(np.median(found, axis=0).max())


def measure(folder: Path, protocol: str, scale: int, pictures: Path) -> dict[str, Any]:
    """Evaluate what is trained; the row's figures, and those after histogram matching."""
    from topcoat.train import load_checkpoint

    paths = {row: checkpoint(folder, row, protocol, scale) for row in ROWS}
    paths = {row: path for row, path in paths.items() if path.exists()}
    models = [option for row, path in paths.items() for option in ("--model", f"{row}={path}")]
    common = (pictures, *models, "--scale", scale, "--blur", PROTOCOLS[protocol])
    stem = folder / f"set-x{scale}-{protocol}"
    plain, matched = stem.with_suffix(".json"), folder / f"{stem.name}-matched.json"
    pictured = folder / f"{stem.name}-pictures"
    page = stem.with_suffix(".html")
    evaluate_sr(*common, "--json", plain, "--page", page, "--output", pictured)
    evaluate_sr(*common, "--json", matched, "--match-histogram")
    means, after = (json.loads(path.read_text())["mean"] for path in (plain, matched))
    rows: dict[str, Any] = {}
    for name, mean in means.items():
        rows[name] = {
            "psnr_y": round(mean["psnr_y"], 3),
            "ssim_y": round(mean["ssim_y"], 4),
            "over_bicubic": round(mean["psnr_y"] - means["bicubic"]["psnr_y"], 3),
            "grid_of_2_pixels": round(grid_peaks(pictured / name, 2), 1),
            f"grid_of_{scale}_pixels": round(grid_peaks(pictured / name, scale), 1),
        }
        if name in paths:
            trained = load_checkpoint(paths[name])
            check_settings(paths[name], trained.recipe, ROWS[name], PROTOCOLS[protocol], scale)
            rows[name] |= {
                "histogram_matched_psnr_y": round(after[name]["psnr_y"], 3),
                "histogram_matched_ssim_y": round(after[name]["ssim_y"], 4),
                "options": ROWS[name],
                "steps": trained.step,
                "batch": trained.recipe["batch"],
                "patch": trained.recipe["patch"],
                "precision": trained.recipe["precision"],
                "minutes": round(trained.history[-1]["seconds"] / 60, 1),
                "parameters": sum(p.numel() for p in trained.build_network().parameters()),
            }
    return rows


def picture(folder: Path, scale: int) -> None:
    """Draw crops of scikit-image's photographs, method beside method, into sr_crops.png."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from topcoat.train import load_checkpoint
    from topcoat.train.evaluation import PictureScores, PictureSet, evaluate
    from topcoat.train.pictures import sample_photographs

    paths = {row: checkpoint(folder, row, "plain", scale) for row in ROWS}
    networks = {row: load_checkpoint(p).build_network() for row, p in paths.items() if p.exists()}
    crops = {
        "chelsea.png": (150, 90),
        "motorcycle_left.png": (390, 185),
        "astronaut.png": (160, 60),
    }
    side, zoom, gap, line = 96, 2, 6, 20
    columns = ["bicubic", *networks, "original"]
    cell = side * zoom + gap
    size = (len(columns) * cell - gap, len(crops) * cell + line - gap)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, name in enumerate(columns):
        draw.text((column * cell, 2), name, "black", font)

    def paste(row: PictureScores, pictures: PictureSet) -> None:
        left, top = crops[row.name]
        for column, name in enumerate(columns):
            whole = pictures.original if name == "original" else pictures.outputs[name]
            crop = np.ascontiguousarray(whole[top : top + side, left : left + side])
            image = Image.fromarray(crop).resize((side * zoom,) * 2, Image.Resampling.NEAREST)
            sheet.paste(image, (column * cell, line + list(crops).index(row.name) * cell))

    chosen = [path for path in sample_photographs() if path.name in crops]
    evaluate(chosen, networks, scale=scale, lpips=False, on_picture=paste)
    sheet.save(folder / "sr_crops.png", optimize=True)


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
    if args.measure and args.only != list(ROWS):
        parser.error("--measure measures every row that is trained; leave out --only")
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
    picture(args.output, args.scale)
    print(markdown(results))


if __name__ == "__main__":
    main()
