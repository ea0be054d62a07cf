import json
import re
from pathlib import Path

from fednano_flwr.data.load import load_questions
from fednano_flwr.data.metrics import METRICS
from fednano_flwr.data.partition import check_partitioner
from fednano_flwr.data.sources import find_source, source_names, table
from tests.data.conftest import png, settings

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = "".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("data.md", "own-data.md")
)


def test_the_documented_layouts_are_those_the_errors_show():
    documented = {
        line.split()[0] for line in DOCS.splitlines() if line.startswith("<dataset.path>")
    }
    shown = {
        line.split()[0]
        for layout in (find_source(name).layout for name in source_names())
        for line in layout.splitlines()
        if "<dataset.path>" in line
    }
    assert documented == shown


def test_the_documented_dialogue_is_read(tmp_path):
    (row,) = re.findall(r"## The file\n.*?```json\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(png())
    (tmp_path / "my.jsonl").write_text(row)
    path = str(tmp_path / "my.jsonl")
    found = load_questions(settings(name="messages", path=path, test_fraction=0.5))
    assert [(s.question, s.free_answer) for s in found.train] == [("What is this?", "A cup.")]


def test_the_documented_columns_are_those_that_a_table_finds():
    section = DOCS.partition("\n## Table\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\w, ]+) \| .* ?\|$", section, re.MULTILINE)
    documented = {
        role: tuple(name for name in names.split(", ") if "`, `" not in roles or name == role)
        for roles, names in rows
        for role in re.findall(r"\w+", roles)
        if names != "none"
    }
    assert documented == {role: names for role, names in table.COLUMNS.items() if names}


def test_the_documented_metrics_are_those_that_there_are_with_their_labels():
    section = DOCS.partition("\n## Prompt and scoring\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[\w-]+`(?:, `[\w-]+`)*) \| ([\w -]+) \|", section, re.MULTILINE)
    documented = {name: label for names, label in rows for name in re.findall(r"[\w-]+", names)}
    assert documented == {name: metric.label for name, metric in METRICS.items()}


def test_the_documented_partitioners_take_the_documented_arguments():
    examples = re.findall(r"dataset\.partitioner=(\w+) -c dataset\.partitioner-args=(\S+)", DOCS)
    assert len(examples) == 2
    for name, args in examples:
        check_partitioner(settings(partitioner=name, partitioner_args=args))


def test_the_documented_memory_is_what_the_benchmarks_measured():
    measured = [
        [(f"{r['peak_mib']:.0f}", f"{r['seconds']:.1f}") for r in results.values()]
        for name in ("iconqa_memory", "rows_memory", "rows_memory_parquet")
        for results in [json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["results"]]
    ]
    row = r"^\| (?:read|from) [^|]+((?:\| \d+ \| [\d.]+ )+)\|$"
    figures = [re.findall(r"[\d.]+", found) for found in re.findall(row, DOCS, re.MULTILINE)]
    documented = [[(f[0], f[1]) for f in figures[:3]], [(f[0], f[1]) for f in figures[3:]]]
    assert [*documented, [(f[2], f[3]) for f in figures[3:]]] == measured
