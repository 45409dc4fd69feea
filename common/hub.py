"""The Hugging Face Hub for save_model_locally.py: reach it, list a repository, fetch and check a file, say what failed.

For the experiments of Probability Smoothing Policy Optimisation (arXiv 2509.21282); nothing else touches the network.
"""

import sys
import threading
import time

from common.files import BadInput, hash_file

ANSWER_SECONDS = 10  # no answer by then means no network; the promise is 15 s including start-up
RETRY_STATUS = (408, 429, 500, 502, 503, 504)
RETRY_WAITS = (1, 2, 4, 8)  # seconds, unless the Hub's Retry-After says more


def check_reachable():
    """Raise BadInput within ANSWER_SECONDS unless the Hub answers at all, with whatever status."""
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        raise BadInput("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it where there is internet")
    trouble = [f"no answer in {ANSWER_SECONDS} s"]

    def ask():
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
            trouble.append("")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            trouble.append(str(error) or type(error).__name__)

    # A thread of its own, because name lookup and hosts with several addresses outlast a socket timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if trouble[-1]:
        way_out = "run this on a machine with internet (a login node), check proxy settings, or use --from_files"
        raise BadInput(f"no network: {constants.ENDPOINT} cannot be reached ({trouble[-1]}); {way_out}")


def call_client(hub_id, function, *args, **kwargs):
    """Call a function of the Hub's client about a repository, see `retry`; what it raises becomes a BadInput."""
    import httpx2
    from huggingface_hub import errors

    again = "run the same command again: it continues where this one stopped"
    log_in = "accept its terms on the Hub and log in with `hf auth login`"
    try:
        return retry(function, *args, **kwargs)
    except errors.GatedRepoError:
        reason = f"is gated: {log_in}; {again}"
    except errors.RevisionNotFoundError:
        reason = "has no such revision on the Hub; --revision takes a commit, branch or tag"
    except errors.RepositoryNotFoundError:
        reason = "is not on the Hub, or it is private and needs `hf auth login`"
    except errors.HFValidationError:
        reason = "is not a valid Hub id (ORGANISATION/NAME)"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        way_out = {401: log_in, 403: log_in, 429: "wait some minutes"}.get(status, "the Hub failed, or lacks a file")
        reason = f"cannot be fetched: HTTP {status}, {way_out}; {again}"
    except httpx2.HTTPError as error:
        reason = f"cannot be fetched: connection lost ({str(error) or type(error).__name__}); {again}"
    raise BadInput(f"{hub_id} {reason}")


def retry(function, *args, **kwargs):
    """Call a function of the Hub's client, again after a cut connection or a status that may pass; waits grow."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for wait in RETRY_WAITS:
        try:
            return function(*args, **kwargs)
        except httpx2.ReadError as error:
            print(f"connection cut ({error}); trying again in {wait} s", file=sys.stderr)
        except HfHubHTTPError as error:
            if error.response.status_code not in RETRY_STATUS:
                raise
            asked = error.response.headers.get("Retry-After", "")
            wait = max(wait, int(asked) if asked.isdecimal() else 0)
            print(f"HTTP {error.response.status_code}; trying again in {wait} s", file=sys.stderr)
        time.sleep(wait)
    return function(*args, **kwargs)


def list_repository(hub_id, revision, kind):
    """(commit, [sibling]) of a repository at a revision; a sibling has rfilename, size, blob_id and lfs (or None)."""
    from huggingface_hub import HfApi

    where = {"revision": revision, "repo_type": kind}
    info = call_client(hub_id, HfApi().repo_info, hub_id, **where, files_metadata=True, timeout=ANSWER_SECONDS)
    return info.sha, info.siblings or []


def is_whole(path, sibling):
    """True if a file is there and has the size and the hash that the Hub states: SHA-256 for LFS, else the blob id."""
    from huggingface_hub.utils.sha import git_hash

    if not path.is_file() or path.stat().st_size != sibling.size:
        return False
    return hash_file(path) == sibling.lfs.sha256 if sibling.lfs else git_hash(path.read_bytes()) == sibling.blob_id


def fetch_files(item, files):
    """Fetch what is not whole of {path: sibling}; item: its "hub_id", "kind" and "revision", a commit.

    A file that is there is continued. Raises BadInput if one is then not what the Hub states.
    """
    from huggingface_hub import hf_hub_url

    for path, sibling in files.items():
        if is_whole(path, sibling):
            continue
        if path.is_file() and path.stat().st_size >= sibling.size:  # damaged
            path.unlink()
        url = hf_hub_url(item["hub_id"], sibling.rfilename, repo_type=item["kind"], revision=item["revision"])
        call_client(item["hub_id"], fetch_rest, url, path, sibling.size)
        if not is_whole(path, sibling):
            trouble = f"{path.stat().st_size} bytes came, not {sibling.size}"
            if path.stat().st_size >= sibling.size:  # else the next run continues it
                path.unlink()
                trouble = "what came has not the hash that the Hub states and was thrown away"
            raise BadInput(f"{url}: {trouble}; run the command again")


def fetch_rest(url, path, size):
    """Append to the file at `path` what it lacks of the `size` bytes at url.

    Why not snapshot_download: huggingface_hub 2.4 deletes a half-fetched file when the process ends, so a dropped
    session would start a 4 GB file again. http_get is what it uses underneath.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with open(path, "ab") as file:
        if file.tell() < size:
            http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), displayed_filename=path.name)
