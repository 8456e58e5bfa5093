"""More lines for random modules (`fuzz`): layers, several results, steps, casts, writes through views, complex numbers."""

from __future__ import annotations

from .fuzz_lines import BINARY, IN_PLACE, LAYERS, REDUCTIONS, SHAPES, UNARY

__all__ = ["WIDE"]

COMPOSITES = (
    "torch.addcdiv({a}, {a}, {b}.abs() + 1)",
    "torch.addcmul({a}, {a}, {b}, value=0.5)",
    "torch.lerp({a}, {b}, {a}.sigmoid())",
    "F.glu(torch.cat([{a}, {b}], {d}), {d})",
    "F.cosine_similarity({a}, {b}, dim={d})[None]",
    "torch.rad2deg({a}) * 0.01",
    "torch.block_diag({a}, {b})",
    "torch.clamp({a}, min={b} - 1)",
    "torch.special.xlog1py({a}, {b}.abs())",
    "torch.addr({a}, {a}[:, 0], {a}[0])",
    "torch.norm({a} + 3, dim={d}, dtype=torch.float64)",
    "F.pairwise_distance({a}, {b} + 3)",
    "torch.linalg.multi_dot([{a}, {a}.T, {b}])",
    "torch.kron({a} * 1, {b} * 1)[:3]",  # of what is written to later torch's own gradient is wrong, and nothing is said
    "F.mse_loss({a}, {b}.detach(), reduction='none')",
    "F.huber_loss({a}, {b}, reduction='none')",
)
RESULTS = (
    "p = {a}.split(1, {d}); {v} = p[0] * p[-1].sigmoid()",
    "p, *q = {a}.tensor_split(2, {d}); {v} = p + q[-1].sum()",
    "m, i = {a}.max({d}, keepdim=True); {v} = {a} - m",
    "m, i = {a}.topk(2, {d}); {v} = m + {a}.gather({d}, i)",
    "m, i = {a}.sort({d}); {v} = m * {b}.gather({d}, i)",
    "m, s = torch.std_mean({a}, {d}, keepdim=True); {v} = ({a} - s) / (m + 1e-3)",
    "p, q = {a}.aminmax(dim={d}, keepdim=True); {v} = ({a} - p) / (q - p + 1)",
    "p, q = torch.frexp({a}); {v} = p",
    "q, r = torch.linalg.qr({a} + 2 * torch.eye(*{a}.shape[-2:], dtype={a}.dtype)); {v} = r",
    "p = torch.broadcast_tensors({a}, {b}[:1]); {v} = p[0] - p[1]",
    "p = torch.meshgrid({a}.flatten()[:3], {b}.flatten()[:2], indexing='ij'); {v} = p[0] * p[1]",
)
STEPS = (
    "({a} > {b}).double() * 0.5 + {a}",
    "torch.where({a} > 0, 1.0, -1.0) * {b}",
    "{a}.sign() + 0.1 * {b}",
    "{a}.round() * {b}",
    "torch.heaviside({a}, {a}.detach() * 0) + {a}",
    "F.one_hot({a}.argmax(-1), {a}.shape[-1]).double() + {a}",
    "({a} >= {a}.amax(-1, keepdim=True)).double() * {b}",
    "(({a} > 0) & ({b} > 0)).double() + {a}",
    "{a}.floor() + {b}.trunc()",
    "{a} * ({b} > 0)",
    "torch.where(({a} > 0) | ({b} > 1), {a}, {b} * 2)",
    "{a}.float().tanh().double()",
    "{a}.float() @ {w:a.shape[-1], 2}.float()",
    "({a}.float() + {b}).double()",
    "({a} + {a}.long().double()) * 0.5",
)
MODULES = (
    "F.conv1d({a}, {w:a.shape[1], 1, 2}, None, groups={a}.shape[1])",
    "F.conv2d({a}[:, None], {w:2, 1, 2, 2}, {w:2}, stride=2, padding=1)",
    "F.conv_transpose2d({a}[:, None], {w:1, 2, 2, 2}, stride=2)",
    "F.max_pool2d({a}[:, None], 2, padding=1)",
    "F.avg_pool2d({a}[:, None], 2)",
    "F.adaptive_max_pool1d({a}, 1)",
    "F.lp_pool1d({a}.abs() + 0.1, 2, 2)",
    "F.batch_norm({a}, {s:a.shape[1]}, {s:a.shape[1]}.square() + 0.5, {w:a.shape[1]}, {w:a.shape[1]})",
    "F.batch_norm({a}, {s:a.shape[1]}, {s:a.shape[1]}, {w:a.shape[1]}, {w:a.shape[1]}, True, 0.1)",
    "F.instance_norm({a}, weight={w:a.shape[1]}, bias={w:a.shape[1]})",
    "F.scaled_dot_product_attention({a}, {b}, {a}, is_causal=True)",
    "F.scaled_dot_product_attention({a}, {b}, {b}, attn_mask={s:a.shape[-2], a.shape[-2]})",
    "torch.einsum('bij,bkj->bik', {a}, {b})",
    "torch.einsum('ij,kj->ik', {a}, {b})",
    "torch.bmm({a}, {b}.transpose(1, 2))",
    "torch.addmm({w:3}, {a}, {w:a.shape[-1], 3})",
    "F.linear({a}.softmax(-1), {w:3, a.shape[-1]}).relu()",
    "torch.lstm_cell({a}[:2], ({w:2, 2}, {w:2, 2}), {w:8, a.shape[-1]}, {w:8, 2}, {w:8}, {w:8})[0]",
    "torch.lstm({a}.reshape(1, -1, {a}.shape[-1]), (torch.zeros(1, 1, 2, dtype={a}.dtype),) * 2,"
    " ({w:8, a.shape[-1]}, {w:8, 2}, {w:8}, {w:8}), True, 1, 0.0, False, False, True)[0]",
    "torch.gru({a}.reshape(1, -1, {a}.shape[-1]), torch.zeros(1, 1, 2, dtype={a}.dtype),"
    " ({w:6, a.shape[-1]}, {w:6, 2}, {w:6}, {w:6}), True, 1, 0.0, False, False, True)[0]",
    "F.embedding(torch.tensor([0, 2, 1]), {w:3, 4}) + {a}.mean()",
    "w = {w:a.shape[-1], a.shape[-1]}; {v} = F.linear(F.linear({a}, w).relu(), w)",
    "w = {w:4, a.shape[-1]}; {v} = F.linear({a}, w / w.norm(dim=1, keepdim=True))",
    "h = F.linear({a}, {w:4, a.shape[-1]}); {v} = F.silu(h[..., :2]) * h[..., 2:]",
    "h = F.linear({a}, {w:3, a.shape[-1]}); {v} = torch.cat([h.relu(), h.tanh(), h * 2, h], -1)",
    "F.dropout({a}, 0.5, False) + {w:1}",
    "{a}.new_zeros({a}.shape) + {w:a.shape[-1]}",
)
WRITES = (
    "t = {a} * 1; u = t[0]; u.relu_(); u.add_(0.1); {v} = t * u",
    "t = {a}.clone(); t[0] += {b}[0]; t[-1] *= t[0]; {v} = t",
    "t = torch.zeros_like({a}); t[0] = {a}[0].tanh(); t[1:] = t[:1] + {a}[1:]; {v} = t",
    "t = {a}.clone(); t.diagonal(0, 0, 1).add_({b}[0, 0]).mul_(2); {v} = t",
    "t = {a} * 1; t.clamp_(-1, 1).mul_({b}); {v} = t",
    "t = {a}.clone(); t[..., 0].lerp_({b}[..., 0], 0.3); {v} = t",
    "t = {a} * 1; t[:, :1].addcmul_({a}[:, :1], {b}[:, 1:2]); {v} = t",
    "m = torch.zeros_like({a}); m[0] = 1; m[:, 0] += 1; {v} = {a} * m",
    "m = torch.ones({a}.shape, dtype=torch.bool); m[0] = False; {v} = torch.where(m, {a}, {b})",
    "t = {a}.clone(); u = t.view(-1); t.mul_(2); u.tanh_(); {v} = t + u.sum()",
    "t = {a}.clone(); u = t.transpose(0, -1); w = u[0]; w.sigmoid_(); {v} = u * t.sum()",
    "t = torch.empty_like({a}); t.copy_({a}); t.sub_({b}); {v} = t",
    "t = {a} * 1; t[0].copy_({b}[0] * 2); {v} = t",
    "t = {a} * 1; F.leaky_relu(t[1:], 0.1, inplace=True); {v} = t",
    "t = {a} * 1; t.multiply_({b}).subtract_(1); {v} = t",
    "t = {a}.clone(); t[{a}[:] > {b}] = 0; {v} = t",
    "t = {a}.clone(); t.select(0, 0).masked_fill_({b}[0] > 0, 0.2); {v} = t",
    "t = {a}.clone(); t[:, 1:].sign_(); {v} = t * {a}",
    "t = [{a}]; t.append(t[-1].clone().add_({b})); t[-1][0].mul_(t[0][0]); {v} = torch.stack(t)",
    "s = {s:a.shape[-1]}; s.add_({a}.detach().flatten(0, -2).mean(0)); {v} = {a} * s.clone()",
)
COMPLEX = (
    "torch.fft.rfft({a}).abs()",
    "torch.fft.irfft(torch.fft.rfft({a}) * {w:1}, n={a}.shape[-1])",
    "torch.view_as_real(torch.fft.fft({a}))",
    "torch.complex({a}, {b}).angle() * 0.1",
    "c = torch.fft.rfft({a}); o = torch.zeros_like(c); o[..., :1] = c[..., :1] * torch.complex({w:1}, {w:1}); "
    "{v} = torch.fft.irfft(o, n={a}.shape[-1])",
    "(torch.polar({a}.abs() + 0.1, {b}) * torch.complex({a}, {a})).real",
)
WIDE = (
    UNARY,
    BINARY,
    SHAPES,
    REDUCTIONS,
    LAYERS,
    MODULES,
    MODULES,
    STEPS,
    COMPOSITES,
    RESULTS,
    WRITES,
    WRITES,
    IN_PLACE,
)
