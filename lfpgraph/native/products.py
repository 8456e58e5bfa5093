"""A product with one matrix many times, in C beside a loop of `loops`.

A step of a recurrent layer multiplies a few rows by the layer's weights. By a library each such product costs what it takes to
call it, as much as the product itself for layers of a hundred units. Here it is a function of the loop's own library: the
weights are laid out once for all steps, in panels of columns as wide as two of the processor's vectors.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["PRODUCT", "Product", "Weights", "has_one_thread", "is_small"]

_LARGE = 1 << 22  # multiplications from which on a product is worth several threads, which only the libraries have
_AT_ONCE = 96  # rows of signals whose products with states are added up at a time

# out = left @ weights + added. A tile is a few rows by one panel, whose sums stay in registers.
PRODUCT = """
#if defined(__AVX512F__)
#define BYTES 64
#define TILE 8
#elif defined(__AVX__)
#define BYTES 32
#define TILE 4
#else
#define BYTES 16
#define TILE 4
#endif
#define LANES (BYTES / (int)sizeof(T))
typedef T Vector __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
typedef struct { T *panels; int64_t depth, columns; Place left, added, out; } Product;
int64_t panel(void) { return 2 * LANES; }

static inline __attribute__((always_inline)) void tile(
    int rows, int vectors, const T *left, int64_t row, int64_t along, const T *panel, int64_t depth, T *out,
    int64_t out_row, const T *added, int64_t added_row, int64_t columns) {
  Vector sums[TILE][2];
  for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (Vector){0};
  for (int64_t k = 0; k < depth; k++, panel += 2 * LANES) {
    Vector low = *(const Vector *)panel, high = *(const Vector *)(panel + LANES);
    for (int i = 0; i < rows; i++) {
      T x = left[i * row + k * along];
      sums[i][0] += x * low;
      if (vectors == 2) sums[i][1] += x * high;
    }
  }
  for (int i = 0; i < rows; i++, out += out_row) {
    const T *sum = (const T *)sums[i], *other = added ? added + i * added_row : 0;
    if (columns == vectors * LANES) {
      for (int j = 0; j < vectors; j++) {
        if (other) sums[i][j] += *(const Vector *)(other + j * LANES);
        *(Vector *)(out + j * LANES) = sums[i][j];
      }
    } else {
      for (int64_t j = 0; j < columns; j++) out[j] = other ? sum[j] + other[j] : sum[j];
    }
  }
}
#define TILE_OF(n, columns, ...) if (columns > LANES) tile(n, 2, __VA_ARGS__, columns); else tile(n, 1, __VA_ARGS__, columns)

static void multiply(const Product *p, int64_t rows, int64_t t) {
  const T *left = p->left.start + t * p->left.step;
  const T *added = p->added.start ? p->added.start + t * p->added.step : 0;
  T *out = p->out.start + t * p->out.step;
  for (int64_t j = 0; j < p->columns; j += 2 * LANES) {
    const T *panel = p->panels + j * p->depth;
    int64_t left_over = p->columns - j, width = left_over < 2 * LANES ? left_over : 2 * LANES;
    int64_t i = 0;
    #define AT(n) TILE_OF(n, width, left + i * p->left.row, p->left.row, 1, panel, p->depth, out + i * p->out.row + j, \\
                          p->out.row, added ? added + i * p->added.row + j : 0, p->added.row)
    for (; i + TILE <= rows; i += TILE) { AT(TILE); }
    for (; i + 2 <= rows; i += 2) { AT(2); }
    for (; i < rows; i++) { AT(1); }
    #undef AT
  }
}

// out[i, j] = the sum of left[r, i] * right[r, j], and sums[i] that of left[r, i], over the rows r of all steps: added up for a
// few hundred rows at a time, from step t to where it has come to, while the loop's results are still in the cache. The rows are
// laid out in `panels`, and a few columns of left behind them. Right's row of a step is that of the step before, or of `first`.
typedef struct {
  Place left, first, right, out, sums;
  T *panels;
  int64_t height, columns, steps_at_once, end, begun;
} Weights;

