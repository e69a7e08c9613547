// Hopper's product of two operands in shared memory, and what it needs around it: the
// descriptor of an operand, and the map that TMA loads one by. sm_90a alone.
//
// An operand is a tile of slabs: rows of 128 bytes at a multiple of 1,024, in which TMA's
// 128-byte swizzle has moved chunk c of row r to c ^ (r % 8), as swizzled() does it.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace bitnas::cuda {

using ptx::TensorMap;

// Of the rows that start at `address`, a multiple of 1,024. A step of 256 bits along the rows adds kDescriptorStep.
BITNAS_DEVICE uint64_t operand_descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = 1, kEightRows = 1024;
  return kSwizzle128 << 62 | kEightRows >> 4 << 32 | (address & 0x3ffff) >> 4;
}
constexpr uint64_t kDescriptorStep = 256 / 8 >> 4;

// Everything that uses accumulators stays behind this: a wait for products names no registers, so to the compiler
// they hold their sums from the moment the product is issued.
template <int count>
BITNAS_DEVICE void order_behind_wait(int (&d)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#ifdef BITNAS_CUDA_MODEL

using model::make_tensor_map_2d;

#else

// Maps `rows` rows of `row_bytes` bytes, `pitch_bytes` apart, so that boxes of 128 bytes by `box_rows` rows arrive
// with the 128-byte swizzle, zero where they reach past the matrix. base and pitch: multiples of 16.
inline cudaError_t make_tensor_map_2d(TensorMap* map, const void* base, uint64_t row_bytes, uint64_t rows,
                                      uint64_t pitch_bytes, uint32_t box_bytes, uint32_t box_rows) {
  // Through the runtime, which has libcuda open already: linking it would keep the object from loading without a GPU.
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &result);
#endif
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {row_bytes, rows}, strides[] = {pitch_bytes};
  const cuuint32_t box[] = {box_bytes, box_rows}, element_strides[] = {1, 1};
  const CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(base), sizes, strides, box,
                                 element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#endif

}  // namespace bitnas::cuda

#ifndef BITNAS_CUDA_MODEL

namespace bitnas::cuda::ptx {

// d = popcount(a AND b) [+ d], m64 n k256, asynchronously, both operands by descriptor. With w the warp of the warp
// group, d[4 j + 2 h + c] is row 16 w + 8 h + lane / 4, column 8 j + 2 (lane % 4) + c.
template <int n>
BITNAS_DEVICE void wgmma_and_popc(int (&d)[n / 2], uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate);

// Operands in tens, as their numbers are written: NAMES(4) are %40 to %49, NAMES() %0 to %9.
#define BITNAS_NAMES(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define BITNAS_REGISTERS(t)                                                                                \
  "+r"(d[t##0]), "+r"(d[t##1]), "+r"(d[t##2]), "+r"(d[t##3]), "+r"(d[t##4]), "+r"(d[t##5]), "+r"(d[t##6]), \
      "+r"(d[t##7]), "+r"(d[t##8]), "+r"(d[t##9])

template <>
BITNAS_DEVICE void wgmma_and_popc<128>(int (&d)[64], uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc {" BITNAS_NAMES() BITNAS_NAMES(1) BITNAS_NAMES(2)
          BITNAS_NAMES(3) BITNAS_NAMES(4) BITNAS_NAMES(5) "%60, %61, %62, %63}, %64, %65, accumulate;\n}"
      : BITNAS_REGISTERS(), BITNAS_REGISTERS(1), BITNAS_REGISTERS(2), BITNAS_REGISTERS(3), BITNAS_REGISTERS(4),
        BITNAS_REGISTERS(5), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
      : "l"(descriptor_a), "l"(descriptor_b), "r"(static_cast<int>(accumulate)));
}

template <>
BITNAS_DEVICE void wgmma_and_popc<256>(int (&d)[128], uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k256.s32.b1.b1.and.popc {" BITNAS_NAMES() BITNAS_NAMES(1) BITNAS_NAMES(2)
          BITNAS_NAMES(3) BITNAS_NAMES(4) BITNAS_NAMES(5) BITNAS_NAMES(6) BITNAS_NAMES(7) BITNAS_NAMES(8)
              BITNAS_NAMES(9) BITNAS_NAMES(10)
                  BITNAS_NAMES(11) "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, accumulate;\n}"
      : BITNAS_REGISTERS(), BITNAS_REGISTERS(1), BITNAS_REGISTERS(2), BITNAS_REGISTERS(3), BITNAS_REGISTERS(4),
        BITNAS_REGISTERS(5), BITNAS_REGISTERS(6), BITNAS_REGISTERS(7), BITNAS_REGISTERS(8), BITNAS_REGISTERS(9),
        BITNAS_REGISTERS(10), BITNAS_REGISTERS(11), "+r"(d[120]), "+r"(d[121]), "+r"(d[122]), "+r"(d[123]),
        "+r"(d[124]), "+r"(d[125]), "+r"(d[126]), "+r"(d[127])
      : "l"(descriptor_a), "l"(descriptor_b), "r"(static_cast<int>(accumulate)));
}

#undef BITNAS_NAMES
#undef BITNAS_REGISTERS

}  // namespace bitnas::cuda::ptx

#endif
