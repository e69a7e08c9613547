// Winograd's F(4, 3) in integers, exactly: four outputs of a filter of three taps from six products instead of twelve.
//
//   d  six inputs, g  three taps, y  four outputs
//   v = B^T d,  u = G g,  m = v * u (six products, summed over channels),  y = A^T m
//
// with the usual points 0, 1, -1, 2, -2 and infinity, but rows of G multiplied by 12, -6, -6, 24, 24 and 3, so that
// they are integers, and rows of A^T accordingly:
//
//        4  0 -5  0  1  0           3  0  0           2 -4 -4  1  1  0     24 y0
//        0 -4 -4  1  1  0           1  1  1           0 -2  2  1 -1  0     12 y1
//   B^T  0  4 -4 -1  1  0        G  1 -1  1      A^T  0 -1 -1  1  1  0      6 y2
//        0 -2 -1  2  1  0           1  2  4           0 -1  1  2 -2  2      6 y3
//        0  2 -1 -2  1  0           1 -2  4
//        0  4  0 -5  0  1           0  0  3
//
// Why it is exact. Inputs are -1, 0 or 1 and taps -1 or 1: a row of B^T sums up to 10 in magnitude, so |v| <= 10, and
// |u| <= 7; in two dimensions |v| <= 100 and |u| <= 49. Both fit int8. Whatever wraps around on the way, in int8
// before v or in int32 behind the products, does no harm: additions, subtractions and shifts to the left commute with
// taking everything modulo 2^8 or 2^32. The last value is the dot times 24, 12 or 6 (per dimension), and as computes()
// refuses layers where 24 times (576 times) the largest dot leaves int32, it is that number itself. Thresholds are
// multiplied likewise; where the dot itself is wanted, the division by 3 * 2^k is a multiplication by the inverse of 3
// modulo 2^32 and a shift.
#pragma once

#include "kernels/cpu/conv2d_amx.h"

namespace bitnas::cpu {
namespace {

constexpr int64_t kTaps = 3;
constexpr int64_t kOutputs = 4;   // of one transformed position, along each axis
constexpr int64_t kProducts = 6;  // likewise

// Products of one block lie this far apart, in int32: not a power of two, or they would all want the same cache set.
constexpr int64_t kProductPitch = kBlock * kPanel + 80;

constexpr int32_t kScale[kOutputs] = {24, 12, 6, 6};  // 3 << kShift
constexpr int kShift[kOutputs] = {3, 2, 1, 1};
constexpr uint32_t kInverseOf3 = 0xaaaaaaab;

// u = G g.
inline void transform_taps(const int32_t g[kTaps], int32_t u[kProducts]) {
  u[0] = 3 * g[0];
  u[1] = g[0] + g[1] + g[2];
  u[2] = g[0] - g[1] + g[2];
  u[3] = g[0] + 2 * g[1] + 4 * g[2];
  u[4] = g[0] - 2 * g[1] + 4 * g[2];
  u[5] = 3 * g[2];
}

// v = B^T d, of 64 channels.
inline void transform_inputs(const __m512i d[kProducts], __m512i v[kProducts]) {
  const auto add = [](__m512i a, __m512i b) { return _mm512_add_epi8(a, b); };
  const auto subtract = [](__m512i a, __m512i b) { return _mm512_sub_epi8(a, b); };
  const auto twice = [](__m512i a) { return _mm512_add_epi8(a, a); };
  const __m512i even = subtract(d[4], d[2]), odd = twice(subtract(d[3], d[1]));
  const __m512i even_far = subtract(d[4], twice(twice(d[2]))), odd_far = subtract(d[3], twice(twice(d[1])));
  v[0] = add(twice(twice(subtract(d[0], d[2]))), even);
  v[1] = add(even_far, odd_far);
  v[2] = subtract(even_far, odd_far);
  v[3] = add(even, odd);
  v[4] = subtract(even, odd);
  v[5] = subtract(subtract(d[5], d[3]), twice(odd));
}

// A^T m, of 16 channels: the four outputs times kScale.
inline void transform_products(const __m512i m[kProducts], __m512i y[kOutputs]) {
  const auto add = [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); };
  const auto subtract = [](__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); };
  const auto twice = [](__m512i a) { return _mm512_add_epi32(a, a); };
  const __m512i near_sum = add(m[1], m[2]), near_difference = subtract(m[1], m[2]);
  const __m512i far_sum = add(m[3], m[4]), far_difference = subtract(m[3], m[4]);
  y[0] = add(far_sum, twice(subtract(m[0], twice(near_sum))));
  y[1] = subtract(far_difference, twice(near_difference));
  y[2] = subtract(far_sum, near_sum);
  y[3] = subtract(twice(add(far_difference, m[5])), near_difference);
}

// The dots that outputs times odd * 2^shift stand for; inverse is that of the odd factor modulo 2^32.
inline __m512i unscaled(__m512i y, uint32_t inverse, int shift) {
  const __m512i powers = _mm512_mullo_epi32(y, _mm512_set1_epi32(static_cast<int32_t>(inverse)));
  return _mm512_srai_epi32(powers, static_cast<unsigned>(shift));
}

// A threshold may be any int32: clamped to one past the largest dot, it is decided as it was and can be scaled.
inline int32_t scaled_threshold(int32_t threshold, int64_t largest_dot, int32_t scale) {
  return static_cast<int32_t>(larger(-largest_dot - 1, smaller(largest_dot + 1, threshold)) * scale);
}

// Groups begin at whole words, so that their channels are chunks of their own.
inline bool groups_are_words(const Conv2dShape& s) { return s.groups == 1 || group_channels(s) % kWordBits == 0; }

// 1 or -1.
inline int32_t weight_at(const Conv2dShape& s, const Word* weight, int64_t n, int64_t ky, int64_t kx, int64_t c) {
  const int64_t words = words_for(group_channels(s));
  return weight[((n * s.kernel_h + ky) * s.kernel_w + kx) * words + c / kWordBits] >> (c % kWordBits) & 1 ? 1 : -1;
}

}  // namespace
}  // namespace bitnas::cpu
