"""From the bytes of an op file to its ops: YAML that is safe, small, and without surprises."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from rfflow.control.ops import Op, parse
from rfflow.control.selection import shown
from rfflow.errors import OpError

MAX_BYTES = 64 * 1024
"""An op takes a hundred bytes or two; PyYAML takes a second for this much, and the engine waits for it."""
MAX_DOCUMENTS = 1000


class _Loader(yaml.SafeLoader):
    """Safe YAML, less what can only be an accident or an attack: aliases, and keys given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise OpError("It uses an alias (*name). Allowed: YAML without aliases; write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in getattr(node, "value", ()):
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen:
                raise OpError(f"The key {shown(key)} is given twice (line {key_node.start_mark.line + 1}).")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse_documents(content: bytes) -> tuple[Op, ...]:
    """Read every document of an op file; all of them must be good.

    Raises:
        OpError: naming the document where there is more than one.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OpError(f"It is not UTF-8 text: byte {content[error.start]:#04x} at position {error.start}.") from error
    documents = _load(text)
    if not documents:
        raise OpError("It is empty. Allowed: one op or more, such as {op: stop, run: 3}.")
    ops = []
    for number, document in enumerate(documents, 1):
        try:
            ops.append(parse(document))
        except OpError as error:
            if len(documents) == 1:
                raise
            raise OpError(f"Document {number} of {len(documents)}: {error} Nothing of the file was applied.") from error
    return tuple(ops)


def _load(text: str) -> list[object]:
    documents: list[object] = []
    try:
        for document in yaml.load_all(text, _Loader):
            if document is not None:  # such as after a closing ---
                documents.append(document)
            if len(documents) > MAX_DOCUMENTS:
                raise OpError(f"It holds more than {MAX_DOCUMENTS} documents.")
    except OpError:
        raise
    except yaml.YAMLError as error:
        hint = ""
        if "overrides" in text and "[" in text:
            hint = ' In a YAML list, quote an override that holds brackets or commas: ["peft.target_modules=[q_proj]"].'
        raise OpError(f"It is not valid YAML: {' '.join(str(error).split())[:300]}.{hint}") from error
    except RecursionError as error:
        raise OpError("It is nested too deep to be an op.") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML's own constructors let these through for scalars such as 2020-99-99 or !!int x.
        raise OpError(f"It holds a value that YAML cannot read: {shown(str(error))}.") from error
    return documents
