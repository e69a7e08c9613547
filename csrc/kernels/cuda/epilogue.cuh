// epilogue.h on the device: from accumulators to what leaves the kernel.
//
// Two shapes of work. store_fragments() serves the tensor-core kernels, whose lanes
// hold pairs of channels of eight rows; words of bits and 16-byte stores are put
// together inside each quad of lanes. store_channels() serves kernels in which a warp
// holds 32 neighbouring channels of one position.
#pragma once

#include <cstring>

#include "kernels/cuda/float16.h"
#include "kernels/cuda/layout.cuh"

namespace bitnas::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// ---- numbers ---------------------------------------------------------------------

BITNAS_DEVICE float to_float(float x) { return x; }
BITNAS_DEVICE float to_float(__half x) { return __half2float(x); }
BITNAS_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
BITNAS_DEVICE T from_float(float x);
template <>
BITNAS_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
BITNAS_DEVICE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
BITNAS_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

BITNAS_DEVICE bool channel_bit(const Word* words, int channel) {
  return words != nullptr && (words[channel / kWordBits] >> (channel % kWordBits) & 1) != 0;
}

// kFloat's first line: two roundings.
BITNAS_DEVICE float affine(float scale, int dot, float bias) {
  return __fadd_rn(__fmul_rn(scale, static_cast<float>(dot)), bias);
}
BITNAS_DEVICE float prelu(float y, float slope) { return y >= 0.0f ? y : __fmul_rn(slope, y); }
BITNAS_DEVICE bool packed_bit(float y, float direction, float cut) { return __fmul_rn(direction, y) >= cut; }

BITNAS_DEVICE int clamped_threshold(int threshold) {
  constexpr int kLimit = static_cast<int>(kMaxDot) + 1;
  return max(-kLimit, min(kLimit, threshold));
}

// ---- words -----------------------------------------------------------------------

// Stores bits n_first .. n_first + 31 of a group's channels at position m; bits of channels past the group are zero.
BITNAS_DEVICE void store_word(const ConvArgs& args, Word* out, int64_t m, int group, int64_t n_first, uint32_t bits) {
  const int64_t words = words_for(args.out_channels);
  const int64_t end = args.groups > 1 ? args.n : words * kWordBits;
  if (m >= args.m || n_first >= end) return;
  const int64_t bit = int64_t{group} * args.n + n_first;
  uint32_t* at = reinterpret_cast<uint32_t*>(out + m * words) + bit / 32;
  if (!args.merge) {
    *at = bits;
    return;
  }
  const int shift = static_cast<int>(bit % 32);
  atomicOr(at, bits << shift);
  if (shift != 0 && bits >> (32 - shift) != 0) atomicOr(at + 1, bits >> (32 - shift));
}

// ORs four words over the quad of lanes; lane t of the quad gets the t-th.
BITNAS_DEVICE uint32_t quad_gather(const uint32_t (&word)[4]) {
  const int t = threadIdx.x % 4;
  const bool high = (t & 2) != 0, odd = (t & 1) != 0;
  uint32_t first = high ? word[2] : word[0], second = high ? word[3] : word[1];
  first |= __shfl_xor_sync(kAllLanes, high ? word[0] : word[2], 2);
  second |= __shfl_xor_sync(kAllLanes, high ? word[1] : word[3], 2);
  return (odd ? second : first) | __shfl_xor_sync(kAllLanes, odd ? first : second, 1);
}

// Transposes a 4x4 matrix whose row t is held by lane t of the quad.
BITNAS_DEVICE void quad_transpose(uint32_t (&v)[4]) {
  const int t = threadIdx.x % 4;
  const bool odd = (t & 1) != 0, high = (t & 2) != 0;
#pragma unroll
  for (int pair = 0; pair < 4; pair += 2) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, odd ? v[pair] : v[pair + 1], 1);
    (odd ? v[pair] : v[pair + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, high ? v[i] : v[i + 2], 2);
    (high ? v[i] : v[i + 2]) = got;
  }
}

// ---- fragments -------------------------------------------------------------------

// A warp's accumulators: kRows m16 by kCols n8 fragments, acc[(i * kCols + j) * 4 + h * 2 + c] being row
// 16 i + 8 h + lane / 4, channel 8 j + 2 (lane % 4) + c.
template <int kRows, int kCols>
class Fragments {
 public:
  static constexpr int kCount = kRows * kCols * 4;
  static constexpr int kLaneRows = 2 * kRows;
  static constexpr int kBlocks = kCols / 4;  // of 32 channels
  static_assert(kCols % 4 == 0);

