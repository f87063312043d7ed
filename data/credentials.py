"""Find the Kaggle credentials of the user, without any request."""

import json
import os
import re
from pathlib import Path

from runtime.errors import UserError, require

SETTINGS = "https://www.kaggle.com/settings/api"


def find_credentials() -> tuple[str, dict[str, str]] | None:
    """Find credentials in the order of Kaggle's client, so that the same account uploads the submission.

    Returns their source and {"token"}, {"username", "key"} or {"refresh_token"}, or None if there are none. Raises
    UserError if they are incomplete or unreadable.
    """
    environ, folder = os.environ, Path.home() / ".kaggle"
    token = environ.get("KAGGLE_API_TOKEN")
    user = environ.get("KAGGLE_USERNAME") or environ.get("KAGGLE_USER")  # the tutorial's name
    key = environ.get("KAGGLE_KEY") or environ.get("KAGGLE_PASSWD")
    if token:
        source, secrets = "KAGGLE_API_TOKEN", {"token": token}
    elif (source := folder / "access_token").exists():
        secrets = {"token": source.read_text(errors="replace")}
    elif user or key:
        require(bool(user and key), "KAGGLE_USERNAME and KAGGLE_KEY must both be set, or neither.")
        source, secrets = "environment variables", {"username": user, "key": key}
    elif (source := folder / "kaggle.json").exists():
        secrets = _read_json(source, "username", "key")
    elif (source := folder / "credentials.json").exists():  # written by `kaggle auth login`
        secrets = _read_json(source, "refresh_token")
    else:
        return None
    secrets = {name: secret.strip() for name, secret in secrets.items()}
    # What an HTTP header cannot hold would be quoted in an error of requests
    valid = all(re.fullmatch("[ -~]+", secret) for secret in secrets.values())  # printable ASCII
    require(valid, f"The Kaggle credentials in {source} are not valid. Create a new token at {SETTINGS}.")
    return str(source), secrets


def _read_json(file: Path, *names: str) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        return {name: content[name].strip() for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} must contain {' and '.join(names)}. Create a new token at {SETTINGS}.") from None
