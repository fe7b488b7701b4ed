"""A pygame window whose picture a network repaints, frame after frame: as little as it takes.

python examples/minimal_window.py candy.topcoat
"""

import sys

import numpy as np
import pygame

import topcoat.runtime as tr

if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
    sys.exit(__doc__)
pygame.display.init()
window = pygame.display.set_mode((640, 360))
pixels = np.zeros((360, 640, 3), np.uint8)
canvas = pygame.image.frombuffer(pixels, (640, 360), "RGB")  # draws into those pixels
clock = pygame.time.Clock()
with tr.Pass.open(sys.argv[1], budget_ms=33) as pass_:
    while not pygame.event.get(pygame.QUIT):
        canvas.fill((70, 130, 190))
        pygame.draw.circle(canvas, (250, 210, 60), (pygame.time.get_ticks() // 8 % 640, 180), 90)
        result = pass_.present(pixels, out=pixels)
        window.blit(canvas, (0, 0))
        pygame.display.set_caption(f"{result.status.name} {result.reason}")
        pygame.display.flip()
        clock.tick(30)
