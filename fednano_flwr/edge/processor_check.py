"""Whether a model's processor, tokenizer and config fit together; no weight is read for it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from fednano_flwr.config import ConfigError
from fednano_flwr.data.prompts import user_text
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sounds import noise
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import placeholders
from fednano_flwr.models.families.base import ENCODERS, WHOLE, place_text
from fednano_flwr.models.skeleton import count_features

if TYPE_CHECKING:
    from fednano_flwr.edge.encoder import QuestionEncoder

KINDS = {"image": "picture", "audio": "sound"}
PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer_config.json"
QFORMER = "qformer_tokenizer"


def check_processor(checkpoint: ModelCheckpoint, encoder: QuestionEncoder) -> None:
    """Take questions through processor, tokenizer and config: without and with picture and sound.

    Args:
        encoder: made with the checkpoint's processor.

    Raises:
        ConfigError: they do not fit together; names the file and the key.
    """
    try:
        _check_kind(checkpoint, encoder.processor)
        _check_vocabularies(checkpoint, encoder.processor)
        prompt = _check_template(checkpoint, encoder)
        _check_tokens(encoder, prompt)
        for site, tokens in placeholders(checkpoint).items():
            _check_features(checkpoint, encoder, site, tokens)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.folder}: {error}") from error


@cache
def _question(site: str = "text") -> Sample:
    """With a picture, a sound or neither."""
    options = ("the first one", "the second one")
    plain = Sample("check", "Which one is it?", "check", "check", options, answer=0)
    if site == "audio":
        return replace(plain, sounds=(noise(),))
    file = io.BytesIO()
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(file, "PNG")
    return replace(plain, images=(Picture(data=file.getvalue()),)) if site == "image" else plain


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever is raised in the block is a ConfigError: a file's values reach deep into libraries.

    Raises:
        ConfigError: says what cannot be done, and why.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{what}: {type(error).__name__}: {line}") from error


def _check_kind(checkpoint: ModelCheckpoint, processor: Any) -> None:
    """The processor is the family's, where that is known, and a Q-Former has its own tokenizer."""
    kind, known = type(processor).__name__, checkpoint.family.processors
    if known and kind not in known:
        raise ConfigError(
            f"processor_class is {kind} ({PROCESSOR}, {TOKENIZER}), and a model of the family "
            f"{checkpoint.config.model_type} has {' or '.join(known)}"
        )
    files = [checkpoint.folder / QFORMER / file for file in ("tokenizer.json", "vocab.txt")]
    if hasattr(processor, QFORMER) and not any(file.is_file() for file in files):
        raise ConfigError(  # transformers would take the language model's
            f"{QFORMER}/tokenizer.json and vocab.txt are missing: the Q-Former's tokenizer"
        )


def _check_vocabularies(checkpoint: ModelCheckpoint, processor: Any) -> None:
    """All tokens are in the model's tables, and answers have an end."""
    config, tokenizer = checkpoint.config, processor.tokenizer
    rows, end = config.get_text_config().vocab_size, tokenizer.eos_token_id
    tables = [("tokenizer.json", tokenizer.vocab_size, rows)]
    if hasattr(processor, QFORMER):
        tables.append((QFORMER, len(processor.qformer_tokenizer), config.qformer_config.vocab_size))
    for name, tokens, places in tables:
        if tokens > places:
            raise ConfigError(
                f"{name} has {tokens} tokens, the model's table {places} rows (vocab_size in "
                "config.json): one of them is another model's"
            )
    if end is None:
        raise ConfigError(f"{TOKENIZER} has no eos_token, so that no answer would end")
    if end >= rows:
        raise ConfigError(
            f"eos_token in {TOKENIZER}, {tokenizer.eos_token}, is token {end}, and the model's "
            f"table has {rows} rows (vocab_size in config.json)"
        )


def _check_template(checkpoint: ModelCheckpoint, encoder: QuestionEncoder) -> str:
    """A prompt has the question's text and files once, and is the same tomorrow.

    Returns:
        The prompt of text alone.
    """
    prompting, modalities = encoder.prompting, checkpoint.family.modalities_of(checkpoint.config)
    places = {site: _place(encoder.processor, site) for site in modalities}
    for asked in (*modalities, "text"):
        sample = _question(asked)
        text = user_text(sample)
        with _explained("the chat template cannot be filled"):
            prompt, dated = prompting.write(sample), prompting.writes_date(sample)
        if dated:
            raise ConfigError(
                "the chat template writes today's date (strftime_now), so that a question is "
                "another prompt on another day: write a fixed date in its place"
            )
        for site, place in places.items():
            times = int(asked == site)
            if prompt.count(text) != 1 or prompt.count(place) != times:
                raise ConfigError(
                    f"the chat template writes a question as {prompt!r}; that must have {text!r} "
                    f"once and {place} {times} times (a template for turns that are plain text "
                    "does not take a list of parts)"
                )
    return prompt


