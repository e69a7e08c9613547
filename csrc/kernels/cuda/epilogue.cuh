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

// Types that floats are stored in, two at a time: a pair is what one instruction converts, loads and stores.
struct Float32 {
  using Stored = float;
  using Pair = float2;
  BITNAS_DEVICE static Pair pair(float low, float high) { return make_float2(low, high); }
  BITNAS_DEVICE static Pair join(Stored low, Stored high) { return make_float2(low, high); }
  BITNAS_DEVICE static float low(Pair pair) { return pair.x; }
  BITNAS_DEVICE static float high(Pair pair) { return pair.y; }
  BITNAS_DEVICE static Stored stored_low(Pair pair) { return pair.x; }
  BITNAS_DEVICE static Stored stored_high(Pair pair) { return pair.y; }
};

struct Float16Bits {
  using Stored = uint16_t;
  using Pair = uint32_t;
  BITNAS_DEVICE static Pair join(Stored low, Stored high) { return low | static_cast<Pair>(high) << 16; }
  BITNAS_DEVICE static Stored stored_low(Pair pair) { return static_cast<Stored>(pair); }
  BITNAS_DEVICE static Stored stored_high(Pair pair) { return static_cast<Stored>(pair >> 16); }
};

struct BFloat16 : Float16Bits {
  BITNAS_DEVICE static Pair pair(float low, float high) { return bfloat16_pair(low, high); }
  BITNAS_DEVICE static float low(Pair pair) { return __int_as_float(static_cast<int>(pair << 16)); }
  BITNAS_DEVICE static float high(Pair pair) { return __int_as_float(static_cast<int>(pair & 0xffff0000u)); }
};

struct Float16 : Float16Bits {
  BITNAS_DEVICE static Pair pair(float low, float high) { return half_pair(low, high); }
  BITNAS_DEVICE static float low(Pair pair) { return number(stored_low(pair)); }
  BITNAS_DEVICE static float high(Pair pair) { return number(stored_high(pair)); }
  BITNAS_DEVICE static float number(Stored bits) {
    __half half;
    memcpy(&half, &bits, sizeof(bits));
    return __half2float(half);
  }
};

// kFloat's first line: two roundings.
BITNAS_DEVICE float affine(float scale, int dot, float bias) {
  return __fadd_rn(__fmul_rn(scale, static_cast<float>(dot)), bias);
}
BITNAS_DEVICE float relu(float y) { return y > 0.0f ? y : 0.0f; }
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
//
// Offsets are read from a table in shared memory, [classes][kPitch], row by row; with kPitch 0 every position has all
// its taps and they are read from the summed-area table, once per channel.
struct StagedOffsets {
  const int* table = nullptr;        // at the warp's first channel
  const uint8_t* classes = nullptr;  // of every row of the tile
};

template <int kRows, int kCols, int kPitch = 0>
class Fragments {
 public:
  static constexpr int kCount = kRows * kCols * 4;
  static constexpr int kLaneRows = 2 * kRows;
  static constexpr int kBlocks = kCols / 4;
  static constexpr int kColumns = 8;
  static_assert(kCols % 4 == 0);

  // row: of the block's tile, where this warp starts; n: channel of the group. ones: popcount of every row of the tile.
  BITNAS_DEVICE Fragments(const ConvArgs& args, int (&acc)[kCount], int64_t tile_m, int row, int group, int n,
                          const int* ones, StagedOffsets offsets = {})
      : args_(args),
        acc_(acc),
        m_(tile_m + row + lane() / 4),
        rows_left_(static_cast<int>(min(args.m - m_, int64_t{INT32_MAX}))),
        channel_(group * args.n + n + lane_shift()),
        channels_left_(args.n - n - lane_shift()),
        first_(m_ * args.out_channels + channel_),
        ones_(ones + row + lane() / 4),
        table_(offsets.table + lane_shift()),
        classes_(offsets.classes + row + lane() / 4) {}

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
    apply_affine();
    if (e.residual != nullptr) {
      if (e.type == FloatType::kFloat32) add_residual<Float32>();
      if (e.type == FloatType::kBFloat16) add_residual<BFloat16>();
      if (e.type == FloatType::kFloat16) add_residual<Float16>();
    }
    if (e.slope != nullptr) apply_slope();
    if (e.packed != nullptr) {
      if (e.type == FloatType::kBFloat16) round_values<BFloat16>();
      if (e.type == FloatType::kFloat16) round_values<Float16>();
      store_packed();
    }
    if (e.type == FloatType::kFloat32) store_values<Float32>();
    if (e.type == FloatType::kBFloat16) store_values<BFloat16>();
    if (e.type == FloatType::kFloat16) store_values<Float16>();
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

