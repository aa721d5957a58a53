"""How channels become features after the spatial mean.

`group_max` and `group_mean` pool the |G| channels of each field of the last stage; `none` keeps
all. `block_max:C4` is the head of a plain network: the maximum over each block of |C4| channels,
which a loss teaches to move as the regular representation does (`latent`), so that the classes need
not tell them apart. A last smaller block is one by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from searchspace.groups import TRIVIAL, Group

POOLING = ("group_max", "group_mean", "none")
BLOCK_MAX = "block_max:"


def block_group(head: str) -> Group | None:
    """The group of the blocks of a head `block_max:C4`; None for any other."""
    return Group.parse(head.removeprefix(BLOCK_MAX)) if head.startswith(BLOCK_MAX) else None


def checked_head(head: str) -> str:
    """The head, spelled as it prints. Raises ValueError for one that there is not."""
    head = str(head)
    if head in POOLING:
        return head
    if not head.startswith(BLOCK_MAX):
        raise ValueError(
            f"head is '{head}'; choose one of {', '.join(POOLING)}, or for plain networks "
            "block_max:C4 (any group)"
        )
    group = Group.parse(head.removeprefix(BLOCK_MAX))
    if group == TRIVIAL:
        raise ValueError(
            f"head is '{head}', whose blocks are single channels; take head=none, or a larger group"
        )
    return f"{BLOCK_MAX}{group}"


def require_plain(head: str, group: Group) -> None:
    """Raises ValueError for a head of blocks on a last stage of `group` that has fields."""
    if head.startswith(BLOCK_MAX) and group != TRIVIAL:
        raise ValueError(
            f"head is '{head}', but the last stage has the group {group}, whose fields "
            "head=group_max pools; leave the head out, or take the group out of the stages"
        )


def num_features(head: str, channels: int, order: int) -> int:
    """The features that the classes are told from, of that many channels of fields of `order`."""
    blocks = block_group(head)
    if blocks is not None:
        return -(-channels // blocks.order)
    return channels if head == "none" else channels // order


def pooling_heads(heads: Sequence[str]) -> list[str]:
    """Those for a last stage with fields; the maximum over the group where none is listed."""
    return [head for head in heads if block_group(head) is None] or ["group_max"]


def block_heads(heads: Sequence[str]) -> list[str]:
    """Those for a last stage without fields, where a loss makes blocks of channels move."""
    blocks = [head for head in heads if block_group(head) is not None]
    return [*(["none"] if "none" in heads or not blocks else []), *blocks]
