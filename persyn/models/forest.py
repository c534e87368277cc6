"""A forest: many continuations of many contexts, read by a causal model in one forward pass.

The row is [shared 1 | branch | branch ... | shared 2 | branch ...]. The attention mask is a forest: each branch sees
the shared tokens of its tree and itself, and positions restart after the shared tokens. So a context is read once for
all of its branches, no row is padded to the length of another, and a pass is long enough to fill the device.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from persyn.models.split import input_device, is_split

LARGE = 5_000_000
"""Tokens of a job from which on a GPU saves more time than compiling takes (some 25 s)."""
BLOCK = 128
"""Queries and keys of a block of a BlockMask; flex attention's own default."""
SLAB = 1024
"""Queries whose pairs with all keys exist at once while a BlockMask is made."""
PADDING = 1024
"""Under block masks a pass is padded to a multiple of this: a kernel is made for each length."""
SPLIT = 16
"""A tree may be split where its shared tokens, which are then read twice, are this many times fewer than the room."""

Tree = tuple[list[int], Sequence[list[int]]]
"""Token ids that all branches share, and the token ids of each branch after them."""
logger = logging.getLogger(__name__)


def pack(trees: Sequence[tuple[int, Sequence[int]]], batch_tokens: int) -> list[list[tuple[int, int]]]:
    """Divide branches into passes of at most `batch_tokens` tokens; a longer branch has a pass of its own.

    A tree that does not fit into the rest of a pass begins the next one, unless its shared tokens are few beside it.

    Args:
        trees: how many tokens the branches of each tree share, and how many each branch adds.

    Returns:
        The passes: positions of tree and branch, those of a tree together, longest first.
    """
    passes: list[list[tuple[int, int]]] = []
    room = 0
    for tree, (shared, lengths) in enumerate(trees):
        if shared + sum(lengths) > room and SPLIT * shared > room:
            room = 0
        begun = False  # in the last pass
        for branch in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if lengths[branch] + (0 if begun else shared) > room:
                passes.append([])
                room, begun = batch_tokens, False
            room -= lengths[branch] + (0 if begun else shared)
            passes[-1].append((tree, branch))
            begun = True
    return passes


def prepare(model: Any, tokens: int) -> int:
    """Make a model ready to read `tokens` tokens in all; returns how many a pass should hold.

    On a GPU a large job is compiled: flex attention skips what the mask forbids, and the small operations of a layer,
    which take as long as its matrix products, become few. Scores change by rounding only. A small job takes dense
    masks, and so does a split model, whose hooks have never been compiled. On a CPU longer passes only add attention.
    """
    if input_device(model).type != "cuda":
        return 512
    if tokens < LARGE or is_split(model) or not can_compile():
        return 4096
    for layer in getattr(model.base_model, "layers", ()):
        layer.compile()
    if not model._supports_flex_attn:
        return 4096
    model.set_attn_implementation("flex_attention")
    return 16_384


@cache
def can_compile() -> bool:
    """Whether torch.compile works on this machine's GPU: it needs Triton and a C compiler."""
    try:
        torch.compile(torch.nn.functional.silu)(torch.ones(8, device="cuda"))
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and the work can go on without one
        reason = " ".join(str(error).split())[:200]
        logger.warning("torch.compile does not work here, so scoring is slower; it needs Triton and gcc: %s", reason)
        return False
    return True


