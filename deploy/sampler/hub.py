"""Putting an exported folder on the Hugging Face hub. The token comes from the environment and goes nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError

TOKEN = "HF_TOKEN"
T = TypeVar("T")


def hub_access(repo: str, *, public: bool) -> Any:
    """A client that the hub has let in, asked before anything is made; raises UserError naming --hub, also where the
    repository is there and is public, and that isn't what was asked for."""
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
    _check_visibility(access, repo, public=public)
    return access


def publish(access: Any, folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder's files in one commit, the repository made if there is none; its address."""
    _tried(repo, lambda: access.create_repo(repo, private=not public, exist_ok=True))
    # One that was there before is as it was, whatever is asked for.
    _check_visibility(access, repo, public=public)
    _tried(
        repo, lambda: access.upload_folder(folder_path=folder, repo_id=repo, commit_message="A sampler made by amortis")
    )
    return f"{access.endpoint}/{repo}"


def _check_visibility(access: Any, repo: str, *, public: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def is_public() -> bool:
        try:
            return not access.repo_info(repo).private
        except RepositoryNotFoundError:
            return False

    if not public and _tried(repo, is_public):
        problem = "is there already, and anybody can read it"
        raise UserError("--hub", repo, problem, "give --public if that is meant, or another name")


def _tried(repo: str, call: Callable[[], T]) -> T:
    """Raises UserError for what the hub or the network refuses; messages of theirs may hold more than may be shown."""
    try:
        return call()
    except Exception as error:
        response = getattr(error, "response", None)
        status = f" {response.status_code}" if response is not None else ""
        raise UserError(
            "--hub",
            repo,
            f"the hub can't be written ({type(error).__name__}{status})",
            f"look at {TOKEN}, HF_ENDPOINT, HF_HUB_OFFLINE and the network",
        ) from error