  // row: of the block's tile, where this warp starts; n: channel of the group. taps: of every row of the tile, or null
  // where all taps of all rows are valid. ones: popcount of every row of the tile. split: which part of a split sum
  // this is; the first brings the offsets.
  BITNAS_DEVICE Fragments(const ConvArgs& args, int (&acc)[kCount], int64_t tile_m, int row, int group, int n,
                          const Taps* taps, const int* ones, int split = 0)
      : args_(args),
        acc_(acc),
        m_(tile_m),
        row_(row),
        group_(group),
        n_(n),
        taps_(taps),
        ones_(ones),
        offsets_(args.sign && split == 0) {}

  BITNAS_DEVICE void store_int32() const {
    int32_t* out = args_.splits > 1 ? args_.partial : static_cast<int32_t*>(args_.epilogue.out);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      int offset[8];
      load_offsets(block, offset);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        int dot[8];
        dots(block, r, offset, dot);
        const int64_t at = position(r) * args_.out_channels + channel(block, 0);
        if (position(r) >= args_.m) continue;
#pragma unroll
        for (int c = 0; c < 8; c += 2) {
          int32_t* to = out + at + 4 * c;
          if (args_.splits > 1) {
            if (is_channel(block, c)) atomicAdd(to, dot[c]);
            if (is_channel(block, c + 1)) atomicAdd(to + 1, dot[c + 1]);
          } else if (args_.wide_stores) {
            if (is_channel(block, c)) *reinterpret_cast<int2*>(to) = make_int2(dot[c], dot[c + 1]);
          } else {
            if (is_channel(block, c)) to[0] = dot[c];
            if (is_channel(block, c + 1)) to[1] = dot[c + 1];
          }
        }
      }
    }
  }

  BITNAS_DEVICE void store_bits() const {
    const Epilogue& e = args_.epilogue;
    uint32_t words[4] = {};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      int offset[8], threshold[8];
      uint32_t flips = 0;
      load_offsets(block, offset);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const bool valid = is_channel(block, c);
        threshold[c] = valid ? clamped_threshold(e.threshold[channel(block, c)]) : INT32_MAX;
        flips |= valid && channel_bit(e.flip, channel(block, c)) ? 1u << bit_of(c) : 0;
      }
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        int dot[8];
        dots(block, r, offset, dot);
        uint32_t bits = flips;