@torch.inference_mode()
def branch_states(model: Any, trees: Sequence[Tree]) -> list[torch.Tensor]:
    """The last hidden states of the tokens of every branch, in one forward pass.

    Args:
        model: a causal model with a head, which is not read.

    Returns:
        A tensor (L, H) on the model's device for each branch of each tree, in their order.
    """
    rows: list[tuple[int, int, list[int]]] = []  # a node: the node that it follows, its first position, its token ids
    for shared, branches in trees:
        root = len(rows)
        rows += [(root, 0, shared), *((root, len(shared), branch) for branch in branches)]
    ids = [token for _, _, row in rows for token in row]  # (T,)
    lengths = torch.tensor([len(row) for _, _, row in rows])
    positions = torch.cat([torch.arange(start, start + len(row)) for _, start, row in rows])
    nodes = torch.arange(len(rows)).repeat_interleave(lengths)
    follows = torch.tensor([root for root, _, _ in rows]).repeat_interleave(lengths)
    # One branch is plain causal attention, which needs no mask.
    alone = sum(len(branches) for _, branches in trees) == 1
    padding = -len(ids) % PADDING if _has_block_masks(model) and not alone else 0  # a node of its own, number -1
    nodes, follows = (torch.nn.functional.pad(part, (0, padding), value=-1) for part in (nodes, follows))
    positions, read = (torch.nn.functional.pad(part, (0, padding)) for part in (positions, torch.tensor(ids)))
    nodes, follows, positions, read = (on_device(part, model) for part in (nodes, follows, positions, read))
    mask = None if alone else forest_mask(model, nodes, follows, positions)
    # The trunk is the model without its head.
    trunk = model.base_model(input_ids=read[None], attention_mask=mask, position_ids=positions[None], use_cache=False)
    states = trunk.last_hidden_state[0, : len(ids)].split(lengths.tolist())
    return [state for node, (state, (root, _, _)) in enumerate(zip(states, rows, strict=True)) if node != root]


def on_device(tensor: torch.Tensor, model: Any) -> torch.Tensor:
    """A copy on the model's device, which a GPU makes when it comes to it: nobody waits for the work before."""
    device = input_device(model)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def forest_mask(model: Any, nodes: torch.Tensor, follows: torch.Tensor, positions: torch.Tensor) -> Any:
    """What each token may attend to: the earlier tokens of its own node, and the node that this one follows.

    Args:
        nodes: (T,) the node of each token: the shared tokens of a tree, or a branch.
        follows: (T,) the node of the shared tokens of its tree.
        positions: (T,) position of each token in its own sequence.

    Returns:
        A mask as transformers' models take it: a (1, 1, T, T) tensor, True where attention is allowed, or a BlockMask;
        for a model with sliding-window layers one for each kind of layer.
    """

    def full(query: Any, key: Any) -> Any:
        seen = (nodes[query] == nodes[key]) | (follows[query] == nodes[key])
        return seen & (positions[query] >= positions[key])

    def sliding(query: Any, key: Any) -> Any:
        return full(query, key) & (positions[query] < positions[key] + window)

    def mask(allowed: Callable[[Any, Any], Any]) -> Any:
        if _has_block_masks(model):
            return _block_mask(allowed, every)
        return allowed(every[:, None], every[None])[None, None]

    config = model.config.get_text_config()
    window: Any = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    every = torch.arange(len(nodes), device=nodes.device)
    if "sliding_attention" in kinds:
        return {"full_attention": mask(full), "sliding_attention": mask(sliding if window else full)}
    return mask(sliding if window and not kinds else full)


def _block_mask(allowed: Callable[[Any, Any], Any], every: torch.Tensor) -> BlockMask:
    """What create_block_mask makes of a rule, without a (T, T) tensor of counts (10 bytes a pair of tokens) and without
    its compiled form, whose kernel Triton had not compiled after three minutes on an H100.

    Args:
        allowed: whether a query may attend to a key, by their places in the row.
        every: (T,) all places; T is a multiple of BLOCK.
    """
    length, blocks = len(every), len(every) // BLOCK
    counts = torch.cat(  # (T / BLOCK, T / BLOCK), how many pairs of each block are allowed
        [
            allowed(rows[:, None], every[None]).view(-1, BLOCK, blocks, BLOCK).sum(dim=(1, 3))
            for rows in every.split(SLAB)
        ]
    )
    whole = counts == BLOCK**2
    some = (counts > 0) & ~whole
    (number, which), (whole_number, whole_which) = (  # how many blocks of each row, and which, those that count first
        (kind.sum(dim=1), kind.to(torch.int8).argsort(dim=1, descending=True, stable=True)) for kind in (some, whole)
    )
    return BlockMask.from_kv_blocks(
        number.to(torch.int32)[None, None],
        which.to(torch.int32)[None, None],
        whole_number.to(torch.int32)[None, None],
        whole_which.to(torch.int32)[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda _, __, query, key: allowed(query, key),
        seq_lengths=(length, length),
    )


def _has_block_masks(model: Any) -> bool:
    return model.config._attn_implementation == "flex_attention"
