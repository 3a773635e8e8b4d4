// Fake-quantize in one pass over memory: the scale of a group, then its values, while the group is in the cache.
//
// Bit for bit what `fake_quantize` does in torch (NaN for NaN): the same FP32 operations in the same order, so no
// contraction into fused multiply-adds and no fast-math. The largest magnitude is found among the bits: as integers
// those of |x| are in the order of the numbers, infinity next to last and NaN last, as in torch's amax.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float number(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

constexpr uint32_t MAGNITUDE = 0x7fffffffu, EXPONENT = 0x7f800000u;
constexpr int32_t SMALLEST_E8M0 = 0x00400000;  // 2^-127
constexpr int64_t BLOCK = 64;       // so many groups at most have their scales made together,
constexpr int64_t IN_CACHE = 4096;  // while they hold no more elements than this

enum Rounding : int32_t { NEAREST, HALF_AWAY, STOCHASTIC };
enum Kind : int32_t { INTEGER, SHIFT, STEP };  // SHIFT: floats with E < 8 and M > 0, to nearest
enum Scale : int32_t { FP32, BF16, E8M0, E4M3, MX };

}  // namespace

extern "C" struct Quantizer {  // the fields of `_Quantizer` in fast.py, in its order
  Kind kind;
  Rounding rounding;
  Scale scale;
  int32_t mantissa;
  int32_t largest_exponent;
  float limit;
  float smallest_normal;
  float tensor_scale;  // what E4M3 scales are multiples of
};

namespace {

template <Rounding rounding>
inline float whole(float x, float noise) {
  if constexpr (rounding == NEAREST) return __builtin_rintf(x);
  float down = __builtin_floorf(x);
  if constexpr (rounding == STOCHASTIC) return down + (noise < x - down ? 1.0f : 0.0f);
  float magnitude = __builtin_fabsf(x);
  down = __builtin_floorf(magnitude);
  return __builtin_copysignf(down + (magnitude - down >= 0.5f ? 1.0f : 0.0f), x);
}

inline float at_most(float x, float limit) { return x > limit ? limit : x; }  // NaN stays

// `Format.cast`: the value of the format for x.
template <Kind kind, Rounding rounding>
inline float cast(float x, float noise, const Quantizer& q) {
  if constexpr (kind == INTEGER) {
    float rounded = whole<rounding>(x, noise);
    return rounded < -q.limit ? -q.limit : at_most(rounded, q.limit);
  }
  float magnitude = at_most(__builtin_fabsf(x), q.limit);
  uint32_t octave = bits_of(magnitude) & EXPONENT, first = bits_of(q.smallest_normal);
  octave = octave < first ? first : octave;
  if constexpr (kind == SHIFT) {
    float shift = number(octave) * number(static_cast<uint32_t>(127 + 23 - q.mantissa) << 23);
    return __builtin_copysignf((magnitude + shift) - shift, x);
  }
  float step = number(octave) * number(static_cast<uint32_t>(127 - q.mantissa) << 23);
  float steps = magnitude / step;
  float rounded = whole<rounding>(steps, noise);
  if constexpr (rounding == NEAREST) {
    // Without mantissa, halfway from 2^k to 2^(k+1) the even code is the lower one in every other octave.
    uint32_t odd = ((octave - first) >> 23) & (q.mantissa == 0 ? 1u : 0u);
    rounded = odd && steps == 1.5f ? 1.0f : rounded;
  }
  return __builtin_copysignf(at_most(rounded * step, q.limit), x);
}

template <int64_t SIZE>
inline uint32_t largest(const float* x, int64_t size) {
  uint32_t most = 0;
  const int64_t n = SIZE ? SIZE : size;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits = bits_of(x[i]) & MAGNITUDE;
    most = bits > most ? bits : most;
  }
  return most;
}

