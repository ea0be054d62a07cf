import dataclasses
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import fednano_flwr.data
from fednano_flwr.data.shard import read_shards
from tests.data.conftest import settings

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = [
    f"fednano_flwr.data.{module.name}"
    for module in pkgutil.iter_modules(fednano_flwr.data.__path__)
]

SPLIT_WITHOUT_FLOWER = """
import importlib, json, sys
sys.modules["flwr"] = sys.modules["ray"] = None          # importing either raises ImportError
for module in json.loads(sys.argv[2]):
    importlib.import_module(module)
heavy = ("torch", "transformers", "datasets", "flwr_datasets", "pyarrow", "matplotlib")
early = [name for name in heavy if name in sys.modules]
from fednano_flwr.config import Dataset
from fednano_flwr.data.shard import read_shards
dataset = Dataset(**json.loads(sys.argv[1]))
part = read_shards(dataset, 7, 3)[1]
assert "torch" not in sys.modules
print(json.dumps([early, [s.uid for s in part.train], [s.uid for s in part.test]]))
"""


def test_data_works_without_flower_and_ray_and_splits_the_same_in_every_process(
    write_scienceqa, tmp_path_factory
):
    other = tmp_path_factory.mktemp("other")
    topics = ["physics", "biology", "grammar"]
    problems = {str(pid): {"topic": topics[pid % 3]} for pid in range(60)}
    path = write_scienceqa(problems, train=list(range(40)), test=list(range(40, 60)))
    dataset = settings(path=str(path), min_partition_size=2)
    here = read_shards(dataset, 7, 3)[1]

    fields = json.dumps(dataclasses.asdict(dataset))
    answer = subprocess.run(
        [sys.executable, "-c", SPLIT_WITHOUT_FLOWER, fields, json.dumps(MODULES)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONHASHSEED": "1234",
            "HF_HUB_OFFLINE": "1",
            "FEDNANO_CACHE": str(other),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    heavy, train, test = json.loads(answer.stdout)
    assert heavy == [], "these must not be imported before a split is asked for"
    assert train == [sample.uid for sample in here.train]
    assert test == [sample.uid for sample in here.test]
