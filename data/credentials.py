"""Find the Kaggle credentials of the user, without any request."""

import json
import os
from pathlib import Path

from kagglesdk.kaggle_env import get_access_token_from_env

from runtime.errors import UserError, require

SETTINGS = "https://www.kaggle.com/settings/api"


def find_credentials() -> tuple[str, dict[str, str]] | None:
    """Find credentials in the order of Kaggle's client, so that the same account uploads the submission.

    1. KAGGLE_API_TOKEN, then the file ~/.kaggle/access_token
    2. KAGGLE_USERNAME and KAGGLE_KEY, or the tutorial's KAGGLE_USER and KAGGLE_PASSWD
    3. kaggle.json in KAGGLE_CONFIG_DIR, ~/.kaggle or ~/.config/kaggle
    4. ~/.kaggle/credentials.json, written by `kaggle auth login`

    Returns their source and {"token"}, {"username", "key"} or {"refresh_token"}, or None if there are none. Raises
    UserError if they are incomplete or unreadable.
    """
    environ, home = os.environ, Path.home()
    token, source = environ.get("KAGGLE_API_TOKEN", ""), "KAGGLE_API_TOKEN"
    if len(token) < 256:  # the client first looks for a file of that name, which fails if it is longer
        try:
            token, source = get_access_token_from_env()
        except (OSError, ValueError):  # whose message may contain the token
            raise UserError(f"The Kaggle access token cannot be read. Create a new one at {SETTINGS}.") from None
    if token:
        return source, clean_secret(source, token=token)

    user = environ.get("KAGGLE_USERNAME") or environ.get("KAGGLE_USER")
    key = environ.get("KAGGLE_KEY") or environ.get("KAGGLE_PASSWD")
    require(bool(user) == bool(key), "KAGGLE_USERNAME and KAGGLE_KEY must both be set, or neither.")
    if user:
        source = "environment variables"
        return source, clean_secret(source, username=user, key=key)

    folders = (environ.get("KAGGLE_CONFIG_DIR") or home / ".kaggle", home / ".kaggle", home / ".config/kaggle")
    for folder in folders:
        if (file := Path(folder, "kaggle.json")).exists():
            return _read_secrets(file, "username", "key")
    file = home / ".kaggle/credentials.json"
    return _read_secrets(file, "refresh_token") if file.exists() else None


def _read_secrets(file: Path, *names: str) -> tuple[str, dict[str, str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        return str(file), clean_secret(file, **{name: content[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        message = f"{file} must contain {' and '.join(names)}. Create a new token at {SETTINGS}."
        raise UserError(message) from None


def clean_secret(source: object, **secrets: str) -> dict[str, str]:
    """Strip the secrets. Refuse what an HTTP header cannot hold, because the error of requests would quote it."""
    secrets = {name: secret.strip() for name, secret in secrets.items()}
    valid = all(secret and secret.isascii() and secret.isprintable() for secret in secrets.values())
    require(valid, f"The Kaggle credentials in {source} are not valid. Create a new token at {SETTINGS}.")
    return secrets
