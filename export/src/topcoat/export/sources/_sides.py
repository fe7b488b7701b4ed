"""Find out by running a network which sizes of frame it takes."""

from collections.abc import Callable

LARGEST = 512
"""A network that takes no frame of this side takes none that is worth the name."""


def smallest_side(answers: Callable[[int, int], bool], multiple: int, least: int = 1) -> int | None:
    """Find the smallest side, a multiple of ``multiple`` and at least ``least``, that works.

    It works if a square frame of that side, and one longer by ``multiple`` in either direction,
    are answered. Padding by reflection, for one, fails below its own width.

    Args:
        answers: (height, width) -> whether such a frame is answered as it should be.
        multiple: sides are multiples of this, ≥ 1.
        least: where to begin.

    Returns:
        None if none does up to :data:`LARGEST`.

    >>> smallest_side(lambda height, width: min(height, width) > 9, multiple=4)
    12
    """
    first = max(1, -(-least // multiple))

    def works(count: int) -> bool:
        side = count * multiple
        longer = side + multiple
        return answers(side, side) and answers(side, longer) and answers(longer, side)

    failed, count = first - 1, first
    while not works(count):
        failed, count = count, 2 * count
        if count * multiple > LARGEST:
            return None
    while count - failed > 1:
        middle = (count + failed) // 2
        if works(middle):
            count = middle
        else:
            failed = middle
    return count * multiple


_FROM, _MOST_MULTIPLE = 64, 64


def size_rule(answers: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """Find the multiple that sides must be of, and the smallest side.

    Square frames are tried from 64 pixels on: the distance of the first two sides that work is the
    multiple.

    Args:
        answers: (height, width) -> whether such a frame is answered as it should be.

    Returns:
        (multiple, smallest side); None if no such rule up to multiples of 64 explains what works.

    >>> size_rule(lambda height, width: height % 4 == width % 4 == 0 and min(height, width) > 9)
    (4, 12)
    """
    working: list[int] = []
    for side in range(_FROM, _FROM + 2 * _MOST_MULTIPLE):
        if answers(side, side):
            working.append(side)
            if len(working) == 2:
                break
    if len(working) < 2:
        return None
    multiple = working[1] - working[0]
    if working[0] % multiple or not answers(working[1] + multiple, working[0]):
        return None
    least = smallest_side(answers, multiple)
    return None if least is None else (multiple, least)
