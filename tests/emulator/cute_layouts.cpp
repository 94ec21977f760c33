// Writes the layouts that NVIDIA's CuTe gives the instructions of csrc/arch, as JSON, to the file that its argument
// names: tests/emulator/cute_layouts.json is what it wrote, and test_layouts.py says how it is compiled. (On
// standard output CuTe itself complains that the host has no shared memory; the addresses that it lacks are not used.)
//
// Every layout here maps the bits of its coordinates to bits of an offset, linearly over GF(2) (sizes are powers of
// two, swizzles are exclusive-ors), so that the images of the single bits say all of it. That is checked.
#include <cutlass/version.h>
#include <cstdio>
#include <cstdlib>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

using namespace cute;

FILE* out = nullptr;
bool first_line = true;

// f of two coordinates below 2^bits0 and 2^bits1: its value at each power of two of the first, then of the second
template <class F>
void print_linear(const char* name, int bits0, int bits1, F f) {
  fprintf(out, "%s  \"%s\": [[", first_line ? "" : ",\n", name);
  first_line = false;
  for (int b = 0; b < bits0; b++) fprintf(out, "%s%d", b ? ", " : "", f(1 << b, 0));
  fprintf(out, "], [");
  for (int b = 0; b < bits1; b++) fprintf(out, "%s%d", b ? ", " : "", f(0, 1 << b));
  fprintf(out, "]]");
  for (int i = 0; i < 1 << bits0; i++) {
    for (int j = 0; j < 1 << bits1; j++) {
      int sum = 0;
      for (int b = 0; b < bits0; b++) sum ^= i >> b & 1 ? f(1 << b, 0) : 0;
      for (int b = 0; b < bits1; b++) sum ^= j >> b & 1 ? f(0, 1 << b) : 0;
      if (sum != f(i, j)) {
        fprintf(stderr, "%s is not linear at (%d, %d)\n", name, i, j);
        exit(1);
      }
    }
  }
}

constexpr int log2_of(int n) {
  return n <= 1 ? 0 : 1 + log2_of(n / 2);
}

// (thread, value) -> row + rows * column, of a fragment
template <class Layout>
void print_fragment(const char* name, Layout layout) {
  print_linear(name, log2_of(size<0>(layout)), log2_of(size<1>(layout)),
               [&](int thread, int value) { return static_cast<int>(layout(thread, value)); });
}

// (thread, 16-bit value) -> the 16-bit element of the 32 rows of 8 that ldmatrix put there
template <class Copy>
void print_ldmatrix(const char* name) {
  typename Copy_Traits<Copy>::SrcLayout from;
  typename Copy_Traits<Copy>::DstLayout to;
  print_linear(name, 5, 3, [&](int thread, int value) {
    const int bit = to(thread, value * 16);
    for (int row = 0; row < 32; row++) {
      for (int e = 0; e < 8; e++) {
        if (from(row, e * 16) == bit) return row * 8 + e;
      }
    }
    exit(1);
  });
}

// (row of M or N, k) -> byte of an operand in shared memory; and the fields of its descriptor for 32 bytes of k
template <GMMA::Major kMajor, class T, class Atom>
void print_operand(const char* name) {
  constexpr int kDepth = kMajor == GMMA::Major::K ? 128 / sizeof(T) : 64, kStep = 32 / sizeof(T);
  auto layout = tile_to_shape(Atom{}, Shape<_64, Int<kDepth>>{});
  alignas(1024) static unsigned char bytes[8192];
  auto tensor = make_tensor(make_smem_ptr(reinterpret_cast<T*>(bytes)), layout);  // the swizzle is one of addresses
  print_linear(name, 6, log2_of(kDepth), [&](int row, int k) {
    return static_cast<int>(reinterpret_cast<unsigned char*>(&tensor(row, k)) - bytes);
  });
  auto step = local_tile(tensor, Shape<_64, Int<kStep>>{}, make_coord(0, 0));
  GmmaDescriptor descriptor = SM90::GMMA::make_gmma_desc<kMajor>(step);
  descriptor.bitfield.start_address_ = 0;  // the host has none
  fprintf(out, ",\n  \"%s descriptor\": %llu", name, static_cast<unsigned long long>(descriptor.desc_));
}

template <class Traits>
void print_product(const char* name) {
  const std::string stem = name;
  print_fragment((stem + " a").c_str(), typename Traits::ALayout{});
  print_fragment((stem + " b").c_str(), typename Traits::BLayout{});
  print_fragment((stem + " d").c_str(), typename Traits::CLayout{});
}

int main(int count, char** arguments) {
  out = count == 2 ? fopen(arguments[1], "w") : nullptr;
  if (out == nullptr) return 2;
  using SM90::GMMA::Layout_K_SW128_Atom;
  using SM90::GMMA::Layout_MN_SW128_Atom;
  fprintf(out, "{\n  \"CuTe\": \"CUTLASS %d.%d.%d\",\n", CUTLASS_MAJOR, CUTLASS_MINOR, CUTLASS_PATCH);
  print_product<MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>>("mma fp16");
  print_product<MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>>("mma bf16");
  print_product<MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>>("mma int8");
  print_ldmatrix<SM75_U32x4_LDSM_N>("ldmatrix");
  print_ldmatrix<SM75_U16x8_LDSM_T>("ldmatrix_transposed");
  print_operand<GMMA::Major::K, half_t, Layout_K_SW128_Atom<half_t>>("wgmma fp16 K-major");
  print_operand<GMMA::Major::MN, half_t, Layout_MN_SW128_Atom<half_t>>("wgmma fp16 MN-major");
  print_operand<GMMA::Major::K, int8_t, Layout_K_SW128_Atom<int8_t>>("wgmma int8 K-major");
  using Product = MMA_Traits<SM90::GMMA::MMA_64x64x16_F32F16F16_SS<GMMA::Major::K, GMMA::Major::K>>;
  print_fragment("wgmma d", typename Product::CLayout{});
  fprintf(out, "\n}\n");
  return fclose(out);
}
