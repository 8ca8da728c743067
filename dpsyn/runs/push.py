"""`dpsyn push`: a release to the Hugging Face hub, and nothing that must not leave."""

from __future__ import annotations

import re

from dpsyn.errors import UserError, first_line, invalid
from dpsyn.files import sha256
from dpsyn.runs.directory import RunDirectory
from dpsyn.runs.seal import STATEMENT, is_plain, released_files
from dpsyn.runs.verification import verified


def push(run: RunDirectory, repository: str, private: bool) -> str:
    """Sends the released files, exactly those that the statement lists, in the place of what the repository held.
    Returns the address of the data set.

    run: a run, or a release alone.
    repository: 'OWNER/NAME'.
    private: whether a repository that is made is for its owner alone. The hub's address and the token are those of
        huggingface_hub: HF_ENDPOINT, HF_TOKEN, `hf auth login`.

    Raises UserError for a run that is not private, not complete or not as its statement says, and for what the hub
    refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise invalid("OWNER/NAME", repository, "a name of the hub, OWNER/NAME")
    if not run.is_private:
        raise UserError(f"{run.release}: this run is NOT PRIVATE: its noise protects nobody. It is not sent.")
    if run.is_alone:
        return _sent(run, repository, private)
    with run.locked():  # from what is verified to what is sent no run and no expansion changes a file
        return _sent(run, repository, private)


def _sent(run: RunDirectory, repository: str, private: bool) -> str:
    found = verified(run)
    if "NOT PRIVATE" in found.lines[0] or "INSECURE" in found.lines[0]:
        raise UserError(f"{run.release}: {found.lines[0]}. It is not sent.")
    if not found.agrees or not found.complete:
        told = [line for sign in ("FAULT", "INCOMPLETE") for line in found.lines if line.startswith(sign)]
        raise UserError(f"{run.release}: {[*told, *found.lines][0]} It is not sent; `dpsyn verify` tells all.")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    except ImportError:
        raise UserError("dpsyn push: huggingface_hub is not installed. Install dpsyn with all it needs.") from None
    hub = HfApi()
    names = [name for name in [*released_files(run.release), STATEMENT] if is_plain(run.release / name)]
    before = {name: sha256(run.release / name) for name in names}
    try:
        address = hub.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=run.release,
            allow_patterns=[re.sub(r"([*?\[])", r"[\1]", name) for name in names],
            delete_patterns="*",
            commit_message="A release of dpsyn",
        )
    except HFValidationError as error:
        raise invalid("OWNER/NAME", repository, "a name of the hub, OWNER/NAME", first_line(error)) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"{repository}: the hub did not take it: {first_line(error)}") from None
    except Exception as error:  # of the library that carries its requests: which one differs by version
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise
        raise UserError(f"{repository}: the hub was not reached: {first_line(error)}") from None
    if any(not is_plain(run.release / name) or sha256(run.release / name) != before[name] for name in names):
        raise UserError(f"{run.release}: files changed while they were sent. Let nothing write there, and push again.")
    return str(address)
