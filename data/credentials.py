"""Find the Kaggle credentials of the user, without any request."""

import json
import os
from pathlib import Path

from runtime.errors import UserError, require

SETTINGS = "https://www.kaggle.com/settings/api"


def find_credentials() -> tuple[str, dict[str, str]] | None:
    """Find credentials in the order of Kaggle's client, so that the same account uploads the submission.

    1. KAGGLE_API_TOKEN, then the file ~/.kaggle/access_token
    2. KAGGLE_USERNAME and KAGGLE_KEY (the tutorial's KAGGLE_USER and KAGGLE_PASSWD), then ~/.kaggle/kaggle.json
    3. ~/.kaggle/credentials.json, written by `kaggle auth login`

    Returns their source and {"token"}, {"username", "key"} or {"refresh_token"}, or None if there are none. Raises
    UserError if they are incomplete or unreadable.
    """
    environ, folder = os.environ, Path.home() / ".kaggle"
    if token := environ.get("KAGGLE_API_TOKEN"):
        return "KAGGLE_API_TOKEN", _clean("KAGGLE_API_TOKEN", token=token)
    if (file := folder / "access_token").exists():
        return str(file), _clean(file, token=file.read_text(errors="replace"))

    user = environ.get("KAGGLE_USERNAME") or environ.get("KAGGLE_USER")
    key = environ.get("KAGGLE_KEY") or environ.get("KAGGLE_PASSWD")
    require(bool(user) == bool(key), "KAGGLE_USERNAME and KAGGLE_KEY must both be set, or neither.")
    if user:
        return "environment variables", _clean("environment variables", username=user, key=key)
    if (file := folder / "kaggle.json").exists():
        return _read_secrets(file, "username", "key")
    file = folder / "credentials.json"
    return _read_secrets(file, "refresh_token") if file.exists() else None


def _read_secrets(file: Path, *names: str) -> tuple[str, dict[str, str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        return str(file), _clean(file, **{name: content[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        message = f"{file} must contain {' and '.join(names)}. Create a new token at {SETTINGS}."
        raise UserError(message) from None


def _clean(source: object, **secrets: str) -> dict[str, str]:
    """Strip the secrets. Refuse what an HTTP header cannot hold, because the error of requests would quote it."""
    secrets = {name: secret.strip() for name, secret in secrets.items()}
    valid = all(secret and secret.isascii() and secret.isprintable() for secret in secrets.values())
    require(valid, f"The Kaggle credentials in {source} are not valid. Create a new token at {SETTINGS}.")
    return secrets
