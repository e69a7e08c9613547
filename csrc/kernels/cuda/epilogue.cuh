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

BITNAS_DEVICE bool channel_bit(const Word* words, int channel) {
  return words != nullptr && (words[channel / kWordBits] >> (channel % kWordBits) & 1) != 0;
}

// A 16-bit float of that type as bits, and back. Both conversions are made and one is taken: cheaper than a branch.
BITNAS_DEVICE uint16_t bits_of_float(float value, FloatType type) {
  const __half half = __float2half_rn(value);
  const __nv_bfloat16 brain = __float2bfloat16_rn(value);
  uint16_t half_bits, brain_bits;
  memcpy(&half_bits, &half, sizeof(half_bits));
  memcpy(&brain_bits, &brain, sizeof(brain_bits));
  return type == FloatType::kBFloat16 ? brain_bits : half_bits;
}
BITNAS_DEVICE float float_from_bits(uint16_t bits, FloatType type) {
  __half half;
  __nv_bfloat16 brain;
  memcpy(&half, &bits, sizeof(bits));
  memcpy(&brain, &bits, sizeof(bits));
  return type == FloatType::kBFloat16 ? __bfloat162float(brain) : __half2float(half);
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

// Stores the bits of 32 channels at position m, from `channel` on; `left` channels of the group follow, it included.
// Bits of channels past the group are zero.
BITNAS_DEVICE void store_word(const ConvArgs& args, Word* out, int64_t m, int64_t channel, int64_t left,
                              uint32_t bits) {
  const int64_t words = words_for(args.out_channels);
  const int64_t padding = args.groups > 1 ? 0 : words * kWordBits - args.n;
  if (m >= args.m || left + padding <= 0) return;
  uint32_t* at = reinterpret_cast<uint32_t*>(out + m * words) + channel / 32;
  if (!args.merge) {
    *at = bits;
    return;
  }
  const int shift = static_cast<int>(channel % 32);
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
//
// A lane sees kLaneRows rows and, in each block of 32 channels, eight columns. Everything is counted from the lane's
// first row and channel, so that what differs between elements is a constant of the instruction: registers are full
// of accumulators here, and addresses of their own would spill.
template <int kRows, int kCols>
class Fragments {
 public:
  static constexpr int kCount = kRows * kCols * 4;
  static constexpr int kLaneRows = 2 * kRows;
  static constexpr int kBlocks = kCols / 4;
  static constexpr int kColumns = 8;
  static_assert(kCols % 4 == 0);

  // row: of the block's tile, where this warp starts; n: channel of the group. taps: of every row of the tile, or null
  // where all taps of all rows are valid. ones: popcount of every row of the tile. split: which part of a split sum
  // this is; the first brings the offsets.
  BITNAS_DEVICE Fragments(const ConvArgs& args, int (&acc)[kCount], int64_t tile_m, int row, int group, int n,
                          const Taps* taps, const int* ones, int split = 0)
      : args_(args),
        acc_(acc),
        m_(tile_m + row + lane() / 4),
        rows_left_(static_cast<int>(min(args.m - m_, int64_t{INT32_MAX}))),
        channel_(group * args.n + n + lane_shift()),
        channels_left_(args.n - n - lane_shift()),
        first_(m_ * args.out_channels + channel_),
        taps_(taps == nullptr ? nullptr : taps + row + lane() / 4),
        ones_(ones + row + lane() / 4),
        offsets_(args.sign && split == 0) {}

  BITNAS_DEVICE void store_int32() const {
    int32_t* out = args_.splits > 1 ? args_.partial : static_cast<int32_t*>(args_.epilogue.out);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      int offset[kColumns];
      load_offsets(block, offset);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        int dot[kColumns];
        dots(block, r, offset, dot);
        int32_t* to = out + element(block, r);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (args_.splits > 1) {
            if (is_inside(r) && is_channel(block, c)) atomicAdd(to + column(c), dot[c]);
          } else if (!args_.wide_stores) {
            if (is_inside(r) && is_channel(block, c)) to[column(c)] = dot[c];
          } else if (c % 2 == 0) {
            if (is_inside(r) && is_channel(block, c))
              *reinterpret_cast<int2*>(to + column(c)) = make_int2(dot[c], dot[c + 1]);
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
      int offset[kColumns], threshold[kColumns];
      load_offsets(block, offset);
      load_channels(e.threshold, block, INT32_MAX, threshold);
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (is_channel(block, c)) threshold[c] = clamped_threshold(threshold[c]);
      const uint32_t flips = e.flip == nullptr ? 0 : lane_flips(e.flip, block);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        int dot[kColumns];
        dots(block, r, offset, dot);
        uint32_t bits = flips;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) bits ^= dot[c] >= threshold[c] ? 1u << column(c) : 0;
        gather(static_cast<Word*>(e.out), block, r, bits, words);
      }
    }
  }

  // In passes over the accumulators, each of them straight code: floats take the place of the dots.
  BITNAS_DEVICE void store_float() {
    const Epilogue& e = args_.epilogue;
    const bool wide = e.type == FloatType::kFloat32;
    apply_affine();
    if (e.residual != nullptr && wide) add_residual(static_cast<const float*>(e.residual));
    if (e.residual != nullptr && !wide) add_residual(static_cast<const uint16_t*>(e.residual));
    if (e.slope != nullptr) apply_slope();
    if (!wide) round_values();
    if (e.packed != nullptr) store_packed();
    if (wide) store_values(static_cast<float*>(e.out));
    if (!wide) store_values(static_cast<uint16_t*>(e.out));
  }

 private:
  BITNAS_DEVICE static int lane() { return threadIdx.x % kWarp; }
  BITNAS_DEVICE static int lane_shift() { return lane() % 4 * 2; }
  // From the lane's first row and channel.
  BITNAS_DEVICE static constexpr int row(int r) { return r / 2 * 16 + r % 2 * 8; }
  BITNAS_DEVICE static constexpr int column(int c) { return c / 2 * 8 + c % 2; }

  BITNAS_DEVICE bool is_inside(int r) const { return row(r) < rows_left_; }
  BITNAS_DEVICE bool is_channel(int block, int c) const { return block * 32 + column(c) < channels_left_; }
  // Of an output [m][out_channels], the lane's first channel of a block in row r.
  BITNAS_DEVICE int64_t element(int block, int r) const {
    return first_ + int64_t{row(r)} * args_.out_channels + block * 32;
  }
  BITNAS_DEVICE int& at(int block, int r, int c) const {
    return acc_[((r / 2) * kCols + block * 4 + c / 2) * 4 + (r % 2) * 2 + c % 2];
  }
  BITNAS_DEVICE float value(int block, int r, int c) const { return __int_as_float(at(block, r, c)); }

  // One number of each of the lane's channels in a block, from the c0-th on; `other` past the last one.
  template <typename T, int count>
  BITNAS_DEVICE void load_channels(const T* from, int block, T other, T (&to)[count], int c0 = 0) const {
    const T* mine = from + static_cast<uint32_t>(channel_ + block * 32);
#pragma unroll
    for (int c = 0; c < count; ++c) to[c] = is_channel(block, c0 + c) ? mine[column(c0 + c)] : other;
  }

  // Offsets of positions whose taps are all valid.
  template <int count>
  BITNAS_DEVICE void load_offsets(int block, int (&offset)[count], int c0 = 0) const {
    const int taps = args_.kernel_h * args_.kernel_w;
    const int32_t* last = table(args_, args_.kernel_h, args_.kernel_w);
    load_channels(last, block, 0, offset, c0);
#pragma unroll
    for (int c = 0; c < count; ++c) offset[c] = offsets_ ? args_.group_channels * taps - 2 * offset[c] : 0;
  }

  // The dots of row r and `count` of the lane's channels in a block, from the c0-th on.
  template <int count>
  BITNAS_DEVICE void dots(int block, int r, const int (&offset)[count], int (&dot)[count], int c0 = 0) const {
    const int row_term = args_.beta * ones_[row(r)];
#pragma unroll
    for (int c = 0; c < count; ++c) dot[c] = args_.alpha * at(block, r, c0 + c) - row_term + offset[c];
    if (taps_ == nullptr || !offsets_ || !is_inside(r)) return;
    const Taps taps = taps_[row(r)];
    if (taps.y0 == 0 && taps.x0 == 0 && taps.y1 == args_.kernel_h && taps.x1 == args_.kernel_w) return;
    const int valid = (taps.y1 - taps.y0) * (taps.x1 - taps.x0);
#pragma unroll
    for (int c = 0; c < count; ++c) dot[c] += args_.group_channels * valid - offset[c];
    add_ones(block, taps.y1, taps.x1, -2, dot, c0);
    add_ones(block, taps.y0, taps.x1, 2, dot, c0);
    add_ones(block, taps.y1, taps.x0, 2, dot, c0);
    add_ones(block, taps.y0, taps.x0, -2, dot, c0);
  }

  // A corner of the summed-area table, `times` over.
  template <int count>
  BITNAS_DEVICE void add_ones(int block, int y, int x, int times, int (&dot)[count], int c0) const {
    if (y == 0 || x == 0) return;
    int ones[count];
    load_channels(table(args_, y, x), block, 0, ones, c0);
#pragma unroll
    for (int c = 0; c < count; ++c) dot[c] += times * ones[c];
  }

  // The flips of the lane's channels of a block, each at its column.
  BITNAS_DEVICE uint32_t lane_flips(const Word* flip, int block) const {
    uint32_t bits = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (is_channel(block, c) && channel_bit(flip, channel_ + block * 32 + column(c))) bits |= 1u << column(c);
    return bits;
  }

  // Half of a block's channels at a time: three terms of all eight would leave too few registers.
  BITNAS_DEVICE void apply_affine() {
    constexpr int kHalf = kColumns / 2;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int c0 = 0; c0 < kColumns; c0 += kHalf) {
        int offset[kHalf];
        float scale[kHalf], bias[kHalf];
        ptx::compiler_fence();
        load_offsets(block, offset, c0);
        load_channels(args_.epilogue.scale, block, 0.0f, scale, c0);
        load_channels(args_.epilogue.bias, block, 0.0f, bias, c0);
#pragma unroll
        for (int r = 0; r < kLaneRows; ++r) {
          ptx::compiler_fence();
          int dot[kHalf];
          dots(block, r, offset, dot, c0);
#pragma unroll
          for (int c = 0; c < kHalf; ++c) at(block, r, c0 + c) = __float_as_int(affine(scale[c], dot[c], bias[c]));
        }
      }
    }
  }

  // A stored number as a float, and back; 16-bit numbers are of the epilogue's type.
  BITNAS_DEVICE float load_value(float value) const { return value; }
  BITNAS_DEVICE float load_value(uint16_t bits) const { return float_from_bits(bits, args_.epilogue.type); }
  BITNAS_DEVICE void save_value(float value, float* to) const { *to = value; }
  BITNAS_DEVICE void save_value(float value, uint16_t* to) const { *to = bits_of_float(value, args_.epilogue.type); }

  template <typename Stored>
  BITNAS_DEVICE void add_residual(const Stored* residual) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const Stored* from = residual + element(block, r);
        ptx::compiler_fence();
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const bool adds = is_inside(r) && is_channel(block, c);
          const float other = load_value(adds ? from[column(c)] : Stored{});
          at(block, r, c) = __float_as_int(__fadd_rn(value(block, r, c), other));
        }
      }
    }
  }

  BITNAS_DEVICE void apply_slope() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float slope[kColumns];
      ptx::compiler_fence();
      load_channels(args_.epilogue.slope, block, 1.0f, slope);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) at(block, r, c) = __float_as_int(prelu(value(block, r, c), slope[c]));
    }
  }

  // To the 16-bit type of the output, kept as floats.
  BITNAS_DEVICE void round_values() {
    const FloatType type = args_.epilogue.type;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      acc_[i] = __float_as_int(float_from_bits(bits_of_float(__int_as_float(acc_[i]), type), type));
  }

  // Bits of the values as they are stored. Channels that are none pack to zero: 0 * y >= 1 never holds.
  BITNAS_DEVICE void store_packed() {
    uint32_t words[4] = {};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float cut[kColumns], direction[kColumns];
      ptx::compiler_fence();
      load_channels(args_.epilogue.cut, block, 1.0f, cut);
      load_channels(args_.epilogue.direction, block, 0.0f, direction);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        uint32_t bits = 0;
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          bits |= packed_bit(value(block, r, c), direction[c], cut[c]) ? 1u << column(c) : 0;
        gather(args_.epilogue.packed, block, r, bits, words);
      }
    }
  }

  template <typename Stored>
  BITNAS_DEVICE void store_values(Stored* out) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        Stored y[kColumns];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) save_value(value(block, r, c), &y[c]);
        store_row(block, r, y, out + element(block, r));
      }
    }
  }

  template <typename T>
  BITNAS_DEVICE void store_row(int block, int r, const T (&y)[kColumns], T* out) const {
    if (!args_.wide_stores) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (is_inside(r) && is_channel(block, c)) out[column(c)] = y[c];
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int c = 0; c < kColumns; c += 2)
        if (is_inside(r) && is_channel(block, c))
          *reinterpret_cast<float2*>(out + column(c)) = make_float2(y[c], y[c + 1]);
    } else {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) memcpy(&pairs[j], &y[2 * j], sizeof(pairs[j]));
      quad_transpose(pairs);
      // Now lane t of the quad has channels 8t .. 8t + 7 of the block.
      const int mine = lane() % 4 * 8 - lane_shift();
      if (is_inside(r) && block * 32 + mine < channels_left_)
        *reinterpret_cast<uint4*>(out + mine) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }

  // Collects the lane's bits of (block, r), each at its column; every fourth time, and at the end, the quad stores
  // four words.
  BITNAS_DEVICE void gather(Word* out, int block, int r, uint32_t bits, uint32_t (&words)[4]) const {
    const int index = block * kLaneRows + r;
    words[index % 4] = bits << lane_shift();
    if (index % 4 != 3 && index != kBlocks * kLaneRows - 1) return;
    const uint32_t word = quad_gather(words);
    const int mine = index - index % 4 + lane() % 4;
    const int block_n = mine / kLaneRows * 32 - lane_shift();
    if (mine <= index)
      store_word(args_, out, m_ + row(mine % kLaneRows), channel_ + block_n, channels_left_ - block_n, word);
  }

  const ConvArgs& args_;
  int (&acc_)[kCount];
  // Of the lane: its first output position and channel, how many there are from it on, and its place in an output.
  const int64_t m_;
  const int rows_left_;
  const int channel_, channels_left_;
  const int64_t first_;
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
BITNAS_DEVICE bool store_float_channel(const ConvArgs& args, int64_t m, int channel, int dot) {
  const Epilogue& e = args.epilogue;
  const bool wide = e.type == FloatType::kFloat32;
  const int64_t at = m * args.out_channels + channel;
  float y = affine(e.scale[channel], dot, e.bias[channel]);
  if (e.residual != nullptr)
    y = __fadd_rn(y, wide ? static_cast<const float*>(e.residual)[at]
                          : float_from_bits(static_cast<const uint16_t*>(e.residual)[at], e.type));
  if (e.slope != nullptr) y = prelu(y, e.slope[channel]);
  if (wide) {
    static_cast<float*>(e.out)[at] = y;
  } else {
    const uint16_t bits = bits_of_float(y, e.type);
    static_cast<uint16_t*>(e.out)[at] = bits;
    y = float_from_bits(bits, e.type);
  }
  return e.packed != nullptr && packed_bit(y, e.direction[channel], e.cut[channel]);
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
    bit = store_float_channel(args, m, channel, dot);
  }
  if (out == nullptr) return;
  const uint32_t bits = __ballot_sync(kAllLanes, bit);
  if (threadIdx.x % kWarp == 0) store_word(args, out, m, group * int64_t{args.n} + n_first, args.n - n_first, bits);
}

}  // namespace bitnas::cuda
