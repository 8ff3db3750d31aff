"""The tuner's inner loops as Triton programs, for graphics cards; `gpu.py` launches them.

What each computes is said in `plain.py`. Tensors are rows that lie one behind another; the names of
`tl.constexpr` parameters are in capitals, and those that end in `_P` are powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
# As an int32 it is the bit pattern of 1.5 * 2^23, to which an integer below 2^22 adds itself: read
# as fp32 and less that number, it is the integer in fp32, at the price of a subtraction.
_MAGIC_BITS, _MAGIC = tl.constexpr(0x4B400000), tl.constexpr(12582912.0)
_HASH_COLUMN, _HASH_1, _HASH_2 = (
    tl.constexpr(0x9E3779B1),
    tl.constexpr(0x7FEB352D),
    tl.constexpr(0x846CA68B),
)


# What changes from step to step: a program is not compiled anew for numbers of a special form.
_VARYING = ("rows", "count", "tokens")


@triton.jit
def _kept(keys, columns, least):
    """Where dropout keeps a number: rows of `keys` by `columns`; the hash of `Plain.dropped`."""
    low = (keys & 0xFFFFFFFF).to(tl.uint32)
    mixed = low[:, None] ^ (columns.to(tl.uint32) * _HASH_COLUMN)[None, :]
    mixed = (mixed ^ (mixed >> 16)) * _HASH_1
    mixed = (mixed ^ (mixed >> 16)) * _HASH_2
    mixed ^= mixed >> 15
    return mixed.to(tl.int64) >= least


@triton.jit(do_not_specialize=_VARYING)
def norm(
    x, weight, y, inverse, rows, width, eps,
    ROWS: tl.constexpr, WIDTH_P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH_P)
    at = row[:, None] * width + column[None, :]
    there = (row < rows)[:, None] & (column < width)[None, :]
    wide = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(wide * wide, 1) / width + eps)
    factor = tl.load(weight + column, mask=column < width, other=0.0)
    tl.store(y + at, (wide * r[:, None] * factor[None, :]).to(y.dtype.element_ty), mask=there)
    tl.store(inverse + row, r, mask=row < rows)


@triton.jit(do_not_specialize=_VARYING)
def norm_backward(
    slope, x, weight, inverse, dx, rows, width,
    ROWS: tl.constexpr, WIDTH_P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH_P)
    at = row[:, None] * width + column[None, :]
    there = (row < rows)[:, None] & (column < width)[None, :]
    wide = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    factor = tl.load(weight + column, mask=column < width, other=0.0)
    weighed = tl.load(slope + at, mask=there, other=0.0).to(tl.float32) * factor[None, :]
    r = tl.load(inverse + row, mask=row < rows, other=0.0)[:, None]
    dot = (tl.sum(weighed * wide, 1) / width)[:, None]
    found = weighed * r - wide * (dot * r * r * r)
    tl.store(dx + at, found.to(dx.dtype.element_ty), mask=there)


@triton.jit
def _activated(x, GELU: tl.constexpr):
    """act(x), and its slope."""
    if GELU:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        bent = 2 * tl.sigmoid(2 * inner) - 1
        steep = 0.7978845608028654 * (1 + 0.134145 * x * x)
        return 0.5 * x * (1 + bent), 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * steep
    share = tl.sigmoid(x)
    return x * share, share * (1 + x * (1 - share))


@triton.jit(do_not_specialize=_VARYING)
def gated(gate, up, y, count, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    active, _ = _activated(tl.load(gate + at, mask=there, other=0.0).to(tl.float32), GELU)
    other = tl.load(up + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at, (active * other).to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_VARYING)
def gated_backward(
    slope, gate, up, d_gate, d_up, count,
    GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    active, steep = _activated(tl.load(gate + at, mask=there, other=0.0).to(tl.float32), GELU)
    other = tl.load(up + at, mask=there, other=0.0).to(tl.float32)
    d = tl.load(slope + at, mask=there, other=0.0).to(tl.float32)
    tl.store(d_gate + at, (d * other * steep).to(d_gate.dtype.element_ty), mask=there)
    tl.store(d_up + at, (d * active).to(d_up.dtype.element_ty), mask=there)


@triton.jit
def rotate(
    x, cos, sin, y, heads,
    SIZE: tl.constexpr, HALF_P: tl.constexpr, HEADS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """A token and HEADS of its heads."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half, column = SIZE // 2, tl.arange(0, HALF_P)
    at = (token * heads + head[:, None]) * SIZE + column[None, :]
    there = (head < heads)[:, None] & (column < half)[None, :]
    inside = column < half
    x1 = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    x2 = tl.load(x + at + half, mask=there, other=0.0).to(tl.float32)
    turn = token * SIZE + column
    cos1 = tl.load(cos + turn, mask=inside, other=0.0)[None, :]
    cos2 = tl.load(cos + turn + half, mask=inside, other=0.0)[None, :]
    sin1 = tl.load(sin + turn, mask=inside, other=0.0)[None, :]
    sin2 = tl.load(sin + turn + half, mask=inside, other=0.0)[None, :]
    if BACKWARD:
        y1, y2 = x1 * cos1 + x2 * sin2, x2 * cos2 - x1 * sin1
    else:
        y1, y2 = x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2
    tl.store(y + at, y1.to(y.dtype.element_ty), mask=there)
    tl.store(y + at + half, y2.to(y.dtype.element_ty), mask=there)


