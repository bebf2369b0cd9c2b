"""`latent-shift serve`: an HTTP API in OpenAI's dialect for videos, and a web page. Loads no torch by itself."""

from .api import create_app
from .engine import ClipRequest, Engine, ModelFacts
from .settings import ServerSettings

__all__ = ["ClipRequest", "Engine", "ModelFacts", "ServerSettings", "create_app"]
