"""A conversation on the terminal: questions, streamed answers, and what is done where the context is full."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from scale_export.core.errors import ContextFull, UserError
from scale_export.core.terminal import printable

if TYPE_CHECKING:
    from PIL import Image

    from scale_export.device.generation import Inputs
    from scale_export.device.package import Package
    from scale_export.device.prompts import Message


@dataclass(kw_only=True)
class Conversation:
    """Questions to a package about the same pictures, which always stand before the oldest question that is kept.

    Attributes:
        turns: the questions so far with their answers, the oldest first.
    """

    package: Package
    pictures: Sequence[Image.Image]
    max_new_tokens: int
    as_json: bool
    turns: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Print the answer as it comes, and keep the turn.

        Raises:
            ContextFull: the conversation doesn't fit; nothing of the turn was kept.
            UserError: as ``encode_messages``, likewise.
        """
        stream = self.package.stream(self._prepare(question), max_new_tokens=self.max_new_tokens)
        pieces = []
        for piece in stream:
            pieces.append(piece)
            if not self.as_json:
                print(printable(piece, keep="\n\t"), end="", flush=True)
        answer = "".join(pieces).strip()
        self.turns.append((question, answer))
        if self.as_json:
            print(json.dumps({"prompt": question, "answer": answer, "stopped": stream.stopped}), flush=True)
            return
        print()
        if stream.stopped == "context":
            _say(f"the package's context of {self._context} tokens is full, and the answer stops here")

    def go_on(self, question: str | None) -> None:
        """Ask question after question, ``question`` first, until an empty line. What is refused doesn't end it."""
        while question := question or self._typed("> "):
            try:
                self.ask(question)
            except ContextFull as error:
                self._complain(error)
                if self._may_drop():
                    self._drop_turns(question)
                    continue  # with the same question
            except UserError as error:
                self._complain(error)
            question = None

    @property
    def _context(self) -> int:
        return self.package.files.manifest.context_length

    def _prepare(self, question: str) -> Inputs:
        from scale_export.device.prompts import assistant_message, user_message

        messages: list[Message] = []
        for asked, answer in self.turns:
            messages += [user_message([] if messages else self.pictures, asked), assistant_message(answer)]
        return self.package.prepare_chat(
            [*messages, user_message([] if messages else self.pictures, question)]
        )

    def _may_drop(self) -> bool:
        if not self.turns:
            return False
        typed = self._typed("Drop the oldest turns, so that this question fits? [y/n] ") or ""
        return typed.lower() in ("y", "yes")

    def _drop_turns(self, question: str) -> None:
        """Drop the oldest turn, and more until question and answer fit."""
        room = self._context - self.max_new_tokens
        del self.turns[0]
        while self.turns and self._prepare(question)["input_ids"].shape[1] > room:
            del self.turns[0]

    def _typed(self, prompt: str) -> str | None:
        """A line from the user, stripped; None where it is empty or the input ended.

        Raises:
            UserError: bytes that are not UTF-8.
        """
        if self.as_json:  # standard output is JSON lines
            typer.echo(prompt, nl=False, err=True)
            prompt = ""
        try:
            return input(prompt).strip() or None
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise UserError("the question is not UTF-8: write it in UTF-8") from error

    def _complain(self, error: UserError) -> None:
        _say(str(error))
        if self.as_json:
            print(json.dumps({"error": str(error)}), flush=True)


def _say(sentence: str) -> None:
    typer.echo(f"scale-export: {printable(sentence)}", err=True)
