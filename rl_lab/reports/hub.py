"""A model or data of a finished run as a repository on Hugging Face's hub, by huggingface_hub's own upload.

An upload that fails leaves the run as it is: it is one warning, which says how to upload by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from envs.options import nearest
from rl_lab.common.errors import UserError, one_line
from rl_lab.common.files import CARD_FILE
from rl_lab.config.hub import HubConfig
from rl_lab.graph.nodes import Node
from rl_lab.reports.cards import DATA


def check_hub(hub: HubConfig, nodes: Sequence[Node]) -> None:
    """UserError where nothing could be uploaded after the run: no such stage, no token. Asks nobody."""
    stages = [node.name for node in nodes if node.stage.learns or node.kind in DATA]
    if hub.stage not in stages:
        hint = nearest(hub.stage, stages) or f"; choose among {', '.join(stages[-8:])}"
        raise UserError(f"hub.stage: {hub.stage!r} is no stage of this run that makes a model or data{hint}")
    if constants.HF_HUB_OFFLINE:
        raise UserError("hub.push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or leave hub out")
    if not get_token():
        raise UserError("hub.push: there is no token; run `hf auth login`, set HF_TOKEN, or leave hub out")


def push(hub: HubConfig, run: Path, nodes: Sequence[Node]) -> None:
    """Upload the stage's folder, and say where it is; what goes wrong is one warning."""
    node = next(node for node in nodes if node.name == hub.stage)
    kind = "dataset" if node.kind in DATA else "model"
    folder = run / node.stage.folder / node.name
    try:
        if not (folder / CARD_FILE).is_file():
            raise FileNotFoundError(f"{folder} has no card; `python -m rl_lab.report {run}` writes it")
        api = HfApi()
        url = api.create_repo(hub.push, repo_type=kind, private=hub.private, exist_ok=True)
        api.upload_folder(
            repo_id=hub.push, repo_type=kind, folder_path=folder, commit_message=f"{hub.stage} of {run.name}"
        )
        print(f"hub: {url}", file=sys.stderr)
    except Exception as error:  # whatever the hub or the network does, the run is over and stays
        visible = "--private" if hub.private else "--no-private"
        print(
            f"warning: nothing was uploaded to {hub.push}: {type(error).__name__}: {one_line(error)}; the run is "
            f"complete, upload it with: hf upload {hub.push} {folder} . --repo-type {kind} {visible}",
            file=sys.stderr,
        )
