"""A product with one matrix many times, in C beside a loop of `loops`.

A step of a recurrent layer multiplies a few rows by the layer's weights. By a library each such product costs what it takes to
call it, as much as the product itself for layers of a hundred units. Here it is a function of the loop's own library: the
weights are laid out once for all steps, in panels of columns as wide as two of the processor's vectors.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["PRODUCT", "Product", "is_small"]

_LARGE = 1 << 22  # multiplications from which on a product is worth several threads, which only the libraries have

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
    int rows, const T *left, int64_t row, const T *panel, int64_t depth, T *out, int64_t out_row, const T *added,
    int64_t added_row, int64_t columns) {
  Vector sums[TILE][2];
  for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (Vector){0};
  for (int64_t k = 0; k < depth; k++, panel += 2 * LANES) {
    Vector low = *(const Vector *)panel, high = *(const Vector *)(panel + LANES);
    for (int i = 0; i < rows; i++) {
      T x = left[i * row + k];
      sums[i][0] += x * low;
      sums[i][1] += x * high;
    }
  }
  for (int i = 0; i < rows; i++, out += out_row) {
    const T *sum = (const T *)sums[i], *other = added ? added + i * added_row : 0;
    if (columns == 2 * LANES) {
      for (int j = 0; j < 2; j++) {
        if (other) sums[i][j] += *(const Vector *)(other + j * LANES);
        *(Vector *)(out + j * LANES) = sums[i][j];
      }
    } else {
      for (int64_t j = 0; j < columns; j++) out[j] = other ? sum[j] + other[j] : sum[j];
    }
  }
}

static void multiply(const Product *p, int64_t rows, int64_t t) {
  const T *left = p->left.start + t * p->left.step;
  const T *added = p->added.start ? p->added.start + t * p->added.step : 0;
  T *out = p->out.start + t * p->out.step;
  for (int64_t j = 0; j < p->columns; j += 2 * LANES) {
    const T *panel = p->panels + j * p->depth;
    int64_t left_over = p->columns - j, width = left_over < 2 * LANES ? left_over : 2 * LANES;
    int64_t i = 0;
    #define AT(n) tile(n, left + i * p->left.row, p->left.row, panel, p->depth, out + i * p->out.row + j, p->out.row, \\
                       added ? added + i * p->added.row + j : 0, p->added.row, width)
    for (; i + TILE <= rows; i += TILE) AT(TILE);
    for (; i + 2 <= rows; i += 2) AT(2);
    for (; i < rows; i++) AT(1);
  }
}
"""


def is_small(rows: int, w: Tensor) -> bool:
    """Whether a product of so many rows with w is one that a single thread does best."""
    return rows * w.numel() <= (_LARGE if torch.get_num_threads() > 1 else 8 * _LARGE)


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
