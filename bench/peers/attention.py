"""Attention with a learned relative position bias, PyTorch's ways: scaled_dot_product_attention with the bias as a float mask,
flex_attention with the bias read from the table, flash attention without a bias (a ceiling: it computes less), and written out.

Where windows are smaller than the map, taking them apart and putting them together is timed too, as it is part of the job; the time
token is left out of the peers' times, and the mask of a forward pass is made beforehand: each peer at its best. Backward passes give
the gradients of q, k, v and of the table, which the mask is gathered from inside the graph.
"""

import torch
import torch.nn.functional as F

from common import DTYPES, NotMeasured, sets_for


def position_index(window):
    """[N, N]: row of the table for query i and key j."""
    y, x = torch.arange(window**2) // window, torch.arange(window**2) % window
    dy, dx = y[:, None] - y[None, :] + window - 1, x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


class Case:
    """One spec's tensors; `sets` of qkv in turn."""

    def __init__(self, spec, device, dtype, count):
        sizes = spec['sizes']
        self.side, self.window, self.batch, self.heads, self.dim = (sizes[k] for k in ('side', 'window', 'batch', 'heads', 'dim'))
        self.backward = sizes['pass'] == 'backward'
        self.whole = self.side == self.window
        channels = self.heads * self.dim
        shape = (self.batch, self.side, self.side, 3 * channels)
        make = lambda *s: torch.randn(*s, device=device, dtype=DTYPES[dtype])
        self.qkv = [make(*shape).requires_grad_(self.backward) for _ in range(count)]
        self.dy = [make(*shape[:3], channels) for _ in range(count)] if self.backward else None
        self.table = (torch.randn((2 * self.window - 1) ** 2, self.heads, device=device) * 0.5).requires_grad_(self.backward)
        self.index = position_index(self.window).to(device)
        self.dtype = DTYPES[dtype]

    def mask(self):
        """[1, heads, N, N] in the operands' dtype."""
        return self.table[self.index].permute(2, 0, 1)[None].to(self.dtype)

    def split(self, qkv):
        """[B, side, side, 3C] -> q, k, v [windows, heads, N, d]; views where the map is one window."""
        n, w = self.side // self.window, self.window
        if self.whole:
            x = qkv.view(self.batch, w * w, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        else:
            x = qkv.view(self.batch, n, w, n, w, 3, self.heads, self.dim).permute(5, 0, 1, 3, 6, 2, 4, 7)
            x = x.reshape(3, self.batch * n * n, self.heads, w * w, self.dim)
        return x.unbind(0)

    def join(self, y):
        """[windows, heads, N, d] -> [B, side, side, C]."""
        n, w = self.side // self.window, self.window
        if self.whole:
            return y.transpose(1, 2).reshape(self.batch, w, w, self.heads * self.dim)
        y = y.view(self.batch, n, n, self.heads, w, w, self.dim).permute(0, 1, 4, 2, 5, 3, 6)
        return y.reshape(self.batch, self.side, self.side, self.heads * self.dim)


def eager(case):
    scale = case.dim**-0.5
    def attend(qkv, mask):
        q, k, v = case.split(qkv)
        return case.join((q @ k.transpose(-1, -2) * scale + mask).softmax(-1) @ v)
    return attend


def sdpa(backend):
    def build(case):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        chosen = backend and getattr(SDPBackend, backend)
        def attend(qkv, mask):
            q, k, v = case.split(qkv)
            if chosen is None:
                return case.join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
            with sdpa_kernel(chosen):
                return case.join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return attend
    return build


def flex(pad):
    """flex_attention; `pad` widens heads to the next power of two, where the width itself is refused."""
    def build(case):
        if case.table.device.type != 'cuda':
            raise NotMeasured('flex_attention is measured on CUDA only: compiling it needs Triton.')
        try:
            import triton  # noqa: F401
        except ImportError:
            raise NotMeasured('flex_attention is not measured: there is no Triton here.') from None
        from torch.nn.attention.flex_attention import flex_attention
        import torch._functorch.config as functorch
        functorch.donated_buffer = False  # the graph is kept and run backward many times
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)
        wide = 1 << (case.dim - 1).bit_length() if pad else case.dim
        w, side, table, scale = case.window, 2 * case.window - 1, case.table, case.dim**-0.5
        def bias(score, b, h, i, j):
            row = (i // w - j // w + w - 1) * side + i % w - j % w + w - 1
            return score + table[row, h].to(score.dtype)
        def attend(qkv, _):
            q, k, v = (F.pad(x, (0, wide - case.dim)) if wide > case.dim else x for x in case.split(qkv))
            return case.join(compiled(q, k, v, score_mod=bias, scale=scale)[..., : case.dim])
        return attend
    return build


IMPLEMENTATIONS = {
    'sdpa mask': sdpa(None),
    'flex': flex(False),
    'flex padded': flex(True),
    'sdpa flash without bias': sdpa('FLASH_ATTENTION'),
    'sdpa mem-efficient mask': sdpa('EFFICIENT_ATTENTION'),
    'sdpa cudnn mask': sdpa('CUDNN_ATTENTION'),
    'eager': eager,
}


def time_spec(report, timer, spec, device, dtype, quick):
    flex_ran = False
    for name, build in IMPLEMENTATIONS.items():
        if name == 'flex padded' and (flex_ran or spec['sizes']['dim'] & (spec['sizes']['dim'] - 1) == 0):
            continue  # only for what flex itself refused
        backward = spec['sizes']['pass'] == 'backward'
        if name == 'sdpa cudnn mask' and backward:
            continue  # it takes no mask that needs a gradient
        def work():
            case = Case(spec, device, dtype, sets_for(spec['bytes'], quick))
            attend = build(case)
            biased = 'without bias' not in name
            if not backward:
                mask = case.mask() if biased and 'flex' not in name else None
                with torch.no_grad():
                    return timer.measure(lambda i: attend(case.qkv[i], mask), len(case.qkv), graph=True)
            results = [attend(qkv, case.mask() if biased and 'flex' not in name else None) for qkv in case.qkv]
            inputs = lambda i: [case.qkv[i]] + ([case.table] if biased else [])
            step = lambda i: torch.autograd.grad(results[i], inputs(i), case.dy[i], retain_graph=True)
            return timer.measure(step, len(results))
        report.add(spec, name, work)
        flex_ran = flex_ran or (name == 'flex' and report.wants(name) and 'ms' in report.body['results'][-1])
