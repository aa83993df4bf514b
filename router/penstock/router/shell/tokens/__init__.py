"""The router's tokens: models' files found and loaded, engines asked where files do not help."""

from penstock.router.shell.tokens.engine import EngineTokenizer
from penstock.router.shell.tokens.folders import ModelFolders
from penstock.router.shell.tokens.metrics import HitBooks, TokenCollector
from penstock.router.shell.tokens.service import (
    Ask,
    Source,
    TokenCounts,
    Tokenized,
    TokenOptions,
    TokenService,
    Unavailable,
)

__all__ = [
    "Ask",
    "EngineTokenizer",
    "HitBooks",
    "ModelFolders",
    "Source",
    "TokenCollector",
    "TokenCounts",
    "TokenOptions",
    "TokenService",
    "Tokenized",
    "Unavailable",
]
