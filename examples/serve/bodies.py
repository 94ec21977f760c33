"""Reads what clients send, and says what is wrong with it: `name: got X; allowed is Y`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

SECONDS_FOR_A_BODY = 30.0
MAX_CHARACTERS = 100_000
"""Of one text. A model reads some hundreds of tokens; tokenising a book for them would hold up the others."""


class WrongRequestError(Exception):
    """An answer of 4xx: its status, its reason, and the field that it is about."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field = status, field


def wrong(name: str, got: str, allowed: str, status: int = 422) -> WrongRequestError:
    return WrongRequestError(status, f"{name}: got {got}; allowed is {allowed}", name.split("[")[0])


def kind(value: Any) -> str:
    """A value of JSON in the reader's words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")


async def _collect(request: Request, limit: int, body: bytearray) -> int:
    """Fills `body`, to its limit, and gives the size of all that came."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > 20 * limit:
            break
    return size


async def _bytes(request: Request, limit: int) -> bytes:
    """The body. One over the limit is read to its end, within reason, or the client might not see the answer."""
    declared, body = int(request.headers.get("content-length", "0")), bytearray()
    too_long = wrong("body", f"more than {limit} bytes", f"at most {limit}; send several requests", 413)
    if declared > limit and ("expect" in request.headers or declared > 20 * limit):
        raise too_long
    try:
        size = await asyncio.wait_for(_collect(request, limit, body), SECONDS_FOR_A_BODY)
    except asyncio.TimeoutError:
        raise wrong("body", f"no end of it in {SECONDS_FOR_A_BODY:.0f} s", "a faster client", 408) from None
    if size > limit:
        raise too_long
    return bytes(body)


async def read(request: Request, limit: int, fields: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a request, which has none but these fields.

    Raises:
        WrongRequestError: it is no such object; 413 where it is too long, 408 where it does not come.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise wrong("Content-Encoding", coding, "a body that is not compressed", 415)
    body = await _bytes(request, limit)
    if not body:
        raise wrong("body", "nothing", f"a JSON object of {', '.join(fields)}", 400)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise wrong("body", f"no JSON ({problem})", f"a JSON object of {', '.join(fields)}", 400) from None
    if not isinstance(value, dict):
        raise wrong("body", kind(value), f"a JSON object of {', '.join(fields)}")
    for name in value:
        if name not in fields:
            raise wrong(f"field {_shown(name)}", "a value for it", ", ".join(fields))
    return value


def _shown(text: str) -> str:
    """A client's text in a message: short, and of ASCII, as a lone surrogate could not be sent back."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise wrong(name, kind(value), "a text")
    if not value:
        raise wrong(name, "an empty text", "a text of one character or more")
    if len(value) > MAX_CHARACTERS:
        raise wrong(name, f"{len(value)} characters", f"at most {MAX_CHARACTERS}; cut it into passages")
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        bad = _shown(value[problem.start])
        raise wrong(name, f"the lone surrogate {bad} at character {problem.start}", "text that is Unicode") from None
    return value


def text(body: dict[str, Any], name: str) -> str:
    """The text that a field holds, which must be there."""
    if name not in body:
        raise wrong(name, "nothing", "a text")
    return _text(body[name], name)


def texts(body: dict[str, Any], name: str, most: int) -> list[str]:
    """The texts that a field holds: a list of them, or one alone."""
    if name not in body:
        raise wrong(name, "nothing", "a text, or a list of texts")
    value = body[name]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise wrong(name, kind(value), "a text, or a list of texts")
    if not value:
        raise wrong(name, "an empty list", f"1 to {most} texts")
    if len(value) > most:
        raise wrong(name, f"{len(value)} texts", f"1 to {most} a request; send several", 413)
    if isinstance(value[0], (int, list)) and not isinstance(value[0], bool):
        tip = "texts: ids are of another tokeniser (LangChain: check_embedding_ctx_length=False)"
        raise wrong(name, "lists or numbers, as of token ids", tip)
    return [_text(each, f"{name}[{index}]") for index, each in enumerate(value)]


def choice(body: dict[str, Any], name: str, allowed: tuple[Any, ...]) -> Any:
    """One of the values that a field may have; the first if it is not there."""
    value = body.get(name, allowed[0])
    if not any(type(value) is type(each) and value == each for each in allowed):
        shown = _shown(value) if isinstance(value, str) else json.dumps(value)[:40]
        raise wrong(name, shown, " or ".join(json.dumps(each) for each in allowed))
    return value


def whole_number(body: dict[str, Any], name: str, default: int) -> int:
    """A number of 1 or more that a field holds."""
    value = body.get(name, default)
    if type(value) is not int or value < 1:
        raise wrong(name, json.dumps(value)[:40], "a whole number of 1 or more")
    return value
