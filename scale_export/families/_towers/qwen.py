"""The vision towers of the Qwen-VL families over patches that the host laid out; needs torch.

Weights are those of Hugging Face's modules. Their forwards loop over pictures and windows, which no graph can; here a
picture is a row of a batch, and masks say what belongs together. Shapes: B pictures, D width, M patches of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from .attention import RmsNorm, as_linear, attend, normed, turn, whole_pictures, windows, with_neighbours
from .tower import VisionTower


class _Attention(Protocol):
    num_heads: int
    qkv: nn.Module
    proj: nn.Module


class _Block(Protocol):
    """Its norms are RMSNorms in Qwen2.5-VL, else layer norms, which are called only."""

    norm1: RmsNorm
    attn: _Attention
    norm2: RmsNorm
    mlp: nn.Module


class _Merger(Protocol):
    """Norm and MLP of the patches of a token, and Qwen3-VL's, which has other names for them."""

    ln_q: RmsNorm
    mlp: nn.Module

    norm: nn.Module
    use_postshuffle_norm: bool
    linear_fc1: nn.Module
    act_fn: nn.Module
    linear_fc2: nn.Module


class _PatchEmbedding(Protocol):
    proj: nn.Module


class Visual(Protocol):
    """Hugging Face's module; the last three are Qwen3-VL's, the one before them Qwen2.5-VL's."""

    patch_embed: _PatchEmbedding
    blocks: Sequence[_Block]
    merger: _Merger
    spatial_merge_size: int
    fullatt_block_indexes: Sequence[int]
    pos_embed: nn.Module
    deepstack_visual_indexes: Sequence[int]
    deepstack_merger_list: Sequence[_Merger]


class QwenTower(VisionTower):
    """Qwen2-VL's: attention over whole pictures, then M neighbouring patches become one row."""

    def __init__(self, visual: Visual) -> None:
        super().__init__()
        self.embedding = as_linear(visual.patch_embed.proj)
        self.blocks = visual.blocks
        self.merger = visual.merger
        self.merged: int = visual.spatial_merge_size**2
        self.constants = {}

    def encode(self, patches: Tensor, cos: Tensor, sin: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``patches [B, tokens, M, C]``, ``cos, sin [B, tokens, M, hd / 2]``, ``valid [B, tokens]``."""
        x, mask = self.embedding(patches).flatten(1, 2), self.mask(valid)
        for block in self.blocks:
            x = self.block(block, x, cos, sin, mask)
        return {"image_features": self.merge(x)}

    def mask(self, valid: Tensor) -> Tensor:
        """Of attention over pictures; the patches of a token are all there or none."""
        return whole_pictures(valid.unsqueeze(-1).expand(-1, -1, self.merged).flatten(1))

    def block(self, block: _Block, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """One block, ``x [B, N, D]``, over whole pictures."""
        q, k, v = self.heads(block.attn, block.norm1(x), cos, sin)
        x = x + block.attn.proj(attend(q, k, v, mask))
        residual: Tensor = x + block.mlp(block.norm2(x))
        return residual

    def heads(
        self, attention: _Attention, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, N, H, hd]``, the first two turned."""
        q, k, v = (
            part.reshape(*part.shape[:2], attention.num_heads, -1)
            for part in attention.qkv(x).chunk(3, dim=-1)
        )
        cos, sin = cos.flatten(1, 2), sin.flatten(1, 2)
        return turn(q, cos, sin), turn(k, cos, sin), v

    def merge(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` → ``[B, N / M, D of the decoder]``."""
        rows: Tensor = self.merger.mlp(self.tokens(self.merger.ln_q(x)))
        return rows

    def tokens(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` → ``[B, N / M, M·D]``."""
        return x.reshape(x.shape[0], -1, self.merged * x.shape[-1])


class WindowTower(QwenTower):
    """Qwen2.5-VL's: attention within windows, but for a few blocks over whole pictures.

    A window's patches lie one after the other, in blocks of as many as a whole window has.
    """

    def __init__(self, visual: Visual) -> None:
        super().__init__(visual)
        self.whole = frozenset(visual.fullatt_block_indexes)

    def encode(self, patches: Tensor, cos: Tensor, sin: Tensor, window: Tensor) -> dict[str, Tensor]:
        """``patches [B, blocks, S, C]``, ``cos, sin [B, blocks, S, hd / 2]``, ``window`` int32 ``[B, blocks, S]``.

        Windows count from 1; 0 is what fills a picture up.
        """
        x = self.embedding(patches).flatten(1, 2)
        whole = whole_pictures((window > 0).to(x.dtype).flatten(1))
        own = windows(window, x.dtype)
        for index, block in enumerate(self.blocks):
            near = index not in self.whole
            x = self.window_block(block, x, cos, sin, own if near else whole, near=near)
        return {"image_features": self.merge(x)}

    def window_block(
        self, block: _Block, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *, near: bool
    ) -> Tensor:
        """One block, over windows or whole pictures."""
        q, k, v = self.heads(block.attn, normed(block.norm1, x), cos, sin)
        attended = _within_blocks(q, k, v, mask, cos.shape[2]) if near else attend(q, k, v, mask)
        x = x + block.attn.proj(attended.reshape(x.shape))
        residual: Tensor = x + block.mlp(normed(block.norm2, x))
        return residual

    def merge(self, x: Tensor) -> Tensor:
        rows: Tensor = self.merger.mlp(self.tokens(normed(self.merger.ln_q, x)))
        return rows


def _within_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, size: int) -> Tensor:
    """Attention of ``[B, N, H, hd]`` block by block over a block and its neighbours: ``[B·blocks, S, H·hd]``."""
    pictures, _, heads, width = q.shape
    blocks = (x.reshape(pictures, -1, size, heads * width) for x in (k, v))
    k, v = (with_neighbours(x).reshape(-1, 3 * size, heads, width) for x in blocks)
    return attend(q.reshape(-1, size, heads, width), k, v, mask)


class DeepstackTower(QwenTower):
    """Qwen3-VL's: learned positions interpolated to the grid, and rows of inner blocks for the decoder."""

    def __init__(self, visual: Visual) -> None:
        super().__init__(visual)
        self.positions = visual.pos_embed
        self.deepstack = tuple(visual.deepstack_visual_indexes)
        self.deepstack_mergers = visual.deepstack_merger_list

    def encode(  # type: ignore[override]
        self, patches: Tensor, cos: Tensor, sin: Tensor, valid: Tensor, taps: Tensor, shares: Tensor
    ) -> dict[str, Tensor]:
        """As Qwen2-VL's; ``taps`` int32 and ``shares`` ``[B, tokens, M, 4]`` say which learned positions to mix."""
        learned = (self.positions(taps) * shares.unsqueeze(-1)).sum(-2)
        x, mask = (self.embedding(patches) + learned).flatten(1, 2), self.mask(valid)
        stacked: dict[str, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = self.block(block, x, cos, sin, mask)
            if index in self.deepstack:
                merger = self.deepstack_mergers[self.deepstack.index(index)]
                stacked[f"deepstack_{len(stacked)}"] = self.merge_by(merger, x)
        return {"image_features": self.merge(x), **stacked}

    def merge(self, x: Tensor) -> Tensor:
        return self.merge_by(self.merger, x)

    def merge_by(self, merger: _Merger, x: Tensor) -> Tensor:
        """One of the mergers, whose norm sees patches or tokens."""
        tokens = merger.norm(self.tokens(x)) if merger.use_postshuffle_norm else self.tokens(merger.norm(x))
        rows: Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(tokens)))
        return rows
