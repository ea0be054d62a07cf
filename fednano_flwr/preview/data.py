"""What the clients of a run would read, or one client with data of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fednano_flwr.base.reasons import first_few
from fednano_flwr.config import Dataset, RunConfig
from fednano_flwr.data.defects import describe_skipped
from fednano_flwr.data.load import check_dataset, load_questions
from fednano_flwr.data.metrics import find_metric, metric_label
from fednano_flwr.data.own import is_file_of_rows, own_shard
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.shard import Shard, read_shards
from fednano_flwr.data.shard_folder import read_manifest


@dataclass(frozen=True)
class Data:
    """What clients read, before a model has seen it.

    Attributes:
        place: where it lies.
        metric: what the mean score of free answers is called.
        shards: of the clients that are looked at, by their number.
        columns: which column is read as what, by split.
        left_out: rows that no client gets, by reason, for people.
    """

    dataset: Dataset
    place: str
    metric: str
    shards: dict[int, Shard]
    columns: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def repeated(self) -> list[str]:
        """Names of test questions that one of these clients also trains on, with the answer."""
        trained = {_content(sample) for shard in self.shards.values() for sample in shard.train}
        tested = (sample for shard in self.shards.values() for sample in shard.test)
        return [sample.uid for sample in tested if _content(sample) in trained]


def read_data(config: RunConfig, clients: int, client: int | None, data_path: str = "") -> Data:
    """Read what the clients of a run would read.

    Args:
        client: the only one to look at.
        data_path: of one client's own data, as in its node config: a shard knows which client it
            is of, a file is the `client`'s.

    Raises:
        ConfigError: there is no such metric.
        DataError, ResourceError: it cannot be read or dealt, or there is no such client.
    """
    dataset, metric = config.dataset, metric_label(config)
    find_metric(dataset.metric)
    if data_path:
        path = Path(data_path).expanduser().absolute()
        is_file = is_file_of_rows(data_path)
        number = client or 0 if is_file else read_manifest(path)["partition_id"]
        shard, skipped = own_shard(data_path, dataset, config.seed, number)
        shards = {number: shard}
        if not is_file:
            left_out = [describe_skipped(skipped)] if skipped else []
            return Data(dataset, data_path, metric, shards, left_out=left_out)
        questions = load_questions(replace(dataset, path=str(path), revision=""))
    else:
        check_dataset(dataset)
        dealt = read_shards(dataset, config.seed, clients)
        which = range(clients) if client is None else [client]
        shards, questions = {k: dealt.of_client(k) for k in which}, dealt.questions
    left_out = [
        f"{split}: {counted(reason, names)}"
        for split, reasons in questions.left_out.items()
        for reason, names in reasons.items()
    ]
    return Data(dataset, data_path or dataset.path, metric, shards, questions.columns, left_out)


def _content(sample: Sample) -> int:
    """A hash of what a sample asks and of its right answer."""
    return hash(replace(sample, uid="", group="", subject="", references=()))


def counted(reason: str, names: Sequence[str]) -> str:
    return f"{len(names)} {reason} ({first_few(names)})"
