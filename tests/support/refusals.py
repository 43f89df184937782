"""What a user is told of a mistake."""

from collections.abc import Callable
from typing import Any

import pytest

from rl_lab.common.errors import UserError

Errors = type[Exception] | tuple[type[Exception], ...]


def refusal(call: Callable[..., Any], *arguments: Any, by: Errors = UserError, **named: Any) -> str:
    """The one line with which the call ends."""
    with pytest.raises(by) as caught:
        call(*arguments, **named)
    said = str(caught.value)
    assert "\n" not in said, said
    return said
