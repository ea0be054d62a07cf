"""What pictures give away: similarity, the inverter and the audit on tiny settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.picture_audit.inverter import assembled, cut, fitted
from benchmarks.picture_audit.script import COLUMNS, main, markdown
from benchmarks.picture_audit.similarity import psnr, recognized, ssim
from benchmarks.picture_audit.subjects import KINDS, averaged
from tests.conftest import REPOSITORY

RESULTS = "benchmarks/results/picture_audit.json"


def test_similarity_is_that_of_scikit_image() -> None:
    steps = torch.arange(2 * 3 * 16 * 20).reshape(2, 3, 16, 20)
    ours = steps * 7 % 31 / 31
    theirs = 0.7 * ours + 0.3 * (steps * 5 % 17 / 17)
    # structural_similarity(…, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    # data_range=1, channel_axis=2), scikit-image 0.26
    assert ssim(ours, theirs).tolist() == pytest.approx([0.8903837, 0.88215], abs=2e-6)
    assert ssim(ours, ours).tolist() == pytest.approx([1, 1])


def test_error_of_a_tenth_is_20_decibels() -> None:
    dark = torch.full((2, 3, 4, 4), 0.2)
    assert psnr(dark, dark + 0.1).tolist() == pytest.approx([20, 20], abs=1e-4)


def test_a_picture_is_recognized_by_its_nearest_original() -> None:
    originals = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    drawn = torch.tensor([0.2, 0.8, 0.7]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert recognized(drawn, originals).tolist() == [True, False, False]


def test_blocks_that_do_not_divide_the_grid_are_means_of_what_there_is() -> None:
    tokens = torch.arange(9.0).view(1, 3, 3, 1)  # 0 1 2 / 3 4 5 / 6 7 8
    assert averaged(tokens, 2).flatten().tolist() == [2, 3.5, 6.5, 8]
    assert averaged(tokens, 4).flatten().tolist() == [4]


def test_pictures_are_cut_and_put_together_again() -> None:
    pictures = torch.rand(2, 3, 6, 6)
    assert torch.equal(assembled(cut(pictures, 2, 4), 2, 6), pictures)
    assert torch.equal(cut(pictures, 3, 2)[4], pictures[0, :, 2:4, 2:4].flatten())


def test_an_inverter_finds_a_curved_map_of_each_block() -> None:
    vectors = torch.rand(200, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    pictures = vectors.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).square()
    fits = fitted(vectors[:150], pictures[:150], pixels=1, anchors=60, seed=0)
    errors = [(one(vectors[150:], 2) - pictures[150:]).abs().max().item() for _, one in fits]
    assert min(errors) < 0.02  # the best linear map: 0.16


def test_the_demo_is_audited(tmp_path: Path) -> None:
    sizes = "--train 200 --val 10 --test 12 --anchors 20".split()
    places = ["--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "new" / "f.png")]
    main(["--folder", "", *sizes, *places])
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    rows = {row["kept"]: row for row in record["rows"]}
    assert {row["numbers"] for row in rows.values()} == {0, 9 * 128, 9 * 96, 4 * 128, 128}
    nothing = rows.pop("nothing: the mean training picture")
    for kept in list(KINDS)[:3]:  # means over blocks need more pictures
        assert rows[kept]["psnr"]["low"] > nothing["psnr"]["high"]
    assert str(tmp_path) not in json.dumps(record)
    assert Image.open(tmp_path / "new" / "f.png").width > 600


def test_pages_have_the_results_and_a_figure_that_is_small() -> None:
    rows = json.loads((REPOSITORY / RESULTS).read_text(encoding="utf-8"))["rows"]
    audit, threats = (
        (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
        for name in ("audit.md", "threat-model.md")
    )
    assert f"<!-- {RESULTS} -->\n{markdown(rows)}\n" in audit
    names = ("pictures", "what is kept", "SSIM", "recognized, %")
    quoted = threats.partition(f"<!-- {RESULTS} -->\n")[2].partition("\n\n")[0].splitlines()
    told = {"| " + " | ".join(COLUMNS[name](row) for name in names) + " |" for row in rows}
    assert quoted[0] == "| " + " | ".join(names) + " |"
    assert len(quoted) > 4 and set(quoted[2:]) <= told
    assert (REPOSITORY / "docs" / "picture" / "audit.png").stat().st_size < 150_000