#pragma unroll
        for (int c = 0; c < 8; ++c) bits ^= dot[c] >= threshold[c] ? 1u << bit_of(c) : 0;
        gather(static_cast<Word*>(e.out), block, r, bits, words);
      }
    }
  }

  // In passes over the accumulators, each of them straight code: floats take the place of the dots.
  BITNAS_DEVICE void store_float() {
    const Epilogue& e = args_.epilogue;
    apply_affine();
    if (e.type == FloatType::kFloat32) finish_float<float>();
    if (e.type == FloatType::kBFloat16) finish_float<__nv_bfloat16>();
    if (e.type == FloatType::kFloat16) finish_float<__half>();
  }

 private:
  BITNAS_DEVICE static int lane() { return threadIdx.x % kWarp; }
  // The lane's c-th channel of a block of 32.
  BITNAS_DEVICE static int bit_of(int c) { return (c / 2) * 8 + (lane() % 4) * 2 + c % 2; }
  BITNAS_DEVICE int first(int block) const { return n_ + block * 32; }
  BITNAS_DEVICE bool is_channel(int block, int c) const { return first(block) + bit_of(c) < args_.n; }
  BITNAS_DEVICE int channel(int block, int c) const {
    return ptx::opaque(group_ * args_.n + n_) + block * 32 + bit_of(c);
  }
  BITNAS_DEVICE int tile_row(int r) const { return row_ + (r / 2) * 16 + (r % 2) * 8 + lane() / 4; }
  BITNAS_DEVICE int64_t position(int r) const { return m_ + ptx::opaque(tile_row(r)); }

  // Offsets of positions whose taps are all valid.
  BITNAS_DEVICE void load_offsets(int block, int (&offset)[8]) const {
#pragma unroll
    for (int c = 0; c < 8; ++c)
      offset[c] = offsets_ && is_channel(block, c)
                      ? offset_of(args_, 0, args_.kernel_h, 0, args_.kernel_w, channel(block, c))
                      : 0;
  }

  BITNAS_DEVICE int& at(int block, int r, int c) const {
    return acc_[((r / 2) * kCols + block * 4 + c / 2) * 4 + (r % 2) * 2 + c % 2];
  }
  BITNAS_DEVICE float value(int block, int r, int c) const { return __int_as_float(at(block, r, c)); }

  BITNAS_DEVICE void dots(int block, int r, const int (&offset)[8], int (&dot)[8]) const {
    const int row_term = args_.beta * ones_[tile_row(r)];
#pragma unroll
    for (int c = 0; c < 8; ++c) dot[c] = args_.alpha * at(block, r, c) - row_term + offset[c];
    if (taps_ == nullptr || !offsets_ || position(r) >= args_.m) return;
    const Taps taps = taps_[tile_row(r)];
    if (taps.y0 == 0 && taps.x0 == 0 && taps.y1 == args_.kernel_h && taps.x1 == args_.kernel_w) return;
#pragma unroll
    for (int c = 0; c < 8; ++c)
      if (is_channel(block, c))
        dot[c] += offset_of(args_, taps.y0, taps.y1, taps.x0, taps.x1, channel(block, c)) - offset[c];
  }

  // One float of every channel of the lane's in a block; `other` past the last one.
  BITNAS_DEVICE void load_channels(const float* from, int block, float other, float (&to)[8]) const {
#pragma unroll
    for (int c = 0; c < 8; ++c) to[c] = is_channel(block, c) ? from[channel(block, c)] : other;
  }

  BITNAS_DEVICE void apply_affine() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      int offset[8];
      float scale[8], bias[8];
      load_offsets(block, offset);
      load_channels(args_.epilogue.scale, block, 0.0f, scale);
      load_channels(args_.epilogue.bias, block, 0.0f, bias);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        int dot[8];
        dots(block, r, offset, dot);
#pragma unroll
        for (int c = 0; c < 8; ++c) at(block, r, c) = __float_as_int(affine(scale[c], dot[c], bias[c]));
      }
    }
  }

  template <typename T>
  BITNAS_DEVICE void finish_float() {
    const Epilogue& e = args_.epilogue;
    if (e.residual != nullptr) add_residual(static_cast<const T*>(e.residual));
    if (e.slope != nullptr) apply_slope();
    if (e.packed != nullptr) store_packed<T>();
    store_values(static_cast<T*>(e.out));
  }

  template <typename T>
  BITNAS_DEVICE void add_residual(const T* residual) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const T* from = residual + position(r) * args_.out_channels + channel(block, 0);
        const bool inside = position(r) < args_.m;
        ptx::compiler_fence();  // no loads of many rows at once: registers are full of accumulators
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const bool adds = inside && is_channel(block, c);
          const float other = to_float(adds ? from[bit_of(c) - bit_of(0)] : T{});
          at(block, r, c) = __float_as_int(__fadd_rn(value(block, r, c), other));
        }
      }
    }
  }

  BITNAS_DEVICE void apply_slope() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float slope[8];
      load_channels(args_.epilogue.slope, block, 1.0f, slope);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
#pragma unroll
        for (int c = 0; c < 8; ++c) at(block, r, c) = __float_as_int(prelu(value(block, r, c), slope[c]));
    }
  }

  // Bits of the values as they are stored, rounded to T. Channels that are none pack to zero: 0 * y >= 1 never holds.
  template <typename T>
  BITNAS_DEVICE void store_packed() {
    uint32_t words[4] = {};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float cut[8], direction[8];
      load_channels(args_.epilogue.cut, block, 1.0f, cut);
      load_channels(args_.epilogue.direction, block, 0.0f, direction);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        uint32_t bits = 0;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const float y = to_float(from_float<T>(value(block, r, c)));
          bits |= packed_bit(y, direction[c], cut[c]) ? 1u << bit_of(c) : 0;
        }
        gather(args_.epilogue.packed, block, r, bits, words);
      }
    }
  }

  template <typename T>
  BITNAS_DEVICE void store_values(T* out) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        T y[8];
