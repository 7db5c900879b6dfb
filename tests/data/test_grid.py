"""The grid of patches of a slide."""

from __future__ import annotations

from diffusion.data.slides.grid import Grid


def test_grid_stays_inside_the_area():
    def corners(grid: Grid, width: int, height: int) -> list[tuple[int, int]]:
        return [(cell.x, cell.y) for cell in grid.cells(width, height)]

    assert Grid(100, 50).cells(201, 150) == [
        (column, row, 50 * column, 50 * row) for row in range(2) for column in range(3)
    ]
    assert Grid(100, 100).cells(99, 500) == []
    # in floats 7.000000000000001 to 28.999999999999996
    assert Grid(22, 1, (0.07, 0, 0.29, 1)).cells(100, 22) == [(0, 0, 7, 0)]
    train, held_out = Grid(256, 32, (0, 0, 0.75, 1)), Grid(256, 32, (0.75, 0, 1, 1))
    for width in (1500, 2220, 2221, 1023):
        rightmost = max(x for x, _ in corners(train, width, 300)) + 256
        leftmost = min((x for x, _ in corners(held_out, width, 300)), default=width)
        assert rightmost <= leftmost
