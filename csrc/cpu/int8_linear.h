// int8_linear: panels of 64 columns, a few rows at a time; scales, bias, GELU and residual while the sums are in L1.
//
//   out = act(sum x_scale w_scale + bias) + residual, in float32, rounded to out's dtype once
#pragma once
#include "gelu.h"
#include "product.h"
#include "room.h"

namespace fasttx::cpu {
namespace FTX_FORM {

// kCount vectors of sums of a row, to out from column `at` on; of the last one `last` columns.
template <int kCount>
FTX_INLINE void finish_some(const Int8Linear& p, int64_t row, int64_t at, int last, const int32_t* sums) {
  const Vector x_scale = all(p.x_scale[row]);
  const Floats w_scale{p.w_scale, Dtype::kFloat32};
  const auto size = [&](int j) { return j + 1 < kCount ? kLanes : last; };
  Vectors<kCount> v;
  FTX_ALL {
    Ints acc;
    std::memcpy(&acc, sums + j * kLanes, sizeof acc);
    v[j] = to_floats(acc) * x_scale * load_any(w_scale, at + j * kLanes, size(j));
  }
  if (p.bias) FTX_ALL v[j] = v[j] + load_any(p.bias, at + j * kLanes, size(j));
  if (p.activation == Activation::kGelu) gelu_erf<kCount>(v);
  if (p.activation == Activation::kGeluTanh) gelu_tanh<kCount>(v);
  if (p.residual) FTX_ALL v[j] = v[j] + load_any(p.residual, row * p.stride_rm + at + j * kLanes, size(j));
  FTX_ALL store_any(p.out, row * p.n_out + at + j * kLanes, v[j], size(j));
}

// Columns of a row of sums, to out.
FTX_INLINE void finish(const Int8Linear& p, int64_t row, int64_t first, int columns, const int32_t* sums) {
  constexpr int kTogether = kPanel / kLanes;
  if (columns == kPanel) return finish_some<kTogether>(p, row, first, kLanes, sums);
  for (int i = 0; i < columns; i += kLanes) {
    const int last = columns - i < kLanes ? columns - i : kLanes;
    finish_some<1>(p, row, first + i, last, sums + i);
  }
}

#if defined(__AVX512VNNI__)

constexpr int64_t kPackedRows = 12;  // below it packing a panel takes longer than adding up the parts of each sum

FTX_INLINE bool packs(const Int8Linear& p, int64_t rows) {
  return p.n_in % 4 == 0 && rows >= kPackedRows;
}

#endif

// The sums of `count` rows, from `packed` weights if there are any; the number of rows is a constant of a tile's code.
template <int kRows>
FTX_INLINE void tile(int count, const Int8Linear& p, int64_t row, const Panel& panel, const void* packed,
                     const int32_t* less, int32_t* sums) {
  if constexpr (kRows > 1) {
    if (count < kRows) return tile<kRows - 1>(count, p, row, panel, packed, less, sums);
  }
  const int8_t* x = p.x_q + row * p.stride_xm;
#if defined(__AVX512VNNI__)
  if (packed != nullptr) {
    return packed_tile<kRows>(x, p.stride_xm, static_cast<const __m512i*>(packed), p.n_in / 4, less, sums);
  }
#else
  static_cast<void>(packed);
#endif
  dot_tile<kRows>(x, p.stride_xm, panel, less, sums);
}

constexpr int64_t kGroupBytes = 768 * 1024;  // of packed weights: most of them stay in L2 from row to row
constexpr int64_t kBlockRows = 96;           // whose columns of a group are computed before the next rows are begun

// Rows of the tile that begins where so many are left: a last tile of one or two rows would be slow.
FTX_INLINE int tile_rows(int64_t left) {
  const int64_t tiles = (left + kTileRows - 1) / kTileRows;
  return static_cast<int>((left + tiles - 1) / tiles);
}

void int8_linear(const Int8Linear& p, int64_t first_row, int64_t end_row, int64_t first_panel, int64_t end_panel) {
  static thread_local Room less_room, packed_room;
  const int64_t rows = end_row - first_row, panel_bytes = p.n_in * kPanel;
  int32_t* less = static_cast<int32_t*>(less_room.of(rows * 4));  // what is taken off a row's sums
  char* packed = nullptr;
  int64_t group = 1;
#if defined(__AVX512VNNI__)
  for (int64_t r = 0; r < rows; r++) {
    const uint32_t total = static_cast<uint32_t>(row_sum(p.x_q + (first_row + r) * p.stride_xm, p.n_in));
    less[r] = static_cast<int32_t>(128 * total);
  }
  if (packs(p, rows)) {
    group = panel_bytes < kGroupBytes ? kGroupBytes / panel_bytes : 1;
    if (group > end_panel - first_panel) group = end_panel - first_panel;
    packed = static_cast<char*>(packed_room.of(group * panel_bytes));
  }
#endif
  const auto panel_of = [&](int64_t number) {
    const int64_t first = number * kPanel, left = p.n_out - first;
    return Panel{p.w_q + first * p.stride_wn, p.stride_wn, p.n_in, static_cast<int>(left < kPanel ? left : kPanel)};
  };
  int32_t sums[kTileRows * kPanel];
  for (int64_t begin = first_panel; begin < end_panel; begin += group) {
    const int64_t end = begin + group < end_panel ? begin + group : end_panel;
#if defined(__AVX512VNNI__)
    for (int64_t number = begin; packed != nullptr && number < end; number++) {
      pack(panel_of(number), reinterpret_cast<__m512i*>(packed + (number - begin) * panel_bytes));
    }
#endif
    for (int64_t block = 0; block < rows; block += kBlockRows) {
      const int64_t block_end = block + kBlockRows < rows ? block + kBlockRows : rows;
      for (int64_t number = begin; number < end; number++) {
        const Panel panel = panel_of(number);
        const void* own = packed == nullptr ? nullptr : packed + (number - begin) * panel_bytes;
        for (int64_t r = block; r < block_end;) {
          const int count = tile_rows(block_end - r);
          tile<kTileRows>(count, p, first_row + r, panel, own, less + r, sums);
          for (int i = 0; i < count; i++) {
            finish(p, first_row + r + i, number * kPanel, panel.columns, sums + i * kPanel);
          }
          r += count;
        }
      }
    }
  }
}

}  // namespace FTX_FORM
}  // namespace fasttx::cpu
