import pytest
from PIL import Image

from fednano_flwr.data.heatmap import draw_heatmap


@pytest.mark.parametrize(
    ("groups", "clients"), [(1, 1), (26, 25), (13, 350)], ids=["tiny", "scienceqa", "many"]
)
def test_any_number_of_groups_and_clients_is_drawn_in_a_picture_of_sane_size(
    tmp_path, groups, clients
):
    table = {f"group {g}": [g * k % 7 for k in range(clients)] for g in range(groups)}
    draw_heatmap(table, tmp_path / "map.png", "a title that is wider than a few groups are")
    with Image.open(tmp_path / "map.png") as image:
        assert image.width > 300
        assert max(image.size) < 16_000


def test_a_cell_is_the_darker_the_more_questions_it_has(tmp_path):
    # Too many cells for numbers, so that a cell's middle shows nothing but its shade.
    table = {f"{g:03}": [g] * 20 for g in range(100)}
    draw_heatmap(table, tmp_path / "map.png", "")
    with Image.open(tmp_path / "map.png") as image:
        row = image.convert("L").crop((0, image.height // 2, image.width * 8 // 10, image.height))
    middle = row.width // 4, row.width * 3 // 4
    shades = [row.getpixel((x, 5)) for x in range(*middle, row.width // 8)]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] - shades[-1] > 50
