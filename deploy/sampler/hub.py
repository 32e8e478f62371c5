"""Putting an exported folder on the Hugging Face hub. The token comes from the environment and goes nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common.errors import UserError

TOKEN = "HF_TOKEN"


def hub_access(repo: str) -> Any:
    """A client that the hub has let in, asked before anything is made; raises UserError naming --hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError("--hub", repo, "can't be a name on the hub", "write it as OWNER/NAME") from error
    if repo.count("/") != 1:
        raise UserError("--hub", repo, "names no owner", "write it as OWNER/NAME")
    token = os.environ.get(TOKEN)
    if not token:
        raise UserError("--hub", repo, f"the environment holds no {TOKEN}", "set it to a token that may write there")
    access = HfApi(token=token)
    _tried(repo, access.whoami)
    return access


def publish(access: Any, folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder's files in one commit, the repository made if there is none; its address."""
    _tried(repo, lambda: access.create_repo(repo, private=not public, exist_ok=True))
    _tried(
        repo, lambda: access.upload_folder(folder_path=folder, repo_id=repo, commit_message="A sampler made by amortis")
    )
    return f"{access.endpoint}/{repo}"


def _tried(repo: str, call: Any) -> None:
    """Raises UserError for what the hub or the network refuses; messages of theirs may hold more than may be shown."""
    try:
        call()
    except Exception as error:
        response = getattr(error, "response", None)
        status = f" {response.status_code}" if response is not None else ""
        raise UserError(
            "--hub",
            repo,
            f"the hub can't be written ({type(error).__name__}{status})",
            f"look at {TOKEN}, HF_ENDPOINT, HF_HUB_OFFLINE and the network",
        ) from error
