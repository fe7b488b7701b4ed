"""The 3D scene in a window, styled as its last pass, with keys to play with the pass.

    python examples/pygame_window.py
    python examples/pygame_window.py --model candy.topcoat mosaic.topcoat

Keys: SPACE style on and off, 1 to 9 and 0 its strength, S stabiliser, M next style (swapped in
without a hitch), H the strip with the status, ESC quit.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scene import options

if TYPE_CHECKING:
    import pygame

import topcoat.runtime as tr


def main(argv: list[str] | None = None) -> int:
    parser = options.parser(__doc__)
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        nargs="+",
        metavar="BUNDLE",
        help="default: every built-in one for real time",
    )
    add("--size", type=options.size, default=(640, 360), metavar="WxH", help="default: 640x360")
    add("--fps", type=options.positive, default=30, metavar="N", help="the pace (default: 30)")
    add("--frames", type=options.positive, metavar="N", help="quit after so many")
    add("--still", type=Path, metavar="PNG", help="write the last frame")
    args = parser.parse_args(argv)
    return options.run("pygame_window", lambda: show(args))


def show(args: argparse.Namespace) -> None:
    import pygame
    from scene import media
    from scene.hud import Hud
    from scene.renderer import SceneRenderer, create_context

    from topcoat.runtime.gl import GLTarget

    if args.still is not None:
        media.check_target(args.still, (".png",))
    styles = args.model or options.bundles()
    width, height = args.size
    budget_ms = 1000 / args.fps
    with tr.Pass.open(styles[0], mode="live", budget_ms=budget_ms) as pass_:
        options.check_scale(styles[0], pass_.scale)
        preparation = pass_.prepare((height, width))  # meanwhile frames pass through
        if args.frames:
            preparation.wait()
        pygame.display.init()
        window = open_window(args.size)
        scene = SceneRenderer(create_context(), width, height)
        gl = GLTarget(scene.context, scene.colour)
        picture = np.zeros((height, width, 3), np.uint8)
        canvas = pygame.image.frombuffer(picture, args.size, "RGB")  # shows those pixels
        hud = Hud(width, budget_ms)
        keys = Keys(pass_, styles)
        clock = pygame.time.Clock()
        index = 0
        while keys.handle(pygame.event.get()) and index != args.frames:
            scene.draw(index)
            result = gl.present(pass_, motion=scene.motion, depth=scene.depth, index=index)
            media.to_rgb(result.image, picture)
            if keys.hud:
                hud.draw(picture, result)
            window.blit(canvas, (0, 0))
            pygame.display.flip()
            clock.tick(args.fps)
            index += 1
        gl.close()
        print(pass_.stats())
        if args.still is not None and index:
            media.write_png(args.still, picture)
    pygame.quit()


def open_window(size: tuple[int, int]) -> "pygame.Surface":
    import pygame

    try:
        window = pygame.display.set_mode(size)
    except pygame.error as error:
        raise options.ExampleError(
            f"no window can be opened ({error}); examples/render_scene.py needs none"
        ) from error
    pygame.display.set_caption("Topcoat: SPACE, 0-9, S, M, H, ESC")
    return window


class Keys:
    """What the keys have set."""

    def __init__(self, pass_: tr.Pass, styles: list[Path]) -> None:
        self.hud = True
        self._pass = pass_
        self._styles = styles
        self._style = 0
        self._strength = 1.0
        self._on = True
        self._stabilise = 0.0

    def handle(self, events: list["pygame.event.Event"]) -> bool:
        """Do what was typed; return whether to go on."""
        import pygame

        for event in events:
            if event.type == pygame.QUIT:
                return False
            if event.type != pygame.KEYDOWN:
                continue
            if event.key == pygame.K_ESCAPE:
                return False
            if event.key == pygame.K_SPACE:
                self._on = not self._on
            elif event.key == pygame.K_s:
                self._stabilise = 0.5 - self._stabilise
            elif event.key == pygame.K_h:
                self.hud = not self.hud
            elif event.key == pygame.K_m:
                self._style = (self._style + 1) % len(self._styles)
                self._pass.swap(self._styles[self._style])
            elif pygame.K_0 <= event.key <= pygame.K_9:
                self._on, self._strength = True, (event.key - pygame.K_0) / 10 or 1.0
            self._pass.set(strength=self._strength if self._on else 0.0, stabilise=self._stabilise)
        return True


if __name__ == "__main__":
    sys.exit(main())
