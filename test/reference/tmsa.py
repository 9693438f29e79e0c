"""Time-dependent multi-head self-attention over windows, written out plainly (paper Eq. 3-6)."""

import torch


def position_index(height, width):
    """[N, N] row of the bias table for query i and key j of a height x width window, tokens row-major."""
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx


def windowed_attention(qkv, time, table, heads, window, scale):
    """qkv [B, H, W, 3C], time [B, 3C] or None (added to every token), table [R, heads], [B, R, heads] or None.

    Returns y [B, H, W, C] and {'lse': [B, heads, H, W]}, the log-sum-exp of the logits without the time token's k part
    (that part shifts a whole row and cancels in the softmax).
    """
    b, height, width, channels = qkv.shape
    wh, ww = window
    rows, columns, d = height // wh, width // ww, channels // 3 // heads

    def split(x):
        """[B, H, W, C] -> [B, windows, heads, tokens, d]"""
        x = x.reshape(b, rows, wh, columns, ww, heads, d)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, rows * columns, heads, wh * ww, d)

    def join(x, features):
        """[B, windows, heads, tokens, features] -> [B, H, W, heads, features]"""
        x = x.reshape(b, rows, columns, heads, wh, ww, features)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, height, width, heads, features)

    q, k, v = (split(part) for part in qkv.chunk(3, -1))
    qt = kt = vt = torch.zeros((), dtype=qkv.dtype)
    if time is not None:
        qt, kt, vt = (part.reshape(b, 1, heads, 1, d) for part in time.chunk(3, -1))
    q = q + qt
    logits = q @ k.transpose(-1, -2) * scale
    if table is not None:
        bias = table[..., position_index(wh, ww), :].movedim(-1, -3)  # [.., heads, N, N]
        logits = logits + (bias[:, None] if bias.dim() == 4 else bias)
    lse = join(logits.logsumexp(-1, keepdim=True), 1).squeeze(-1).permute(0, 3, 1, 2)
    if time is not None:
        logits = logits + q @ kt.transpose(-1, -2) * scale
    y = join(logits.softmax(-1) @ (v + vt), d).reshape(b, height, width, heads * d)
    return y, {'lse': lse}
