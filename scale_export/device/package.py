"""Opening a package and asking it: preprocessing, tokens, streaming, strength and swapped scalars.

Nothing here imports torch: a device needs numpy, transformers' processors and the backend's own runtime.
A picture is an image of Pillow's or a file's path; ``load_picture`` says what becomes of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from scale_export.coefficients.file import Coefficients, load_coefficients
from scale_export.compat.without_torch import without_torch
from scale_export.core.borders import refusing
from scale_export.core.defaults import ANSWER_TOKENS
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Processor, Tokenizer
from scale_export.core.pictures import Picture
from scale_export.core.records import Array, Float32
from scale_export.core.watch import bounded, graph_bound
from scale_export.families import load_family
from scale_export.families._family import Family
from scale_export.package.hub import package_directory
from scale_export.package.manifest import PackageFiles, open_package_files
from scale_export.package.signing import Signature, check_signature

from . import generation
from .engine import Engine, Scalars
from .generation import Inputs, Stopped
from .memory import Memory
from .onnxruntime import genai
from .open import check_threads, open_engine
from .prompts import Message, encode_messages, user_message
from .rules import GenerationRules, read_rules

__all__ = ["AnswerStream", "Package", "open_package"]

AHEAD = "?"
"""Stands for a question that is not known yet; what follows its pictures runs again."""

PROCESSOR_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""The files of a Hugging Face model directory that its processor reads; a package carries those there are."""