// `scales`: from the bits of the largest magnitudes to the scales as their format holds them.
void stored_scales(const uint32_t* most, float* scale, int64_t n, const Quantizer& q) {
  if (q.scale == MX) {
    for (int64_t i = 0; i < n; ++i) {
      int32_t bits = static_cast<int32_t>(most[i] & EXPONENT) - (q.largest_exponent << 23);
      scale[i] = number(bits < SMALLEST_E8M0 ? SMALLEST_E8M0 : bits);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) scale[i] = number(most[i]) / q.limit;
  if (q.scale == BF16)
    for (int64_t i = 0; i < n; ++i) {
      uint32_t bits = bits_of(scale[i]);
      scale[i] = scale[i] == scale[i] ? number((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u) : scale[i];
    }
  if (q.scale == E8M0)  // up to the next power of two
    for (int64_t i = 0; i < n; ++i) {
      int32_t bits = static_cast<int32_t>((bits_of(scale[i]) + 0x007fffffu) & EXPONENT);
      scale[i] = scale[i] > 0.0f ? number(bits < SMALLEST_E8M0 ? SMALLEST_E8M0 : bits) : scale[i];
    }
  if (q.scale == E4M3) {
    const Quantizer e4m3{SHIFT, NEAREST, FP32, 3, 8, 448.0f, 0.015625f, 1.0f};
    for (int64_t i = 0; i < n; ++i)
      scale[i] = cast<SHIFT, NEAREST>(scale[i] / q.tensor_scale, 0.0f, e4m3) * q.tensor_scale;
  }
}

template <Kind kind, Rounding rounding, int64_t SIZE>
void groups_of(const float* x, const float* noise, float* out, int64_t groups, int64_t size, const Quantizer& given) {
  const Quantizer q = given;  // a copy that `out` cannot overlap
  const int64_t n = SIZE ? SIZE : size;
  uint32_t most[BLOCK];
  float scale[BLOCK];
  const int64_t together = std::clamp(IN_CACHE / n, int64_t{1}, BLOCK);
  for (int64_t first = 0; first < groups; first += together) {
    const int64_t block = std::min(groups - first, together);
    for (int64_t g = 0; g < block; ++g) most[g] = largest<SIZE>(x + (first + g) * n, n);
    stored_scales(most, scale, block, q);
    for (int64_t g = 0; g < block; ++g) {
      const int64_t start = (first + g) * n;
      const float unit = scale[g], safe = unit > 0.0f ? unit : 1.0f;
#pragma omp simd
      for (int64_t i = start; i < start + n; ++i)
        out[i] = cast<kind, rounding>(x[i] / safe, rounding == STOCHASTIC ? noise[i] : 0.0f, q) * unit;
    }
  }
}

template <Kind kind, Rounding rounding>
void sized(const float* x, const float* noise, float* out, int64_t groups, int64_t size, const Quantizer& q) {
  if (size == 8) return groups_of<kind, rounding, 8>(x, noise, out, groups, size, q);
  if (size == 16) return groups_of<kind, rounding, 16>(x, noise, out, groups, size, q);
  if (size == 32) return groups_of<kind, rounding, 32>(x, noise, out, groups, size, q);
  groups_of<kind, rounding, 0>(x, noise, out, groups, size, q);
}

template <Kind kind>
void rounded(const float* x, const float* noise, float* out, int64_t groups, int64_t size, const Quantizer& q) {
  if (q.rounding == NEAREST) return sized<kind, NEAREST>(x, noise, out, groups, size, q);
  if (q.rounding == HALF_AWAY) return sized<kind, HALF_AWAY>(x, noise, out, groups, size, q);
  sized<kind, STOCHASTIC>(x, noise, out, groups, size, q);
}

}  // namespace

extern "C" {

// max |x|, NaN where one of them is.
float largest_magnitude(const float* x, int64_t size) { return number(largest<0>(x, size)); }

// (groups, size), contiguous; `noise`, of the same shape, is read by stochastic rounding only.
void fake_quantize(const float* x, const float* noise, float* out, int64_t groups, int64_t size, const Quantizer* q) {
  if (q->kind == INTEGER) return rounded<INTEGER>(x, noise, out, groups, size, *q);
  if (q->kind == SHIFT) return sized<SHIFT, NEAREST>(x, noise, out, groups, size, *q);
  rounded<STEP>(x, noise, out, groups, size, *q);
}
}