def _check_tokens(encoder: QuestionEncoder, prompt: str) -> None:
    """A prompt becomes all of its tokens, after what opens it, and nothing follows."""
    tokenizer = encoder.processor.tokenizer
    with _explained("a question of text alone cannot be made a prompt"):
        ids = encoder.unanswered(_question()).ids.tolist()
    plain = tokenizer(prompt, add_special_tokens=False, **WHOLE)["input_ids"]
    if ids[-len(plain) :] != plain:
        extra = [token for token in ids if token not in plain]
        raise ConfigError(
            f"the tokenizer makes {len(ids)} tokens of a prompt of {len(plain)}, and does not end "
            f"with the prompt's last; added are {tokenizer.convert_ids_to_tokens(extra)}: an "
            f"answer would come after them. Set add_eos_token in {TOKENIZER} to false, or correct "
            "post_processor in tokenizer.json"
        )
    opening = ids[: -len(plain)]
    if opening and opening[-1] == plain[0]:
        raise ConfigError(
            f"a prompt begins with {tokenizer.convert_ids_to_tokens(plain[0])} twice, as the chat "
            f"template writes it and the tokenizer adds it: it must be bos_token in {TOKENIZER}, "
            "and the first that the template writes"
        )


def _check_features(
    checkpoint: ModelCheckpoint, encoder: QuestionEncoder, site: str, tokens: tuple[int, ...]
) -> None:
    """A picture's or a sound's places in a prompt are the config's, and as many as its features."""
    processor, kind, token = encoder.processor, KINDS[site], tokens[0]
    text = checkpoint.family.feature_token(processor)
    if site == "audio":
        text = _place(processor, site)
    known = processor.tokenizer.convert_tokens_to_ids(text)
    if known != token:
        raise ConfigError(
            f"{site}_token_id ({site}_token_index) {token} of config.json is not the tokenizer's "
            f"{text}, {known}"
        )
    settings = _settings(checkpoint, processor) if site == "image" else "see its files"
    with _explained(f"a question with a {kind} cannot be made a prompt: {settings}"):
        ids = encoder.unanswered(_question(site)).ids
        places = int(torch.isin(ids, torch.tensor(tokens)).sum())
        inputs = encoder.vision_inputs(_question(site))
    with _explained(
        f"the model of config.json ({ENCODERS[site]}) cannot take a {kind} as the processor makes "
        f"it ({PROCESSOR}, preprocessor_config.json)"
    ):
        features = count_features(checkpoint.edge_tree[0], site, inputs)
    if features is not None and features != places:
        raise ConfigError(
            f"the model gives {features} features a {kind}, and the processor asks for {places}: "
            f"{settings}"
        )


def _place(processor: Any, site: str) -> str:
    """What a prompt has where a picture, or a sound, stands.

    Raises:
        ConfigError: the processor does not say.
    """
    if not (found := place_text(processor, site)):
        raise ConfigError(f"{type(processor).__name__}: {TOKENIZER} has no {site}_token")
    return found


def _settings(checkpoint: ModelCheckpoint, processor: Any) -> str:
    """What decides how many places a picture takes; settings that look wrong come first."""
    file, config = checkpoint.folder / PROCESSOR, checkpoint.config
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    written = content | content.get("image_processor", {})
    odd: list[str] = []
    others: list[str] = []
    for key in checkpoint.family.picture_keys:
        if not hasattr(processor, key) and key not in written:
            continue
        own = getattr(processor, key, written.get(key))
        model = getattr(config, key, None) or getattr(config.vision_config, key, None)
        stated = f"{key} = {own!r}" if key in written else f"{key} is missing"
        looks_wrong = key not in written or model not in (None, own)
        there = "" if model is None else f" ({model!r} there)"
        (odd if looks_wrong else others).append(stated + there)
    keys = ", ".join(odd + others) or "no key says how many"
    return f"in {PROCESSOR}, beside config.json, {keys}"