class AnswerStream(Iterator[str]):
    """The pieces of a greedy answer, each as its text becomes certain.

    Attributes:
        stopped: why the answer stopped; None until its last piece was taken.
        guard: what each piece is made within.
    """

    def __init__(self, tokens: Generator[int, None, Stopped], tokenizer: Tokenizer) -> None:
        self.stopped: Stopped | None = None
        self.guard: Callable[[], AbstractContextManager[None]] = nullcontext
        self._pieces = self._decoded(self._until_stopped(tokens), tokenizer)

    def __next__(self) -> str:
        with self.guard():
            piece = next(self._pieces, None)
        if piece is None:
            raise StopIteration
        return piece

    def _until_stopped(self, tokens: Generator[int, None, Stopped]) -> Iterator[int]:
        self.stopped = yield from tokens

    @staticmethod
    def _decoded(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
        ids: list[int] = []
        shown = text = ""
        for token in tokens:
            ids.append(token)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if text.startswith(shown) and not text.endswith("\ufffd"):  # half a character: wait for the rest
                yield text[len(shown) :]
                shown = text
        if text.startswith(shown):
            yield text[len(shown) :]


@dataclass(frozen=True, kw_only=True)
class Responder:
    """A generator with its processor: from a conversation to text."""

    processor: Processor
    generator: generation.Generator
    rules: GenerationRules

    def stream(
        self, inputs: Inputs, *, max_new_tokens: int, starting: generation.Starting | None = None
    ) -> AnswerStream:
        """A greedy answer, piece by piece as its text becomes certain; ``starting`` as in ``Generator.stream``."""
        tokens = self.generator.stream(
            inputs, max_new_tokens=max_new_tokens, rules=self.rules, starting=starting
        )
        return AnswerStream(tokens, self.processor.tokenizer)

    def answer(self, images: Sequence[Picture], prompt: str, *, max_new_tokens: int) -> str:
        """A whole greedy answer, stripped."""
        return self.reply([user_message(images, prompt)], max_new_tokens=max_new_tokens)

    def reply(self, messages: Sequence[Message], *, max_new_tokens: int) -> str:
        """The same to a conversation whose last turn is the user's."""
        inputs = encode_messages(self.processor, messages)
        return "".join(self.stream(inputs, max_new_tokens=max_new_tokens)).strip()


class Package:
    """An opened package: every hash was verified; graphs and processor load on first use.

    Attributes:
        files: the verified files and their manifest.
        threads: of the runtime's kernels; None leaves the choice to it.
        signature: the one that was checked as it was opened; None without.
    """

    def __init__(
        self, files: PackageFiles, *, threads: int | None = None, signature: Signature | None = None
    ) -> None:
        self.files = files
        self.threads = threads
        self.signature = signature
        self._strength = 1.0
        self._coefficients = load_coefficients(files.path(files.manifest.coefficients))
        self._own = self._coefficients
        self._memory = Memory(scope=files.manifest.scope)

    def refusing(self, fault: str) -> AbstractContextManager[None]:
        """What is raised inside over the package's contents becomes a ``UserError``."""
        return refusing(
            f"package {self.files.directory} cannot be used, since {fault}",
            "it is damaged, or does not fit this version of scale-export; export it again",
        )

    def bounded(self, what: str, tokens: int = 0) -> AbstractContextManager[None]:
        """What graphs do within, opened or run over so many tokens, is held to what their size lets them take."""
        manifest = self.files.manifest
        graphs = tuple(manifest.graphs.values())
        size = sum(entry.size for name, entry in manifest.files.items() if name.startswith(graphs))
        return bounded(
            f"package {self.files.directory}, {what},",
            graph_bound(size, min(tokens, manifest.context_length)),
        )

    @contextmanager
    def _guarded(self, fault: str, tokens: int) -> Iterator[None]:
        with self.refusing(fault), self.bounded("its answer", tokens):
            yield

    @functools.cached_property
    def _family(self) -> Family:
        manifest = self.files.manifest
        return load_family(manifest.model_type, generic=manifest.generic)

    @functools.cached_property
    def processor(self) -> Processor:
        """Hugging Face's processor, from the package's own files."""
        self.files.check_unchanged()
        with self.refusing("its processor cannot be loaded"), without_torch():
            processor = self._family.load_processor(self.files.directory)
        self.files.check_unchanged()
        return processor

    @functools.cached_property
    def engine(self) -> Engine:
        """The backend's sessions on the package's graphs."""
        manifest = self.files.manifest
        graphs = {str(role): self.files.path(name) for role, name in manifest.graphs.items()}
        with self.refusing("its graphs cannot be opened"), self.bounded("its graphs' opening"):
            engine = open_engine(
                manifest.backend,
                graphs,
                context_length=manifest.context_length,
                providers=manifest.execution_providers,
                threads=self.threads,
            )
        self.files.check_unchanged()
        return engine

    def ready(self) -> None:
        """Load graphs and processor now, side by side where the runtime allows it, and not on first use.

        Raises:
            UserError: as the package is found unusable.
        """
        if self.files.manifest.backend == "onnxruntime":  # others look for torch while they are imported
            with self.bounded("its opening"), ThreadPoolExecutor(max_workers=1) as pool:
                engine = pool.submit(getattr, self, "engine")
                _ = self.processor
                engine.result()
        _ = self.responder

    @functools.cached_property
    def generator(self) -> generation.Generator:
        """The engine with the family's image rules and this package's fold mode."""
        manifest = self.files.manifest
        return generation.Generator(
            engine=self.engine,
            family=self._family,
            fold=manifest.fold,
            image_token_id=manifest.image_token_id,
            runtime_config=manifest.extras,
        )

    @functools.cached_property
    def responder(self) -> Responder:
        """The generator, the processor, and the rules by which tokens are chosen."""
        with self.refusing("its rules of generation cannot be read"):
            rules = read_rules(self.files.directory, self.processor.tokenizer)
        return Responder(processor=self.processor, generator=self.generator, rules=rules)

    @property
    def scale(self) -> float:
        """The scalars' strength: 0 is the base model, 1 is ScAle as trained; between, s = 1 + strength · (s − 1)."""
        return self._strength

    @scale.setter
    def scale(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise UserError(
                f"strength {strength} is refused: give a number between 0 (base model) and 1 (ScAle)"
            )
        self._override(self._coefficients, strength)

    @property
    def coefficients(self) -> Coefficients:
        """The scalars in force; assigning others of the same base model and scope swaps them live."""
        return self._coefficients

    @coefficients.setter
    def coefficients(self, other: Coefficients) -> None:
        own, new = self._own.base, other.base
        if (own.config_sha256, own.model_type) != (new.config_sha256, new.model_type):
            raise UserError(
                "these coefficients belong to another base model than the package's: export a package for them"
            )
        for name in own.tensor_sha256.keys() & new.tensor_sha256.keys():
            if own.tensor_sha256[name] != new.tensor_sha256[name]:
                raise UserError(
                    f"these coefficients belong to another base model ({name} differs): export a package for them"
                )
        if other.scope != self._own.scope:
            raise UserError(
                f"these coefficients have scope {other.scope!r}, but the package was built for {self._own.scope!r}: "
                f"export a package for them"
            )
        self._override(other, self._strength)

    def _override(self, coefficients: Coefficients, strength: float) -> None:
        unchanged = coefficients is self._own and strength == 1
        if not unchanged and not self.engine.can_override:
            raise UserError(
                f"the scalars of this package are in its weights (fold mode {self.files.manifest.fold}): "
                f"export it again with --fold gate to change them"
            )
        self._coefficients, self._strength = coefficients, strength
        self.generator.scalars = None if unchanged else self._scalars()

    def _scalars(self) -> Scalars:
        facts = self.files.manifest.decoder
        attn, mlp = self._coefficients.dense(facts.num_layers, facts.num_heads)
        return Scalars(attn=attn, mlp=mlp).at(self._strength)

    def prepare(self, images: Sequence[Picture], prompt: str) -> Inputs:
        """The model's inputs for one question."""
        return self.prepare_chat([user_message(images, prompt)])

    def prepare_chat(self, messages: Sequence[Message]) -> Inputs:
        """The model's inputs for a conversation whose last turn is the user's."""
        self.files.check_unchanged()
        with self.refusing("its processor fails on this conversation"):
            return encode_messages(self.processor, messages)

    def genai_inputs(self, images: Sequence[Picture], prompt: str) -> dict[str, Array]:
        """One question as the named tensors that onnxruntime-genai takes; see docs/package.md.

        Raises:
            UserError: the package has no ``genai_config.json``.
        """
        manifest = self.files.manifest
        if not manifest.holds(genai.CONFIG):
            raise UserError(
                f"this package has no {genai.CONFIG}: it is written only for {', '.join(sorted(genai.MODEL_TYPES))}, "
                f"on the CPU, not two-phase; use the package's own generate"
            )
        inputs = self.prepare(images, prompt)
        return genai.genai_inputs(inputs, self._family, manifest.extras, manifest.image_token_id)

    def generate(
        self, images: Sequence[Picture], prompt: str, *, max_new_tokens: int = ANSWER_TOKENS
    ) -> AnswerStream:
        """Stream a greedy answer, piece by piece as its text becomes certain; ``stopped`` says why it ended.

        Raises:
            UserError: as ``load_picture`` and ``encode_messages``; ContextFull, as the first piece is taken, where the
                prompt doesn't fit the package's context.
        """
        self.ready()
        return self.stream(self.prepare(images, prompt), max_new_tokens=max_new_tokens)

    def stream(self, inputs: Inputs, *, max_new_tokens: int = ANSWER_TOKENS) -> AnswerStream:
        """``generate`` from prepared inputs.

        Pictures and the beginning of a prompt that the last question had too do not run again (``Memory``).
        """
        pieces = self.responder.stream(inputs, max_new_tokens=max_new_tokens, starting=self._memory.start)
        tokens = inputs["input_ids"].size
        pieces.guard = lambda: self._guarded("it fails on this conversation", tokens + max_new_tokens)
        return pieces

    def prefill(self, images: Sequence[Picture]) -> None:
        """Run pictures before their question is known, so that the first answer to one about them begins soon.

        Raises:
            UserError: as ``generate``.
        """
        self.ready()
        inputs = self.prepare(images, AHEAD)
        with (
            self._guarded("it fails on these pictures", inputs["input_ids"].size),
            self._memory.start(self.generator, inputs),
        ):
            pass

    def forget(self) -> None:
        """Let go of what is kept of the last questions: pictures' features, and the decoder's cache."""
        self._memory.forget()

    def answer(self, images: Sequence[Picture], prompt: str, *, max_new_tokens: int = ANSWER_TOKENS) -> str:
        """A whole greedy answer, stripped."""
        return "".join(self.generate(images, prompt, max_new_tokens=max_new_tokens)).strip()

    def logits(self, images: Sequence[Picture], prompt: str, tokens: Sequence[int] = ()) -> Float32:
        """Logits ``[len(tokens) + 1, V]`` after the prompt and after each token fed as if generated."""
        self.ready()
        inputs = self.prepare(images, prompt)
        with self._guarded("it fails on this question", inputs["input_ids"].size + len(tokens)):
            return self.generator.forced_logits(inputs, tokens)


def open_package(
    path: str | Path,
    *,
    threads: int | None = None,
    public_key: str | Path | None = None,
    signature: str | Path | None = None,
) -> Package:
    """Open a package, verifying every file's hash first.

    Args:
        path: its folder, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hugging Face hub. What is here wins, and
            a ``Path`` is never asked of the hub; see ``hub_name``.
        threads: of the runtime's kernels; None leaves the choice to it.
        public_key: a PEM file; the package must carry a signature by that key, checked on the same files.
        signature: the signature's file; by default ``<package>.sig`` beside the package.

    Raises:
        UserError: not a package, one that was changed since it was written or is not signed by that key, or one that
            the hub doesn't give; or too many threads.
    """
    check_threads(threads)
    directory = package_directory(path)
    if signature is not None and public_key is None:
        raise UserError("a signature can only be checked with its signer's public key: give --public-key too")
    files, signed = open_package_files(directory), None
    if public_key is not None:
        signed = check_signature(directory, Path(public_key), None if signature is None else Path(signature))
        files.check_unchanged()
    return Package(files, threads=threads, signature=signed)
