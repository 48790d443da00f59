"""What a library makes of a file from elsewhere becomes one sentence."""

from __future__ import annotations

import errno

import pytest

from scale_export.core.borders import SHOWN, refusing
from scale_export.core.errors import ContextFull, UserError


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("two\nlines"), MemoryError(), RuntimeError("y" * 999)]
)
def test_any_exception_becomes_a_sentence(error: Exception):
    with pytest.raises(UserError) as caught, refusing("the file is refused", "export it again"):
        raise error
    sentence = str(caught.value)
    assert caught.value.__cause__ is error
    assert sentence.startswith(f"the file is refused ({type(error).__name__}")
    assert sentence.endswith("): export it again")
    assert "\n" not in sentence
    assert len(sentence) < SHOWN + 100


@pytest.mark.parametrize("error", [UserError("plain"), ContextFull("full")])
def test_a_sentence_stays_as_it_is(error: UserError):
    with pytest.raises(type(error)) as caught, refusing("the file is refused", "export it again"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_what_the_system_refuses_passes(number: int):
    error = OSError(number, "refused")
    with pytest.raises(OSError) as caught, refusing("the file is refused", "export it again"):
        raise error
    assert caught.value is error


def test_an_interruption_passes():
    with pytest.raises(KeyboardInterrupt), refusing("the file is refused", "export it again"):
        raise KeyboardInterrupt
