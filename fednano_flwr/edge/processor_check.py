"""Whether a model's processor, tokenizer and config fit together; no weight is read for it."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from fednano_flwr.config import ConfigError
from fednano_flwr.data.prompts import user_text
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.edge.prompting import Prompting
from fednano_flwr.models.checkpoint import Checkpoint
from fednano_flwr.models.edge_half import image_token
from fednano_flwr.models.families.base import WHOLE
from fednano_flwr.models.skeleton import count_features

if TYPE_CHECKING:
    from fednano_flwr.edge.questions import Question, QuestionEncoder

PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer_config.json"
QFORMER = "qformer_tokenizer"


def check_processor(checkpoint: Checkpoint, processor: Any, encoder: QuestionEncoder) -> None:
    """Take a question without a picture and one with it through processor, tokenizer and config.

    Args:
        encoder: made with `processor`.

    Raises:
        ConfigError: they do not fit together; names the file and the key.
    """
    try:
        _check_kind(checkpoint, processor)
        _check_vocabulary(checkpoint, processor.tokenizer)
        prompts = _check_template(Prompting(checkpoint.family, processor), processor)
        _check_tokens(processor.tokenizer, encoder, prompts)
        _check_features(checkpoint, processor, encoder)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.folder}: {error}") from error


@lru_cache(maxsize=2)
def _question(pictures: int) -> Sample:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(file, "PNG")
    picture = Picture(data=file.getvalue()) if pictures else None
    options = ("the first one", "the second one")
    return Sample("check", "Which one is it?", "check", "check", options, answer=0, image=picture)


def _check_kind(checkpoint: Checkpoint, processor: Any) -> None:
    """The processor is the family's, and a Q-Former has its own tokenizer."""
    kind, known = type(processor).__name__, checkpoint.family.processors
    if kind not in known:
        raise ConfigError(
            f"processor_class is {kind} ({PROCESSOR}, {TOKENIZER}), and a model of the family "
            f"{checkpoint.config.model_type} has {' or '.join(known)}"
        )
    if hasattr(processor, "qformer_tokenizer"):
        folder = checkpoint.folder / QFORMER
        if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
            raise ConfigError(  # transformers would take the language model's
                f"{QFORMER}/tokenizer.json and vocab.txt are missing: the Q-Former's tokenizer"
            )
        tokens, rows = len(processor.qformer_tokenizer), checkpoint.config.qformer_config.vocab_size
        if tokens > rows:
            raise ConfigError(
                f"the Q-Former's tokenizer has {tokens} tokens ({QFORMER}/), its table {rows} rows "
                "(vocab_size in qformer_config of config.json)"
            )


def _check_vocabulary(checkpoint: Checkpoint, tokenizer: Any) -> None:
    """The tokenizer's tokens are in the model's table, and answers have an end."""
    rows, end = checkpoint.config.get_text_config().vocab_size, tokenizer.eos_token_id
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens (tokenizer.json), the model's table "
            f"{rows} rows (vocab_size in config.json): one of them is another model's"
        )
    if end is None:
        raise ConfigError(f"{TOKENIZER} has no eos_token, so that no answer would end")
    if end >= rows:
        raise ConfigError(
            f"eos_token in {TOKENIZER}, {tokenizer.eos_token}, is token {end}, and the model's "
            f"table has {rows} rows (vocab_size in config.json)"
        )


def _check_template(prompting: Prompting, processor: Any) -> list[str]:
    """A prompt has the question's text and pictures once, and is the same tomorrow.

    Returns:
        The prompts without and with a picture.
    """
    image, prompts = _image_token(processor), []
    for pictures in (0, 1):
        sample = _question(pictures)
        text = user_text(sample)
        try:
            prompt = prompting.write(sample)
            dated = prompting.writes_date(sample)
        except Exception as error:  # a template is a program
            raise ConfigError(f"the chat template cannot be filled: {_line(error)}") from error
        if dated:
            raise ConfigError(
                "the chat template writes today's date (strftime_now), so that a question is "
                "another prompt on another day: write a fixed date in its place"
            )
        if prompt.count(text) != 1 or prompt.count(image) != pictures:
            raise ConfigError(
                f"the chat template writes a question as {prompt!r}; that must have {text!r} once "
                f"and {image} {pictures} times (a template for turns that are plain text does not "
                "take a list of texts and pictures)"
            )
        prompts.append(prompt)
    return prompts