static void weigh(Weights *w, int64_t rows, int64_t t) {
  int64_t depth = (w->end - t) * rows, height = w->height, columns = w->columns;
  T *to = w->panels;
  for (int64_t j = 0; j < columns; j += 2 * LANES) {
    int64_t width = columns - j < 2 * LANES ? columns - j : 2 * LANES;
    for (int64_t u = t; u < w->end; u++) {
      const Place *of = u ? &w->right : &w->first;
      const T *from = of->start + (u ? (u - 1) * of->step : 0) + j;
      for (int64_t r = 0; r < rows; r++, to += 2 * LANES, from += of->row) {
        if (width == 2 * LANES) memcpy(to, from, 2 * BYTES);
        else memcpy(to, from, width * sizeof(T));
      }
    }
  }
  for (int64_t i = 0; i < height; i += TILE) {
    int64_t tall = height - i < TILE ? height - i : TILE;
    T *laid = to, *sums = w->sums.start + i, sum[TILE] = {0};
    for (int64_t u = t; u < w->end; u++) {
      const T *from = w->left.start + u * w->left.step + i;
      for (int64_t r = 0; r < rows; r++, laid += TILE, from += w->left.row) {
        if (tall == TILE) memcpy(laid, from, TILE * sizeof(T));
        else memcpy(laid, from, tall * sizeof(T));
      }
    }
    for (T *x = to; x < laid; x += TILE)
      for (int k = 0; k < TILE; k++) sum[k] += x[k];
    for (int64_t k = 0; k < tall; k++) sums[k] = w->begun ? sums[k] + sum[k] : sum[k];
    for (int64_t j = 0; j < columns; j += 2 * LANES) {
      int64_t width = columns - j < 2 * LANES ? columns - j : 2 * LANES, row = w->out.row;
      T *out = w->out.start + i * row + j;
      #define AT(n, i) TILE_OF(n, width, to + i, 1, TILE, w->panels + j * depth, depth, out + i * row, row, \\
                               w->begun ? out + i * row : 0, row)
      if (tall == TILE) { AT(TILE, 0); }
      else for (int64_t k = 0; k < tall; k++) { AT(1, k); }
      #undef AT
    }
  }
  w->end = t, w->begun = 1;
}
"""


def is_small(rows: int, w: Tensor) -> bool:
    """Whether a product of so many rows with w is one that a single thread does best."""
    return rows * w.numel() <= (8 * _LARGE if has_one_thread() else _LARGE)


def has_one_thread() -> bool:
    """Whether torch computes with a single thread, so that its libraries have no others either."""
    return torch.get_num_threads() == 1


class Weights:
    """What a `Loop` adds up as it goes: what signals make at the weights of products with the states before, and at their bias.

    Args:
        loop: one of the loops that go through the steps, from the last to the first.
        w: the weights, [n, width].
        rows, steps: of each step, and how many there are.
        states: the places of the states before the first step, and of those after each.

    Attributes:
        steps_at_once: a loop must end at a multiple of it.
    """

    def __init__(self, loop: Any, w: Tensor, rows: int, steps: int, states: Sequence[tuple[int, int, int]]) -> None:
        n, width = w.shape
        self.of_weights, self.of_bias = w.new_empty(n, width), w.new_empty(n)
        self.steps_at_once = max(1, _AT_ONCE // rows)
        self._laid = w.new_zeros(self.steps_at_once * rows * (width + 2 * loop.panel))
        outs = (self.of_weights.data_ptr(), 0, width), (self.of_bias.data_ptr(), 0, 0)
        places = itertools.chain.from_iterable(((0, 0, 0), *states, *outs))
        numbers = self._laid.data_ptr(), n, width, self.steps_at_once, steps, 0
        self.fields = (ctypes.c_int64 * 21)(*places, *numbers)

    def move(self, signals: tuple[int, int, int]) -> None:
        """Let the signals of the steps that come next lie there."""
        self.fields[0], self.fields[1], self.fields[2] = signals


class Product:
    """What a `Loop` multiplies at each step.

    Args:
        w: [depth, columns].
        panel: how many columns the loop's library takes at once.
        places: of the rows to multiply, of what is added (or None), and of where the results go.
    """

    def __init__(self, w: Tensor, panel: int, left: Any, added: Any, out: Any) -> None:
        depth, columns = w.shape
        if columns % panel:
            w = pad(w, (0, -columns % panel))
        self._panels = w.reshape(depth, -1, panel).transpose(0, 1).contiguous()
        self.size = depth, columns
        self.move(left, added, out)

    def move(self, left: Any, added: Any, out: Any) -> None:
        """Let it be of other places."""
        fields = self._panels.data_ptr(), *self.size, *left, *(added or (0, 0, 0)), *out
        self.fields = (ctypes.c_int64 * len(fields))(*fields)