  // One number of every channel of the lane's in a block; `other` past the last one.
  template <typename T>
  BITNAS_DEVICE void load_channels(const T* from, int block, T other, T (&to)[kColumns]) const {
    const T* mine = from + static_cast<uint32_t>(channel_ + block * 32);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) to[c] = is_channel(block, c) ? mine[column(c)] : other;
  }

  // Offsets where they are the same for every position.
  BITNAS_DEVICE void load_offsets(int block, int (&offset)[kColumns]) const {
    if constexpr (kPitch == 0) {
      const int taps = args_.kernel_h * args_.kernel_w;
      load_channels(table(args_, args_.kernel_h, args_.kernel_w), block, 0, offset);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) offset[c] = args_.sign ? args_.group_channels * taps - 2 * offset[c] : 0;
    }
  }

  BITNAS_DEVICE void dots(int block, int r, const int (&offset)[kColumns], int (&dot)[kColumns]) const {
    const int row_term = args_.beta * ones_[row(r)];
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      int2 two;
      if constexpr (kPitch == 0)
        two = make_int2(offset[c], offset[c + 1]);
      else
        two = *reinterpret_cast<const int2*>(table_ + classes_[row(r)] * kPitch + block * 32 + column(c));
      dot[c] = args_.alpha * at(block, r, c) - row_term + two.x;
      dot[c + 1] = args_.alpha * at(block, r, c + 1) - row_term + two.y;
    }
  }

  // The flips of the lane's channels of a block, each at its column.
  BITNAS_DEVICE uint32_t lane_flips(const Word* flip, int block) const {
    uint32_t bits = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (is_channel(block, c) && channel_bit(flip, channel_ + block * 32 + column(c))) bits |= 1u << column(c);
    return bits;
  }

  BITNAS_DEVICE void apply_affine() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      int offset[kColumns];
      float scale[kColumns], bias[kColumns];
      ptx::compiler_fence();
      load_offsets(block, offset);
      load_channels(args_.epilogue.scale, block, 0.0f, scale);
      load_channels(args_.epilogue.bias, block, 0.0f, bias);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        ptx::compiler_fence();
        int dot[kColumns];
        dots(block, r, offset, dot);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const float y = affine(scale[c], dot[c], bias[c]);
          at(block, r, c) = __float_as_int(args_.epilogue.relu ? relu(y) : y);
        }
      }
    }
  }

  // What is added to a channel, where the residual's channels are fewer and come round.
  template <typename Stored>
  BITNAS_DEVICE Stored tiled(int block, int r, int c) const {
    const int64_t channels = args_.epilogue.residual_channels;
    const auto channel = static_cast<uint32_t>(channel_ + block * 32 + column(c)) % static_cast<uint32_t>(channels);
    return static_cast<const Stored*>(args_.epilogue.residual)[(m_ + row(r)) * channels + channel];
  }

  template <typename T>
  BITNAS_DEVICE void add_residual() {
    using Stored = typename T::Stored;
    using Pair = typename T::Pair;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        const Stored* from = static_cast<const Stored*>(args_.epilogue.residual) + element(block, r);
        ptx::compiler_fence();
#pragma unroll
        for (int c = 0; c < kColumns; c += 2) {
          const bool low = is_inside(r) && is_channel(block, c), high = is_inside(r) && is_channel(block, c + 1);
          Pair pair{};
          if (args_.epilogue.residual_channels != args_.out_channels)
            pair =
                T::join(low ? tiled<Stored>(block, r, c) : Stored{}, high ? tiled<Stored>(block, r, c + 1) : Stored{});
          else if (!args_.wide_stores)
            pair = T::join(low ? from[column(c)] : Stored{}, high ? from[column(c + 1)] : Stored{});
          else if (low)
            pair = *reinterpret_cast<const Pair*>(from + column(c));
          at(block, r, c) = __float_as_int(__fadd_rn(value(block, r, c), T::low(pair)));
          at(block, r, c + 1) = __float_as_int(__fadd_rn(value(block, r, c + 1), T::high(pair)));
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

  // To the type of the output, kept as floats.
  template <typename T>
  BITNAS_DEVICE void round_values() {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const typename T::Pair pair = T::pair(__int_as_float(acc_[i]), __int_as_float(acc_[i + 1]));
      acc_[i] = __float_as_int(T::low(pair));
      acc_[i + 1] = __float_as_int(T::high(pair));
    }
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

  template <typename T>
  BITNAS_DEVICE void store_values() const {
    using Stored = typename T::Stored;
    using Pair = typename T::Pair;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r) {
        Stored* out = static_cast<Stored*>(args_.epilogue.out) + element(block, r);
        ptx::compiler_fence();
        Pair pairs[kColumns / 2];
#pragma unroll
        for (int c = 0; c < kColumns; c += 2) pairs[c / 2] = T::pair(value(block, r, c), value(block, r, c + 1));
        store_pairs<T>(block, r, pairs, out);
      }
    }
  }

  template <typename T>
  BITNAS_DEVICE void store_pairs(int block, int r, typename T::Pair (&pairs)[kColumns / 2],
                                 typename T::Stored* out) const {
    if (!args_.wide_stores) {
#pragma unroll
      for (int c = 0; c < kColumns; c += 2) {
        if (is_inside(r) && is_channel(block, c)) out[column(c)] = T::stored_low(pairs[c / 2]);
        if (is_inside(r) && is_channel(block, c + 1)) out[column(c + 1)] = T::stored_high(pairs[c / 2]);
      }
    } else if constexpr (sizeof(typename T::Stored) == 4) {
#pragma unroll
      for (int c = 0; c < kColumns; c += 2)
        if (is_inside(r) && is_channel(block, c)) *reinterpret_cast<typename T::Pair*>(out + column(c)) = pairs[c / 2];
    } else {
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
  const int* ones_;
  const int* table_;
  const uint8_t* classes_;
};

template <EpilogueKind kind, int kRows, int kCols, int kPitch>
BITNAS_DEVICE void store_fragments(Fragments<kRows, kCols, kPitch>& fragments) {
  if constexpr (kind == EpilogueKind::kInt32) fragments.store_int32();
  if constexpr (kind == EpilogueKind::kFloat) fragments.store_float();
  if constexpr (kind == EpilogueKind::kBits) fragments.store_bits();
}

// ---- a warp of channels ----------------------------------------------------------

// Returns the bit for Epilogue::packed.
template <typename T>
BITNAS_DEVICE bool store_float_channel(const ConvArgs& args, int64_t m, int channel, int dot) {
  using Stored = typename T::Stored;
  const Epilogue& e = args.epilogue;
  const int64_t at = m * args.out_channels + channel;
  float y = affine(e.scale[channel], dot, e.bias[channel]);
  if (e.relu) y = relu(y);
  if (e.residual != nullptr) {
    const int64_t from = m * e.residual_channels + channel % static_cast<uint32_t>(e.residual_channels);
    y = __fadd_rn(y, T::low(T::join(static_cast<const Stored*>(e.residual)[from], Stored{})));
  }
  if (e.slope != nullptr) y = prelu(y, e.slope[channel]);
  const typename T::Pair rounded = T::pair(y, 0.0f);
  static_cast<Stored*>(e.out)[at] = T::stored_low(rounded);
  return e.packed != nullptr && packed_bit(T::low(rounded), e.direction[channel], e.cut[channel]);
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
      case FloatType::kFloat32: bit = store_float_channel<Float32>(args, m, channel, dot); break;
      case FloatType::kBFloat16: bit = store_float_channel<BFloat16>(args, m, channel, dot); break;
      case FloatType::kFloat16: bit = store_float_channel<Float16>(args, m, channel, dot); break;
    }
  }
  if (out == nullptr) return;
  const uint32_t bits = __ballot_sync(kAllLanes, bit);
  if (threadIdx.x % kWarp == 0) store_word(args, out, m, group * int64_t{args.n} + n_first, args.n - n_first, bits);
}

}  // namespace bitnas::cuda
