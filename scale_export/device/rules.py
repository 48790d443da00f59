"""Which token comes next: the rules of a model's generation config, in one home for the device and for the proofs.

Answers are greedy: the best token after the rules that act on logits. Transformers' logits processors do the same to
the reference, and nothing here imports torch. ``HONOURED``, ``REFUSED`` and ``IGNORED`` hold every key of transformers'
``GenerationConfig``. As there, a ``generation_config.json`` is all that counts where it exists; else the keys of
``config.json``, and those of its text model where it leaves them unset. The tokenizer's end token comes beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Tokenizer
from scale_export.core.records import Float32, Json

GENERATION_CONFIG: Final = "generation_config.json"
CONFIG: Final = "config.json"
TEXT_CONFIGS: Final = ("decoder", "generator", "text_config")
"""Where ``config.json`` holds its text model, the first that is there."""

HONOURED: Final = (
    "eos_token_id",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""What acts on greedy answers, and does so in packages too."""

REFUSED: Final[Mapping[str, tuple[Json, ...]]] = {
    "stop_strings": (),
    "sequence_bias": (),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "token_healing": (False,),
    "watermarking_config": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "constraints": (),
    "force_words_ids": (),
    "dola_layers": (),
}
"""What acts on answers, or asks for another search than the greedy one, and is not done in packages → the values
beside null that do nothing."""

_SAMPLING: Final = "of sampling, and answers here are greedy"
_BEAMS: Final = "of beam search, which is refused"
_DRAFTS: Final = "of drafts that a model checks: the same tokens sooner"
_LENGTH: Final = "whoever asks says how long an answer may be"
_COMPUTING: Final = "how transformers computes, not what"
_OUTPUTS: Final = "what transformers returns beside the tokens"

IGNORED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "top_h",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "num_return_sequences",
        ),
        _SAMPLING,
    ),
    **dict.fromkeys(("early_stopping", "length_penalty", "diversity_penalty", "low_memory"), _BEAMS),
    **dict.fromkeys(
        (
            "use_mtp",
            "is_assistant",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "assistant_confidence_threshold",
            "prompt_lookup_num_tokens",
            "max_matching_ngram_size",
            "assistant_early_exit",
            "assistant_lookbehind",
            "target_lookbehind",
            "assistant_ensemble_weight",
            "speculation_type",
        ),
        _DRAFTS,
    ),
    **dict.fromkeys(("max_length", "max_new_tokens", "max_time"), _LENGTH),
    **dict.fromkeys(
        (
            "use_cache",
            "cache_implementation",
            "cache_config",
            "max_cache_len",
            "compile_config",
            "disable_compile",
            "continuous_batching_config",
            "prefill_chunk_size",
        ),
        _COMPUTING,
    ),
    **dict.fromkeys(
        (
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "output_logits",
            "return_dict_in_generate",
        ),
        _OUTPUTS,
    ),
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "decoder_start_token_id"), "the processor makes the prompt"
    ),
    "forced_bos_token_id": "acts after prompts of one token only, and chat templates make longer ones",
    "renormalize_logits": "moves all logits alike, and the best token stays the best",
    "remove_invalid_values": "acts on logits that are not finite, with which no export passes",
    "transformers_version": "says who wrote the file",
}
"""What leaves greedy answers as they are → why. Keys that transformers doesn't know act on nothing there either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRules:
    """How the next token of an answer is chosen, by the names of transformers' ``GenerationConfig``.

    Attributes:
        end_tokens: each ends an answer, the tokenizer's own first.
        bad_words_ids: token sequences that may not be completed; an end token alone is none.
        min_length: the least count of tokens of prompt and answer before an end token may come.
        min_new_tokens: the same of the answer alone.
    """

    end_tokens: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()

    @property
    def acting(self) -> tuple[str, ...]:
        """The rules that act on logits, by name; end tokens aside."""
        idle = GenerationRules()
        return tuple(name for name in HONOURED[1:] if getattr(self, name) != getattr(idle, name))

    @property
    def counts_padding(self) -> bool:
        """Whether transformers would take a batch's padding for part of the prompt."""
        return self.min_length > 0 or self.no_repeat_ngram_size > 0

    def choose(self, logits: Float32, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """The next token after ``prompt`` and the ``answer`` so far, by the raw ``logits [V]``."""
        return int((self._scores(logits, prompt, answer) if self.acting else logits).argmax())

    def _scores(self, logits: Float32, prompt: Sequence[int], answer: Sequence[int]) -> Float32:
        """The logits after every rule, float32 ``[V]``."""
        scores = np.array(logits, np.float32)
        said = np.array([*prompt, *answer], np.int64)
        if self.repetition_penalty != 1:
            seen = np.unique(said)
            values = scores[seen]
            penalty = np.float32(self.repetition_penalty)
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        banned = [*self.suppress_tokens, *_repeating(said, self.no_repeat_ngram_size)]
        banned += [word[-1] for word in self.bad_words_ids if _ends_with(said, word[:-1])]
        if not answer:
            banned += self.begin_suppress_tokens
        if len(said) < self.min_length or len(answer) < self.min_new_tokens:
            banned += self.end_tokens
        scores[[token for token in banned if 0 <= token < len(scores)]] = -np.inf
        return scores


def _repeating(said: NDArray[np.int64], size: int) -> list[int]:
    """The tokens that would complete a sequence of ``size`` tokens a second time."""
    if size == 0 or len(said) < size:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(said, size)
    begun = (windows[:, :-1] == said[len(said) - size + 1 :]).all(axis=1)
    found: list[int] = windows[begun, -1].tolist()
    return found


def _ends_with(said: NDArray[np.int64], words: Sequence[int]) -> bool:
    return len(words) <= len(said) and said[len(said) - len(words) :].tolist() == [*words]


def read_rules(directory: Path, tokenizer: Tokenizer) -> GenerationRules:
    """The rules that transformers follows for a model, or a package, in ``directory``.

    Raises:
        UserError: as ``rules_of``, or a file that is no JSON object.
    """
    path = directory / GENERATION_CONFIG
    if path.exists():
        return rules_of(_table(path), tokenizer, str(path))
    path = directory / CONFIG
    table = _table(path) if path.exists() else {}
    inner = next((table[name] for name in TEXT_CONFIGS if table.get(name)), None)
    text = inner if isinstance(inner, dict) else {}
    keys = table.keys() | text.keys()
    merged = {key: text.get(key) if table.get(key) is None else table[key] for key in keys}
    return rules_of(merged, tokenizer, str(path))


def _table(path: Path) -> dict[str, Json]:
    try:
        table: Json = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): correct it") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} is not a JSON object: correct it")
    return table


