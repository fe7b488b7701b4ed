"""``train-style`` as a user meets it: in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from topcoat.train import load_checkpoint
from topcoat.train.cli.train_style import main
from topcoat.train.losses import LossNetwork

from .conftest import Refused, Run, answers_without_torch


def _weights_equal(first: Path, second: Path) -> bool:
    a, b = load_checkpoint(first), load_checkpoint(second)
    return a.step == b.step and all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)


def test_a_style_and_a_folder_become_a_checkpoint(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    done = train_style(
        "--style", "mosaic", "--content", photographs, "--steps", 6, *tiny, "--preview-every", 3
    )
    assert done.returncode == 0, done.stderr
    assert "next: export-engine mosaic.pt" in done.stdout
    checkpoint = load_checkpoint(tmp_path / "mosaic.pt")
    assert (checkpoint.step, checkpoint.style["name"]) == (6, "mosaic")
    assert checkpoint.recipe["crop"] == 32
    previews = sorted(path.name for path in (tmp_path / "mosaic.preview").iterdir())
    assert previews == ["step_000003.jpg", "step_000006.jpg"]


def test_resume_after_kill_9_arrives_at_the_same_weights_bit_for_bit(
    train_style: Run,
    environment: dict[str, str],
    tmp_path: Path,
    photographs: Path,
    tiny: tuple[str, ...],
) -> None:
    common = ("--style", "dots", "--content", str(photographs), "--steps", "20", *tiny)
    # Steps of a tenth of a second: time enough to kill it between steps 10 and 20.
    common += ("--crop", "128", "--width", "12", "--checkpoint-every", "10")
    straight = train_style(*common, "--output", "straight.pt")
    assert straight.returncode == 0, straight.stderr
    command = [
        sys.executable,
        "-m",
        "topcoat.train.cli.train_style",
        *common,
        "--output",
        "killed.pt",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    killed = tmp_path / "killed.pt"
    while not killed.exists():
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert load_checkpoint(killed).step == 10
    resumed = train_style("--resume", "killed.pt")
    assert resumed.returncode == 0, resumed.stderr
    assert _weights_equal(tmp_path / "straight.pt", killed)


def test_ctrl_c_saves_and_says_how_to_go_on(
    environment: dict[str, str], tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "topcoat.train.cli.train_style", "--style", "mosaic"]
    command += ["--content", str(photographs), *tiny, "--steps", "100000", "--log-every", "1"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "to go on: train-style --resume mosaic.pt" in output
    assert load_checkpoint(tmp_path / "mosaic.pt").step >= 3


def test_ctrl_c_in_the_first_seconds_leaves_no_traceback(
    environment: dict[str, str], tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "topcoat.train.cli.train_style", "--style", "mosaic"]
    command += ["--content", str(photographs), *tiny, "--workers", "1", "--steps", "100000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("training on"):
            break
    time.sleep(0.3)  # while the decoding process starts
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert process.returncode == 130
    assert load_checkpoint(tmp_path / "mosaic.pt").step >= 1


@pytest.mark.parametrize(
    "recipe",
    [
        (),
        # Of the paper's recipe only batch norm depends on how a batch is split.
        (
            *("--recipe", "johnson2016", "--norm", "instance"),
            *("--style-layers", "relu1_2,relu2_2,relu3_3"),
        ),
    ],
    ids=["modern", "johnson2016"],
)
def test_two_processes_train_the_network_that_one_does(
    recipe: tuple[str, ...],
    train_style: Run,
    environment: dict[str, str],
    tmp_path: Path,
    photographs: Path,
    tiny: tuple[str, ...],
) -> None:
    common = ("--style", "mosaic", "--content", str(photographs), "--steps", "4", *tiny, *recipe)
    one = train_style(*common, "--output", "one.pt")
    assert one.returncode == 0, one.stderr
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    two = subprocess.run(
        [*launcher, "-m", "topcoat.train.cli.train_style", *common, "--output", "two.pt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert two.returncode == 0, two.stderr
    assert "training on cpu x 2" in two.stderr
    frame = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [
            load_checkpoint(tmp_path / n).build_network()(frame) for n in ("one.pt", "two.pt")
        ]
    # Sums are taken in another order, and Adam turns the rounding of a gradient near zero into a
    # whole step: what a wrong gradient does to the output is ten times the tolerance.
    torch.testing.assert_close(outputs[0], outputs[1], atol=0.015, rtol=0)
    before, after = (
        load_checkpoint(tmp_path / n).history[-1]["total"] for n in ("one.pt", "two.pt")
    )
    assert before == pytest.approx(after, rel=1e-3)


def test_a_finished_run_goes_on_when_more_steps_are_asked_for(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    assert (
        train_style("--style", "mosaic", "--content", photographs, "--steps", 3, *tiny).returncode
        == 0
    )
    done = train_style("--resume", "mosaic.pt")
    assert done.returncode == 2
    assert "3 steps already, 3 are asked for; pass --steps" in done.stderr
    assert train_style("--resume", "mosaic.pt", "--steps", 5).returncode == 0
    assert load_checkpoint(tmp_path / "mosaic.pt").step == 5


def test_resuming_with_other_loss_weights_is_refused(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    first = train_style("--style", "mosaic", "--content", photographs, "--steps", 2, *tiny)
    assert first.returncode == 0, first.stderr
    torch.manual_seed(1)
    torch.save(LossNetwork("vgg16", ["relu3_3"]).state_dict(), tmp_path / "other.pth")
    done = train_style("--resume", "mosaic.pt", "--steps", 4, "--loss-weights", "other.pth")
    assert done.returncode == 2
    assert "other.pth holds other weights than the run began with" in done.stderr


def test_resuming_into_another_existing_file_needs_force(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    first = train_style("--style", "mosaic", "--content", photographs, "--steps", 2, *tiny)
    assert first.returncode == 0, first.stderr
    (tmp_path / "b.pt").write_bytes(b"precious")
    done = train_style("--resume", "mosaic.pt", "--steps", 4, "--output", "b.pt")
    assert done.returncode == 2
    assert (tmp_path / "b.pt").read_bytes() == b"precious"


def test_dropping_the_state_makes_a_small_checkpoint_that_says_it_cannot_be_resumed(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    common = ("--style", "mosaic", "--content", photographs, "--steps", 2, *tiny)
    assert train_style(*common, "--output", "full.pt").returncode == 0
    assert train_style(*common, "--output", "small.pt", "--drop-state").returncode == 0
    assert (tmp_path / "small.pt").stat().st_size < 0.6 * (tmp_path / "full.pt").stat().st_size
    done = train_style("--resume", "small.pt", "--steps", 4, "--content", photographs)
    assert done.returncode == 2
    assert "holds no optimiser state" in done.stderr


def test_broken_pictures_are_counted_and_named_at_the_end(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    folder = tmp_path / "content"
    folder.mkdir()
    for path in sorted(photographs.iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"not a picture")
    done = train_style("--style", "mosaic", "--content", folder, "--steps", 6, *tiny)
    assert done.returncode == 0, done.stderr
    assert "1 picture could not be used:\n  " in done.stderr
    assert "broken.jpg is not a picture" in done.stderr.splitlines()[-1]


def test_scalars_are_written_for_tensorboard_on_request(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    pytest.importorskip("tensorboard")
    common = ("--style", "mosaic", "--content", photographs, "--steps", 4, *tiny)
    done = train_style(*common, "--tensorboard", "scalars", "--log-every", 2)
    assert done.returncode == 0, done.stderr
    written = b"".join(path.read_bytes() for path in (tmp_path / "scalars").iterdir())
    for name in (b"train/total", b"train/content", b"train/style", b"train/learning_rate"):
        assert name in written


def test_an_existing_checkpoint_is_not_overwritten_unasked(
    train_style: Run, tmp_path: Path, photographs: Path, tiny: tuple[str, ...]
) -> None:
    (tmp_path / "mosaic.pt").write_bytes(b"precious")
    done = train_style("--style", "mosaic", "--content", photographs, *tiny)
    assert done.returncode == 2
    assert "mosaic.pt exists; go on with --resume mosaic.pt, replace it with --force" in done.stderr
    assert (tmp_path / "mosaic.pt").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "no style given"),
        (("--style", "mosiac"), "no built-in style of that name"),
        (("--style", "mosaic", "--content", "gone"), "content folder gone is not there"),
        (("--style", "mosaic", "--recipe", "johnson"), "no recipe 'johnson'; choose among modern"),
        (("--style", "mosaic", "--crop", "250"), "multiple of 4"),
        (("--style", "mosaic", "--loss-weights", "gone.pth"), "--loss-weights names gone.pth"),
        (
            ("--style", "mosaic", "--style-layers", "relu4_3"),
            "lacks the vgg16 layers relu4_1, relu4_2",
        ),
        (
            ("--style", "mosaic", "--style-layers", "relu4_9"),
            "has no layer 'relu4_9'; choose among relu1_1",
        ),
        (("--style", "mosaic", "--batch", "9"), "6 usable of 6 pictures, a batch needs 9"),
        (("--style", "mosaic", "--workers", "-1"), "--workers must be 0 or more"),
        (("--resume", "gone.pt"), "no checkpoint at gone.pt"),
        (("--resume", "gone.pt", "--width", "8"), "--width cannot change when resuming"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_exit_code_2(
    refused: Refused, arguments: tuple[str, ...], complaint: str
) -> None:
    error = refused(main, arguments)
    assert error.startswith("train-style: ")
    assert complaint in error


def test_help_and_lists_answer_without_loading_torch(environment: dict[str, str]) -> None:
    for option, expected in (
        ("--help", "--style-weight"),
        ("--list-recipes", "johnson2016"),
        ("--list-styles", "hatching"),
    ):
        assert expected in answers_without_torch(
            "topcoat.train.cli.train_style", option, environment
        )


def test_the_resolved_recipe_is_shown_on_request(train_style: Run) -> None:
    done = train_style("--show-recipe", "--recipe", "johnson2016", "--style-weight", "7.5")
    shown = json.loads(done.stdout)
    assert (shown["name"], shown["style_weight"], shown["form"]) == ("johnson2016", 7.5, "paper")
