"""The schema registry: schemas by the numbers or GUIDs that records carry, asked once each.

While it cannot be reached its partitions wait; a schema that it says it has not is asked for again a minute later.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
import structlog
from yarl import URL

from streamproc import framed
from streamproc.config import SchemaRegistry

log = structlog.get_logger("streamproc.registry")

_ASKED_AGAIN_S = 60.0
_PATIENCE_S = (0.2, 10.0)  # between two attempts, at first and at most

#: References of references, and so on, beyond which a registry's answers go in a circle.
_DEEPEST = 16


class Registry:
    """Every schema met so far, as codecs."""

    def __init__(self, config: SchemaRegistry) -> None:
        self._config = config
        self._codecs: dict[framed.SchemaName, framed.Codec] = {}
        self._missing: dict[framed.SchemaName, float] = {}  # when each was last asked for
        self._session: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()

    @property
    def codecs(self) -> Mapping[framed.SchemaName, framed.Codec]:
        """Return codecs by what names their schemas; it grows as schemas are learned."""
        return self._codecs

    async def learn(self, names: Iterable[framed.SchemaName]) -> None:
        """Ask for schemas that are not known yet, until the registry has answered."""
        for name in sorted(names, key=str):
            if name in self._codecs or time.monotonic() - self._missing.get(name, -_ASKED_AGAIN_S) < _ASKED_AGAIN_S:
                continue
            async with self._lock:
                if name not in self._codecs:
                    await self._learn(name)

    async def _learn(self, name: framed.SchemaName) -> None:
        wait_s, longest_s = _PATIENCE_S
        while True:
            try:
                found = await self._codec(name)
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                log.warning("the schema registry cannot be asked; its records wait", schema=name, error=repr(e))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, longest_s)
                continue
            except (ValueError, KeyError, TypeError, ImportError) as e:
                log.error("a schema cannot be used; its records go to the dead letters", schema=name, error=str(e))
                found = None
            if found is None:
                self._missing[name] = time.monotonic()
            else:
                self._codecs[name] = found
            return

    async def _codec(self, name: framed.SchemaName) -> framed.Codec | None:
        path = ("schemas", "guids" if isinstance(name, str) else "ids", str(name))
        tree = await self._get(*path)
        if tree is None:
            return None
        kind = tree.get("schemaType", "AVRO")
        # A file's descriptor says what its text does, and needs no compiler.
        form = {"format": "serialized"} if kind == "PROTOBUF" else {}
        if form:
            tree = await self._get(*path, **form) or tree
        references: dict[str, str] = {}
        await self._refer(tree.get("references") or (), references, form, 0)
        return framed.codec(kind, _checked(kind, tree["schema"]), list(references.values()))

    async def _refer(
        self, references: Iterable[dict[str, Any]], found: dict[str, str], form: dict[str, str], depth: int
    ) -> None:
        """Add the schemas that a schema names, those that they name before them."""
        if depth > _DEEPEST:
            raise ValueError("its references have no end")
        for reference in references:
            if reference["name"] in found:
                continue
            subject, version = str(reference["subject"]), str(reference["version"])
            tree = await self._get("subjects", subject, "versions", version, **form)
            if tree is None:
                raise ValueError(f"it refers to {subject}, which there is not")
            await self._refer(tree.get("references") or (), found, form, depth + 1)
            found[reference["name"]] = tree["schema"]

    async def _get(self, *path: str, **query: str) -> dict[str, Any] | None:
        """Return what the registry has at a path, None where it has nothing."""
        config = self._config
        if self._session is None:
            auth = aiohttp.BasicAuth(config.username, config.password or "") if config.username else None
            self._session = aiohttp.ClientSession(
                auth=auth, timeout=aiohttp.ClientTimeout(total=config.timeout.us / 1e6)
            )
        context: ssl.SSLContext | bool = True
        if config.ssl_cafile is not None:
            context = ssl.create_default_context(cafile=config.ssl_cafile)
        url = URL(config.url.rstrip("/")).joinpath(*path)
        async with self._session.get(url, params=query, ssl=context) as answer:
            if answer.status == 404:
                return None
            answer.raise_for_status()
            tree: dict[str, Any] = await answer.json(content_type=None)
            return tree

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _checked(kind: str, schema: str) -> str:
    if kind == "PROTOBUF":
        try:
            base64.b64decode(schema, validate=True)
        except ValueError:
            raise ValueError("the registry gives no serialized form of Protobuf schemas") from None
    return schema