@triton.jit
def cross_entropy(logits, targets, losses, width, BLOCK: tl.constexpr):
    """A row: the log of its sum block by block, then its slope in its place."""
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * width
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        part = tl.load(here + at, mask=at < width, other=float("-inf"))
        higher = tl.maximum(most, tl.max(part, 0))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(part - higher), 0)
        most = higher
    log_sum = most + tl.log(total)
    target = tl.load(targets + row)
    tl.store(losses + row, log_sum - tl.load(here + target))
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        part = tl.load(here + at, mask=at < width, other=float("-inf"))
        share = tl.exp(part - log_sum) - (at == target).to(tl.float32)
        tl.store(here + at, share, mask=at < width)


@triton.jit
def _largest(x):
    """Of each row, the largest magnitude; no number where the row holds one that is none."""
    odd = tl.max((x != x).to(tl.int32), 1)
    return tl.where(odd > 0, float("nan"), tl.max(tl.abs(x), 1))


@triton.jit
def _in_8_bits(x, most, kind, INT: tl.constexpr, HIGHEST: tl.constexpr):
    """Rows x of fp32 numbers whose largest magnitudes are `most`."""
    inverse = tl.where(most > 0, HIGHEST / most, 0.0)
    scaled = tl.clamp(x * inverse[:, None], -HIGHEST, HIGHEST)
    if INT:
        # What is added leaves no room for a fraction: half-way numbers go to the even one.
        scaled = (scaled + _MAGIC) - _MAGIC
    return scaled.to(kind)


@triton.jit
def quantise(
    x, columns, values, scales, depth, stride, groups,
    COLUMNS: tl.constexpr, INT: tl.constexpr, HIGHEST: tl.constexpr,
    GROUPS_P: tl.constexpr, GROUP: tl.constexpr, GROUP_P: tl.constexpr,
):  # fmt: skip
    """A row; what lies between depth and stride becomes zero."""
    row = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS_P), tl.arange(0, GROUP_P)
    at = group[:, None] * GROUP + member[None, :]
    mine = (member < GROUP)[None, :]
    there = mine & (at < depth)
    part = tl.load(x + row * depth + at, mask=there, other=0.0).to(tl.float32)
    if COLUMNS:
        part *= tl.load(columns + at, mask=there, other=0.0)
    most = _largest(part)
    found = _in_8_bits(part, most, values.dtype.element_ty, INT, HIGHEST)
    tl.store(values + row * stride + at, found, mask=mine & (at < stride))
    tl.store(scales + row * groups + group, most / HIGHEST, mask=group < groups)