#pragma unroll
        for (int c = 0; c < 8; ++c) y[c] = from_float<T>(value(block, r, c));
        store_row(block, y, position(r) < args_.m, out + position(r) * args_.out_channels + channel(block, 0));
      }
    }
  }

  // Collects the lane's bits of (block, r); every fourth time, and at the end, the quad stores four words.
  BITNAS_DEVICE void gather(Word* out, int block, int r, uint32_t bits, uint32_t (&words)[4]) const {
    const int index = block * kLaneRows + r;
    words[index % 4] = bits;
    if (index % 4 != 3 && index != kBlocks * kLaneRows - 1) return;
    const uint32_t word = quad_gather(words);
    const int mine = index - index % 4 + lane() % 4;
    if (mine <= index) store_word(args_, out, position(mine % kLaneRows), group_, first(mine / kLaneRows), word);
  }

  // out: the lane's first channel of the block.
  template <typename T>
  BITNAS_DEVICE void store_row(int block, const T (&y)[8], bool inside, T* out) const {
    if (!args_.wide_stores) {
#pragma unroll
      for (int c = 0; c < 8; ++c)
        if (inside && is_channel(block, c)) out[bit_of(c) - bit_of(0)] = y[c];
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int c = 0; c < 8; c += 2)
        if (inside && is_channel(block, c)) *reinterpret_cast<float2*>(out + 4 * c) = make_float2(y[c], y[c + 1]);
    } else {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) memcpy(&pairs[j], &y[2 * j], sizeof(pairs[j]));
      quad_transpose(pairs);
      const int t = lane() % 4;
      if (inside && first(block) + 8 * t < args_.n)
        *reinterpret_cast<uint4*>(out - 2 * t + 8 * t) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }

  const ConvArgs& args_;
  int (&acc_)[kCount];
  const int64_t m_;
  const int row_, group_, n_;
  const Taps* taps_;
  const int* ones_;
  const bool offsets_;
};

template <EpilogueKind kind, int kRows, int kCols>
BITNAS_DEVICE void store_fragments(Fragments<kRows, kCols>& fragments) {
  if constexpr (kind == EpilogueKind::kInt32) fragments.store_int32();
  if constexpr (kind == EpilogueKind::kFloat) fragments.store_float();
  if constexpr (kind == EpilogueKind::kBits) fragments.store_bits();
}

// ---- a warp of channels ----------------------------------------------------------

// Returns the bit for Epilogue::packed.
template <typename T>
BITNAS_DEVICE bool store_float_channel(const ConvArgs& args, int64_t m, int channel, int dot) {
  const Epilogue& e = args.epilogue;
  const int64_t at = m * args.out_channels + channel;
  float y = affine(e.scale[channel], dot, e.bias[channel]);
  if (e.residual != nullptr) y = __fadd_rn(y, to_float(static_cast<const T*>(e.residual)[at]));
  if (e.slope != nullptr) y = prelu(y, e.slope[channel]);
  const T rounded = from_float<T>(y);
  static_cast<T*>(e.out)[at] = rounded;
  return e.packed != nullptr && packed_bit(to_float(rounded), e.direction[channel], e.cut[channel]);
}

// Lane l holds the dot of channel n_first + l of the group at position m. The whole warp calls.
BITNAS_DEVICE void store_channels(const ConvArgs& args, int64_t m, int group, int64_t n_first, int dot) {
  const Epilogue& e = args.epilogue;
  const int64_t n = n_first + threadIdx.x % kWarp;
  const bool valid = m < args.m && n < args.n;
  const int channel = static_cast<int>(group * int64_t{args.n} + n);
  if (e.kind == EpilogueKind::kInt32) {
    if (valid) static_cast<int32_t*>(e.out)[m * args.out_channels + channel] = dot;
    return;
  }
  bool bit = false;
  Word* out = e.packed;
  if (e.kind == EpilogueKind::kBits) {
    bit = valid && (dot >= e.threshold[channel]) != channel_bit(e.flip, channel);
    out = static_cast<Word*>(e.out);
  } else if (valid) {
    switch (e.type) {
      case FloatType::kFloat32: bit = store_float_channel<float>(args, m, channel, dot); break;
      case FloatType::kBFloat16: bit = store_float_channel<__nv_bfloat16>(args, m, channel, dot); break;
      case FloatType::kFloat16: bit = store_float_channel<__half>(args, m, channel, dot); break;
    }
  }
  if (out == nullptr) return;
  const uint32_t bits = __ballot_sync(kAllLanes, bit);
  if (threadIdx.x % kWarp == 0) store_word(args, out, m, group, n_first, bits);
}

}  // namespace bitnas::cuda
