"""What the Hugging Face hub refuses, as errors of ours that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rerank.errors import EndpointError, InputError, Mismatch, RerankError


@contextmanager
def refusals_told(repo: str) -> Iterator[None]:
    """Within the block, what the hub or the way to it refuses becomes an error of ours that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except RerankError:
        raise
    except HFValidationError as error:
        raise InputError(f"the hub takes no repository {repo!r}: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        raise EndpointError(_refusal(repo, status, str(error)), status) from error
    except ValueError as error:  # of the card's header, which the hub checks before it takes anything
        raise Mismatch(f"the hub does not take the model: {error}") from error
    except Exception as error:
        client = type(error).__module__.split(".")[0]  # the library's HTTP client differs from version to version
        if not isinstance(error, OSError) and client not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        raise EndpointError(f"the hub cannot be reached: {error}; try again later, nothing is lost") from error


def _refusal(repo: str, status: int | None, problem: str) -> str:
    """What a refusal of the hub means, and what to do."""
    what = {
        401: "the token is not known there: run `hf auth login` again, or set HF_TOKEN",
        403: f"the token may not write to {repo}: take one with write access, or a repository that is yours",
        404: f"there is no {repo} that this token may see: check the name and the token's rights",
        409: f"{repo} was changed by somebody else meanwhile: push again",
        429: "too many requests: wait a few minutes, then push again",
    }
    first = next(iter(problem.splitlines()), "")
    told = what.get(status or 0, "its side failed; try again later" if (status or 0) >= 500 else "see what it says")
    return f"the hub answered {status}: {told} ({first:.200})"