@triton.jit
def turn(w, turned, outputs, depth, stride, turned_stride, SIDE: tl.constexpr):
    """A tile of w (outputs, stride) to its place in (depth, turned_stride), zeros behind it."""
    row = tl.program_id(1).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    tile = tl.load(
        w + row[:, None] * stride + column[None, :],
        mask=(row < outputs)[:, None] & (column < depth)[None, :],
        other=0,
    )
    tl.store(
        turned + column[:, None] * turned_stride + row[None, :],
        tl.trans(tile),
        mask=(column < depth)[:, None] & (row < turned_stride)[None, :],
    )


@triton.jit(do_not_specialize=_VARYING)
def read_rows(
    x, columns, values, scales, down, low, across, sums, keys, rows, depth, stride, groups,
    narrow, wide, across_stride, least, factor,
    HELD: tl.constexpr, COLUMNS: tl.constexpr, INT: tl.constexpr, HIGHEST: tl.constexpr,
    LOW: tl.constexpr, SUMS: tl.constexpr, DROP: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, NARROW_P: tl.constexpr, WIDE_P: tl.constexpr,
):  # fmt: skip
    """BLOCK rows: they in 8 bits, their products with `down`, and their part of the sums.

    HELD: in 8 bits, with a scale for each DEPTH numbers. The sums, (programs, wide, depth), are
    added up later in a fixed order, so that a run can be repeated exactly.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK + tl.arange(0, BLOCK)
    row_there = row < rows
    beside, above = tl.arange(0, NARROW_P), tl.arange(0, WIDE_P)
    found = tl.zeros((BLOCK, NARROW_P), tl.float32)
    if DROP:
        key = tl.load(keys + row, mask=row_there, other=0)
    if SUMS:
        weights = tl.load(
            across + row[None, :] * across_stride + above[:, None],
            mask=row_there[None, :] & (above < wide)[:, None],
            other=0.0,
        ).to(x.dtype.element_ty)
    for start in range(0, depth, DEPTH):
        at = start + tl.arange(0, DEPTH)
        there = row_there[:, None] & (at < depth)[None, :]
        part = tl.load(x + row[:, None] * depth + at[None, :], mask=there, other=0.0)
        if HELD:
            part_wide = part.to(tl.float32)
            if COLUMNS:
                part_wide *= tl.load(columns + at, mask=at < depth, other=0.0)[None, :]
            most = _largest(part_wide)
            held = _in_8_bits(part_wide, most, values.dtype.element_ty, INT, HIGHEST)
            inside = row_there[:, None] & (at < stride)[None, :]
            tl.store(values + row[:, None] * stride + at[None, :], held, mask=inside)
            tl.store(scales + row * groups + start // DEPTH, most / HIGHEST, mask=row_there)
        if DROP:
            left = tl.where(_kept(key, at, least), part.to(tl.float32) * factor, 0.0)
            part = left.to(x.dtype.element_ty)
        if LOW:
            rows_of_down = tl.load(
                down + beside[:, None] * depth + at[None, :],
                mask=(beside < narrow)[:, None] & (at < depth)[None, :],
                other=0.0,
            )
            found = tl.dot(part, tl.trans(rows_of_down), found, input_precision="ieee")
        if SUMS:
            weighed = tl.dot(weights, part, input_precision="ieee")
            tl.store(
                sums + (program * wide + above[:, None]) * depth + at[None, :],
                weighed,
                mask=(above < wide)[:, None] & (at < depth)[None, :],
            )
    if LOW:
        tl.store(
            low + row[:, None] * narrow + beside[None, :],
            found.to(low.dtype.element_ty),
            mask=row_there[:, None] & (beside < narrow)[None, :],
        )


@triton.jit(do_not_specialize=_VARYING)
def add_dropped(
    y, u, b, keys, rows, width, rank, u_stride,
    least, factor,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, RANK_P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    across = row < rows
    found = _low_rank(u, b, row, column, across, width, rank, u_stride, RANK_P)
    kept = _kept(tl.load(keys + row, mask=across, other=0), column, least)
    there = across[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    before = tl.load(y + at, mask=there, other=0.0).to(tl.float32)
    after = before + tl.where(kept, found * factor, 0.0)
    tl.store(y + at, after.to(y.dtype.element_ty), mask=there)


@triton.jit
def _low_rank(
    u, b, row, column, there, width, rank, u_stride,
    RANK_P: tl.constexpr,
):  # fmt: skip
    """A tile of `u b`; u (rows, rank), b (rank, width)."""
    middle = tl.arange(0, RANK_P)
    left = tl.load(
        u + row[:, None] * u_stride + middle[None, :],
        mask=there[:, None] & (middle < rank)[None, :],
        other=0.0,
    )
    right = tl.load(
        b + middle[:, None] * width + column[None, :],
        mask=(middle < rank)[:, None] & (column < width)[None, :],
        other=0.0,
    )
    return tl.dot(left.to(right.dtype), right, input_precision="ieee")


@triton.jit(do_not_specialize=_VARYING)
def multiply(
    a, w, a_scales, w_scales, bias, u, b, y,
    rows, outputs, stride, groups, rank, u_stride,
    GROUPED: tl.constexpr, DESCRIBED: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr,
    LOW: tl.constexpr, INTO: tl.constexpr, IMPRECISE: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, RANK_P: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """A tile of `a wᵀ`, scaled, with bias and low-rank term; a (rows, stride), w (outputs, stride).

    GROUPED: a row of int8 has a scale for each DEPTH numbers, else one, which comes in at the end.
    DESCRIBED: a and w are tensor descriptors, which the card's copy engine reads.
    TOGETHER: so many tiles of rows take turns at the same weights, while those are in cache.
    """
    tiles, across = tl.cdiv(rows, BLOCK), tl.cdiv(outputs, WIDTH)
    program = tl.program_id(0)
    band = program // (TOGETHER * across)
    height = tl.minimum(tiles - band * TOGETHER, TOGETHER)
    place = program % (TOGETHER * across)
    first_row = (band * TOGETHER + place % height) * BLOCK
    first_column = (place // height) * WIDTH
    row = first_row.to(tl.int64) + tl.arange(0, BLOCK)
    column = first_column.to(tl.int64) + tl.arange(0, WIDTH)
    row_there, column_there = row < rows, column < outputs
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, stride, DEPTH):
        if DESCRIBED:
            left = a.load([first_row, start])
            right = w.load([first_column, start])
        else:
            at = start + tl.arange(0, DEPTH)
            inside = (at < stride)[None, :]
            left = tl.load(
                a + row[:, None] * stride + at[None, :], mask=row_there[:, None] & inside, other=0.0
            )
            right = tl.load(
                w + column[:, None] * stride + at[None, :],
                mask=column_there[:, None] & inside,
                other=0.0,
            )
        if GROUPED:
            magic = tl.full((BLOCK, WIDTH), _MAGIC_BITS, tl.int32)
            sums = tl.dot(left, tl.trans(right), magic, out_dtype=tl.int32)
            scale = tl.load(a_scales + row * groups + start // DEPTH, mask=row_there, other=0.0)
            total += (sums.to(tl.float32, bitcast=True) - _MAGIC) * scale[:, None]
        else:
            total = tl.dot(left, tl.trans(right), total, max_num_imprecise_acc=IMPRECISE)
    if not GROUPED:
        total *= tl.load(a_scales + row, mask=row_there, other=0.0)[:, None]
    if SCALED:
        total *= tl.load(w_scales + column, mask=column_there, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + column, mask=column_there, other=0.0)[None, :]
    if LOW:
        total += _low_rank(u, b, row, column, row_there, outputs, rank, u_stride, RANK_P)
    at_y = row[:, None] * outputs + column[None, :]
    there = row_there[:, None] & column_there[None, :]
    if INTO:
        total += tl.load(y + at_y, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at_y, total.to(y.dtype.element_ty), mask=there)


@triton.jit
def _scores(q, k, at_q, at_k, length, scale, window):
    """Of tokens q by tokens k, in powers of two; those that a token does not see are -inf."""
    found = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * _LOG2_E)
    back = at_q[:, None] - at_k[None, :]
    seen = (back >= 0) & (at_k < length)[None, :] & (at_q < length)[:, None]
    seen = seen & ((window == 0) | (back < window))
    return tl.where(seen, found, float("-inf"))


@triton.jit
def _rows(
    x, first, at, length, heads, head,
    SIZE: tl.constexpr, SIZE_P: tl.constexpr,
):  # fmt: skip
    """Tokens `at` of the sequence that begins at `first`, of x (tokens, heads, SIZE)."""
    column = tl.arange(0, SIZE_P)
    where = ((first + at[:, None]) * heads + head) * SIZE + column[None, :]
    return tl.load(x + where, mask=(at < length)[:, None] & (column < SIZE)[None, :], other=0.0)


@triton.jit
def _put_rows(
    x, found, first, at, length, heads, head,
    SIZE: tl.constexpr, SIZE_P: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, SIZE_P)
    where = ((first + at[:, None]) * heads + head) * SIZE + column[None, :]
    there = (at < length)[:, None] & (column < SIZE)[None, :]
    tl.store(x + where, found.to(x.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_VARYING)
def attention(
    q, k, v, out, log_sums, blocks, tokens, heads,
    key_heads, scale, window,
    SIZE: tl.constexpr, SIZE_P: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens of a sequence and one head; `blocks` has (first token, length, place) of each.

    Dao, 2023 (FlashAttention-2), algorithm 1.
    """
    entry = blocks + 3 * tl.program_id(0)
    head = tl.program_id(1)
    first, length, start = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    key_head = head // (heads // key_heads)
    at_q = start + tl.arange(0, BLOCK)
    queries = _rows(q, first, at_q, length, heads, head, SIZE, SIZE_P)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    found = tl.zeros((BLOCK, SIZE_P), tl.float32)
    lowest = tl.where(window > 0, tl.maximum(start - window + 1, 0) // KEYS * KEYS, 0)
    for place in range(lowest, tl.minimum(start + BLOCK, length), KEYS):
        at_k = place + tl.arange(0, KEYS)
        keys = _rows(k, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
        scores = _scores(queries, keys, at_q, at_k, length, scale, window)
        higher = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrunk, weights = tl.exp2(most - base), tl.exp2(scores - base[:, None])
        total = total * shrunk + tl.sum(weights, 1)
        values = _rows(v, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
        found = tl.dot(
            weights.to(values.dtype), values, found * shrunk[:, None], input_precision="ieee"
        )
        most = higher
    full = tl.where(total > 0, total, 1.0)
    _put_rows(out, found / full[:, None], first, at_q, length, heads, head, SIZE, SIZE_P)
    tl.store(
        log_sums + head.to(tl.int64) * tokens + first + at_q,
        (most + tl.log2(full)) / _LOG2_E,
        mask=at_q < length,
    )


@triton.jit
def _softmax_slope(
    queries, keys, values, slopes, sums, dots, at_q, at_k,
    length, scale, window,
):  # fmt: skip
    """The weights, and the slopes on the scores before they were scaled."""
    scores = _scores(queries, keys, at_q, at_k, length, scale, window)
    weights = tl.exp2(scores - sums[:, None] * _LOG2_E)
    on_weights = tl.dot(slopes, tl.trans(values), input_precision="ieee")
    return weights, weights * (on_weights - dots[:, None]) * scale


@triton.jit(do_not_specialize=_VARYING)
def attention_queries(
    slope, q, k, v, out, log_sums, dots, dq, blocks,
    tokens, heads, key_heads, scale, window,
    SIZE: tl.constexpr, SIZE_P: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient on BLOCK queries of one head, and `dots`, each row's slope times its result."""
    entry = blocks + 3 * tl.program_id(0)
    head = tl.program_id(1)
    first, length, start = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    key_head = head // (heads // key_heads)
    at_q = start + tl.arange(0, BLOCK)
    at_row = head.to(tl.int64) * tokens + first + at_q
    queries = _rows(q, first, at_q, length, heads, head, SIZE, SIZE_P)
    slopes = _rows(slope, first, at_q, length, heads, head, SIZE, SIZE_P)
    results = _rows(out, first, at_q, length, heads, head, SIZE, SIZE_P)
    dot = tl.sum(slopes.to(tl.float32) * results.to(tl.float32), 1)
    tl.store(dots + at_row, dot, mask=at_q < length)
    log_sum = tl.load(log_sums + at_row, mask=at_q < length, other=0.0)
    found = tl.zeros((BLOCK, SIZE_P), tl.float32)
    lowest = tl.where(window > 0, tl.maximum(start - window + 1, 0) // KEYS * KEYS, 0)
    for place in range(lowest, tl.minimum(start + BLOCK, length), KEYS):
        at_k = place + tl.arange(0, KEYS)
        keys = _rows(k, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
        values = _rows(v, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
        _, d = _softmax_slope(
            queries, keys, values, slopes, log_sum, dot, at_q, at_k, length, scale, window
        )
        found = tl.dot(d.to(keys.dtype), keys, found, input_precision="ieee")
    _put_rows(dq, found, first, at_q, length, heads, head, SIZE, SIZE_P)


@triton.jit(do_not_specialize=_VARYING)
def attention_keys(
    slope, q, k, v, log_sums, dots, dk, dv, blocks,
    tokens, heads, key_heads, scale, window,
    SIZE: tl.constexpr, SIZE_P: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """The gradients on BLOCK keys and values of one key head, from all queries that see them."""
    entry = blocks + 3 * tl.program_id(0)
    key_head = tl.program_id(1)
    first, length, start = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    at_k = start + tl.arange(0, BLOCK)
    keys = _rows(k, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
    values = _rows(v, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
    on_keys = tl.zeros((BLOCK, SIZE_P), tl.float32)
    on_values = tl.zeros((BLOCK, SIZE_P), tl.float32)
    highest = tl.where(window > 0, tl.minimum(length, start + BLOCK + window - 1), length)
    group = heads // key_heads
    for each in range(0, group):
        head = key_head * group + each
        for place in range(start // QUERIES * QUERIES, highest, QUERIES):
            at_q = place + tl.arange(0, QUERIES)
            at_row = head.to(tl.int64) * tokens + first + at_q
            queries = _rows(q, first, at_q, length, heads, head, SIZE, SIZE_P)
            slopes = _rows(slope, first, at_q, length, heads, head, SIZE, SIZE_P)
            log_sum = tl.load(log_sums + at_row, mask=at_q < length, other=0.0)
            dot = tl.load(dots + at_row, mask=at_q < length, other=0.0)
            weights, d = _softmax_slope(
                queries, keys, values, slopes, log_sum, dot, at_q, at_k, length, scale, window
            )
            on_values = tl.dot(
                tl.trans(weights).to(slopes.dtype), slopes, on_values, input_precision="ieee"
            )
            on_keys = tl.dot(
                tl.trans(d).to(queries.dtype), queries, on_keys, input_precision="ieee"
            )
    _put_rows(dk, on_keys, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
    _put_rows(dv, on_values, first, at_k, length, key_heads, key_head, SIZE, SIZE_P)
