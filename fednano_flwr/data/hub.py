"""A data set's files from the Hugging Face hub."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from fednano_flwr.data.errors import DataError


def download(hub_id: str, files: str, revision: str) -> Path:
    """The data set's folder in the hub's cache, downloaded if it is not there yet.

    Args:
        files: pattern of the files that are needed.
        revision: branch, tag or commit; "" is the default branch.

    Returns:
        A folder that is called by the commit.

    Raises:
        DataError: it is neither in the cache nor to be had, or there is no such revision.
    """
    from huggingface_hub import constants, snapshot_download

    wanted = partial(
        snapshot_download,
        hub_id,
        repo_type="dataset",
        revision=revision or None,
        allow_patterns=files,
    )
    try:
        return Path(wanted(local_files_only=constants.HF_HUB_OFFLINE))
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        with suppress(Exception):  # of a commit, it asks the hub even for what is in the cache
            return Path(wanted(local_files_only=True))
        at, option = f" at dataset.revision = '{revision}'", f" --revision {revision}"
        raise DataError(
            f"dataset.path = '{hub_id}'{at if revision else ''} is no path on this machine; as a "
            f"hub id, it is not in the Hugging Face cache and cannot be downloaded: {error}. Fetch "
            f"it where there is a connection ('hf download --repo-type dataset {hub_id}"
            f"{option if revision else ''}'), or set "
            "dataset.path to a folder with a copy of it."
        ) from error