def rules_of(values: Mapping[str, Json], tokenizer: Tokenizer, where: str) -> GenerationRules:
    """The rules of a generation config's ``values``; ``where`` says in refusals where those stand.

    Raises:
        UserError: a rule that acts on answers and that packages don't follow, a value that is none, or no end token.
    """
    for name, idle in REFUSED.items():
        value = values.get(name)
        if value is not None and value not in idle:
            raise UserError(
                f"{where} sets {name}, which changes answers and which packages do not follow: take it out of there "
                f"(or set it to null), in a copy of the model if need be"
            )
    read = _Reader(values, where)
    named = read.tokens("eos_token_id", single=True)
    own = tokenizer.eos_token_id
    ends = tuple(dict.fromkeys((*(() if own is None else (int(own),)), *named)))
    if not ends:
        raise UserError(
            "the model names no end token; set eos_token in its tokenizer or eos_token_id in generation_config.json"
        )
    least = values.get("min_new_tokens")
    return GenerationRules(
        end_tokens=ends,
        repetition_penalty=read.penalty("repetition_penalty"),
        no_repeat_ngram_size=read.count("no_repeat_ngram_size"),
        bad_words_ids=read.words("bad_words_ids", ends),
        min_length=read.count("min_length") if least is None else 0,
        min_new_tokens=read.count("min_new_tokens"),
        suppress_tokens=read.tokens("suppress_tokens"),
        begin_suppress_tokens=read.tokens("begin_suppress_tokens"),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes values as transformers does, and refuses in a sentence what it refuses in a traceback."""

    values: Mapping[str, Json]
    where: str

    def tokens(self, name: str, *, single: bool = False) -> tuple[int, ...]:
        """A list of token ids, or one where ``single``; none where it is null."""
        value = self.values.get(name)
        listed = [value] if single and _is_id(value) else [] if value is None else value
        if not isinstance(listed, list) or not all(map(_is_id, listed)):
            raise self._wrong(name, "a list of token ids" + " or one" * single)
        return tuple(listed)

    def count(self, name: str) -> int:
        value = self.values.get(name)
        if value is None:
            return 0
        if not _is_id(value) or value < 0:
            raise self._wrong(name, "a count")
        return value

    def penalty(self, name: str) -> float:
        value = self.values.get(name)
        if value is None:
            return 1.0
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise self._wrong(name, "a number above 0 with a decimal point")
        return value

    def words(self, name: str, ends: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Token sequences, end tokens alone left out."""
        value = self.values.get(name)
        if value is None:
            return ()
        words = [_word(word) for word in value] if isinstance(value, list) else [()]
        if not all(words):
            raise self._wrong(name, "a list of lists of token ids")
        kept = tuple(word for word in words if word not in [(end,) for end in ends])
        if not kept:
            raise self._wrong(name, "a list of words that are no end tokens")
        return kept

    def _wrong(self, name: str, what: str) -> UserError:
        shown = json.dumps(self.values.get(name))[:80]
        return UserError(f"{self.where} sets {name} to {shown}, and it must be {what}: correct it")


def _word(value: Json) -> tuple[int, ...]:
    """Its tokens; none where it is no list of token ids."""
    ids = value if isinstance(value, list) else []
    return tuple(ids) if all(_is_id(token) and token >= 0 for token in ids) else ()


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def check_vocabulary(rules: GenerationRules, tokens: int) -> None:
    """Refuse words with ids beyond a vocabulary of ``tokens``, as transformers does; raises UserError."""
    beyond = [token for word in rules.bad_words_ids for token in word if token >= tokens]
    if beyond:
        raise UserError(
            f"bad_words_ids of the model's generation config holds token {beyond[0]}, and its vocabulary ends at "
            f"{tokens - 1}: correct it"
        )
