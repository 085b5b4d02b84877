"""Send a folder to the Hugging Face hub, with what would go wrong found out before anything is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from rfflow.errors import ConfigError


class Repository:
    """A model repository to push to."""

    def __init__(self, name: str, *, private: bool | None = None, force: bool = False):
        """Ask the hub whether it may be made, or written to.

        Args:
            name: ``user/name``; a bare name is one of the user's own.
            private: whether only the owner sees it; ``None`` leaves that to the hub.
            force: write into one that is there.

        Raises:
            ConfigError: without a token, for a name that cannot be, or that is taken.
        """
        self._private = private
        self._api = HfApi(endpoint=constants.ENDPOINT)
        with self._refusals(name):
            user = self._api.whoami()["name"]
            self.name = name if "/" in name else f"{user}/{name}"
            is_there = self._api.repo_exists(self.name)
        if is_there and not force:
            raise ConfigError(
                f"{self.name} exists on the hub, and its files would be replaced. Another name, or --force to write "
                "into that one."
            )

    def push(self, folder: Path, message: str) -> str:
        """Send a folder, as one commit; return its address.

        Raises:
            ConfigError: if the hub refuses it.
        """
        with self._refusals(self.name):
            self._api.create_repo(self.name, private=self._private, exist_ok=True)
            return str(self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message=message))

    @contextlib.contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        where = f"--push {name}"
        login = (
            "Say hf auth login, or set HF_TOKEN to a token with the right to write (huggingface.co/settings/tokens)."
        )
        try:
            yield
        except LocalTokenNotFoundError as error:
            raise ConfigError(f"{where}: there is no token for the Hugging Face hub. {login}") from error
        except HFValidationError as error:
            raise ConfigError(f"{where} is no name of a repository: {_line(error)}") from error
        except OfflineModeIsEnabled as error:
            raise ConfigError(f"{where}: HF_HUB_OFFLINE says that the hub is not to be asked. Unset it.") from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if status == 401:
                raise ConfigError(f"{where}: the hub does not take the token (401). {login}") from error
            if status == 403:
                raise ConfigError(
                    f"{where}: the token has no right to write there (403): {_line(error)} {login}"
                ) from error
            raise ConfigError(f"{where}: the hub refuses it ({status}): {_line(error)}") from error
        except (HTTPError, OSError) as error:
            raise ConfigError(f"{where}: the hub cannot be reached: {_line(error)}") from error


def _line(error: Exception) -> str:
    said = getattr(error, "server_message", None) or str(error)
    return " ".join(str(said).split())[:300]