def _check_tokens(tokenizer: Any, encoder: QuestionEncoder, prompts: list[str]) -> None:
    """A prompt becomes all of its tokens, after what opens it, and nothing follows."""
    ids = _encoded(encoder, 0).ids.tolist()
    plain = tokenizer(prompts[0], add_special_tokens=False, **WHOLE)["input_ids"]
    if ids[-len(plain) :] != plain:
        extra = [token for token in ids if token not in plain]
        raise ConfigError(
            f"the tokenizer makes {len(ids)} tokens of a prompt of {len(plain)}, and does not end "
            f"with the prompt's last; added are {tokenizer.convert_ids_to_tokens(extra)}: an "
            f"answer would come after them. Set add_eos_token in {TOKENIZER} to false, or mend "
            "post_processor in tokenizer.json"
        )
    opening = ids[: -len(plain)]
    if opening and opening[-1] == plain[0]:
        raise ConfigError(
            f"a prompt begins with {tokenizer.convert_ids_to_tokens(plain[0])} twice, as the chat "
            f"template writes it and the tokenizer adds it: it must be bos_token in {TOKENIZER}, "
            "and the first that the template writes"
        )


def _check_features(checkpoint: Checkpoint, processor: Any, encoder: QuestionEncoder) -> None:
    """A picture's places in a prompt are the config's, and as many as its features."""
    token, text = image_token(checkpoint), _image_token(processor, in_ids=True)
    known = processor.tokenizer.convert_tokens_to_ids(text)
    if known != token:
        raise ConfigError(
            f"image_token_id (image_token_index) {token} of config.json is not the tokenizer's "
            f"{text}, {known}"
        )
    settings = _settings(checkpoint, processor)
    places = int((_encoded(encoder, 1, f"{settings}; ").ids == token).sum())
    pictures = encoder.vision_inputs(_question(1))
    try:
        features = count_features(checkpoint.config, pictures)
    except ConfigError:
        raise
    except Exception as error:  # from deep inside the model's code
        raise ConfigError(
            "the model of config.json (vision_config) cannot take a picture as the processor makes "
            f"it ({PROCESSOR}, preprocessor_config.json): {_line(error)}"
        ) from error
    if features is not None and features != places:
        raise ConfigError(
            f"the model gives {features} features a picture, and the processor asks for {places}: "
            f"{settings}"
        )


def _encoded(encoder: QuestionEncoder, pictures: int, settings: str = "") -> Question:
    try:
        return encoder.unanswered(_question(pictures))
    except Exception as error:  # a file's values reach deep into transformers and tokenizers
        what = "a picture" if pictures else "no picture"
        raise ConfigError(
            f"a question with {what} cannot be made a prompt: {settings}{_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _image_token(processor: Any, in_ids: bool = False) -> str:
    """What a prompt has where a picture stands.

    Args:
        in_ids: as the tokenizer sees it, which is another token in Gemma 3.

    Raises:
        ConfigError: the processor does not say.
    """
    token = getattr(processor, "image_token", None)
    if in_ids:
        token = getattr(processor.tokenizer, "image_token", None) or token
    if not token:
        raise ConfigError(f"{type(processor).__name__}: {TOKENIZER} has no image_token")
    return getattr(token, "content", token)


def _settings(checkpoint: Checkpoint, processor: Any) -> str:
    """What decides how many places a picture takes, in words: what looks wrong, else all."""
    file = checkpoint.folder / PROCESSOR
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    written = content | content.get("image_processor", {})
    config = checkpoint.config
    odd: list[str] = []
    well: list[str] = []
    for key in checkpoint.family.picture_keys:
        own = getattr(processor, key, written.get(key, ...))
        if own is ...:
            continue
        model = getattr(config, key, None)
        model = getattr(config.vision_config, key, None) if model is None else model
        stated = f"{key} = {own!r}" if key in written else f"{key} is missing"
        agree = key in written and model in (None, own)
        (well if agree else odd).append(stated + ("" if model is None else f" ({model!r} there)"))
    keys = ", ".join(odd or well) or "no key says how many"
    return f"in {PROCESSOR}, beside config.json, {keys}"
