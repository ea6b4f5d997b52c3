"""What a folder's config.json says about compressed weights: the key `quantization_config` with `quant_method` "nnc".

transformers asks this key which code reads the weights; nnc itself does not need it (the header of the file says it).  It is added
as text before the closing brace and taken out as text, so that config.json comes back byte for byte.  A config.json that has such
a key already (a network that another method has quantized) stays as it is.
"""

from __future__ import annotations

import json
import re

NAME = "config.json"
KEY = "quantization_config"
METHOD = "nnc"
VERSION = "1"  # of the format, as in the header of a file
_MARK = re.compile(r',?\s*"quantization_config":\s*\{[^{}"]*"quant_method": "nnc"[^{}]*\}(?=\s*\}\s*\Z)')


def mark_config(content: bytes) -> bytes:
    """config.json with the key; unchanged if it has one, or is not what transformers could read."""
    read = _parse(content)
    if read is None or KEY in read:
        return content
    body, space = re.fullmatch(r"(.*?)(\s*)\}\s*", text := content.decode(), re.DOTALL).groups()
    tail = text[len(body) :]
    indent = (re.search(r"\{(\s*)", text) or ("", ""))[1] if read else space
    value = json.dumps({"quant_method": METHOD, "version": VERSION})
    marked = f'{body}{"," if read else ""}{indent or (" " if read else "")}"{KEY}": {value}{tail}'.encode()
    return marked if _parse(marked) == {**read, KEY: json.loads(value)} else _dump({**read, KEY: json.loads(value)})


def clear_config(content: bytes) -> bytes:
    """config.json without the key if it is ours: byte for byte what `mark_config` was given, or the same JSON if it was edited since."""
    read = _parse(content)
    if read is None or not isinstance(read.get(KEY), dict) or read[KEY].get("quant_method") != METHOD:
        return content
    plain = {key: value for key, value in read.items() if key != KEY}
    cleared = _MARK.sub("", content.decode()).encode()
    return cleared if _parse(cleared) == plain else _dump(plain)


def _parse(content: bytes) -> dict | None:
    try:
        read = json.loads(content.decode())
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _dump(read: dict) -> bytes:
    return (json.dumps(read, indent=2) + "\n").encode()
