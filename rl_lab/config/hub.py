"""Where a finished run goes on the hub."""

from __future__ import annotations

from typing import Annotated

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import AfterValidator

from rl_lab.config.section import Section


def _repository(name: str) -> str:
    """ValueError for what the hub takes for no repository of somebody's."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is no repository; give OWNER/NAME of letters, digits, '-', '_' and '.'") from error
    if "/" not in name:
        raise ValueError(f"{name!r} has no owner; give OWNER/NAME")
    return name


class HubConfig(Section):
    """A model, or data, of the run that is uploaded with its card when the run is over; see docs/runs.md."""

    push: Annotated[str, AfterValidator(_repository)]
    """Repository on Hugging Face's hub, OWNER/NAME; it is made if it is not there."""
    stage: str
    """Whose model, demonstrations, pairs or questions."""
    private: bool = True
    """Whether a repository that is made is seen by its owner only; one that is there stays as it is."""
