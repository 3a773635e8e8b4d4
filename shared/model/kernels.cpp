// What a training step on CPU spends its time on: causal attention with its rotations, cross-entropy, SwiGLU, norms and
// the gradients to weights. All in BF16 with FP32 arithmetic inside.
//
// Attention. Letters: B sequences, T positions, H heads, K head size, R rows of a block. Outputs and their gradients
// are (B, T, H, K), contiguous; positions of q, k, v and of their gradients lie `stride` values apart.
// One head of one sequence fits in the second-level cache, so that only q, k, v, o and their gradients meet memory:
// scores are made again in the backward pass from the log-sum-exp of each row (Dao et al., arXiv 2205.14135).
// Products are tile instructions (AMX): 16 rows of 32 BF16 values times 32 rows of 16 columns, added to 16 x 16 in
// FP32. Their second factor comes in pairs of rows: [rows / 2][columns][2].

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int64_t R = 32;
constexpr float MASKED = -1e30f;

inline float from_bf16(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t to_bf16(float x) {  // nearest, ties to even; the values here are finite
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// exp(x), held within e^-87 and e^87, to 2 units in the last place: 2^n e^f with |f| <= ln(2) / 2, Taylor to the 6th.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 87.0f ? 87.0f : x;
  float shifted = x * 1.44269504089f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number in the low bits
  float n = shifted - 12582912.0f;
  float f = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.0f + f * (1.0f + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f * (1.0f / 720))))));
  int32_t bits, power;
  std::memcpy(&power, &shifted, 4);
  std::memcpy(&bits, &p, 4);
  bits += power << 23;
  std::memcpy(&p, &bits, 4);
  return p;
}

// Memory from the start of a cache line: a row of a tile that lies in two lines takes twice the time.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64))) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  T* data_;
};

constexpr int64_t TILE = 16;  // rows of a tile, and its columns in FP32 or in pairs of BF16 values

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 16 x 16 words of 32 bits, transposed in four rounds of exchanges between rows 1, 2, 4 and 8 apart.
inline __attribute__((always_inline)) void transpose(__m512i (&rows)[TILE]) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
  for (int apart = 1; apart < 16; apart *= 2) {
    // From row i its words whose bit is clear, and where it is set those of the other row `apart` to the left.
    const __mmask16 set = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(apart));
    const __m512i shifted = _mm512_sub_epi32(lane, _mm512_set1_epi32(apart));
    const __m512i low = _mm512_mask_add_epi32(lane, set, shifted, _mm512_set1_epi32(16));
    const __m512i onward = _mm512_add_epi32(lane, _mm512_set1_epi32(apart));
    const __m512i high = _mm512_mask_add_epi32(onward, set, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & apart) continue;
      const __m512i a = rows[i], b = rows[i + apart];
      rows[i] = _mm512_permutex2var_epi32(a, low, b);
      rows[i + apart] = _mm512_permutex2var_epi32(a, high, b);
    }
  }
}

void transpose(const uint32_t* x, int64_t x_stride, uint32_t* out, int64_t out_stride) {
  __m512i rows[TILE];
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) rows[i] = _mm512_loadu_si512(x + i * x_stride);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) _mm512_storeu_si512(out + i * out_stride, rows[i]);
}

// (T, K) rows with a stride -> [K / 2][T][2]: the transpose, as a second factor.
void pack_transposed(const uint16_t* x, int64_t stride, int64_t T, int64_t K, uint32_t* out) {
  for (int64_t t = 0; t < T; t += TILE)
    for (int64_t k = 0; k < K / 2; k += TILE)
      transpose(reinterpret_cast<const uint32_t*>(x + t * stride + 2 * k), stride / 2, out + k * T + t, T);
}

// Two rows of 16 values -> 16 pairs.
inline __m512i pairs(const uint16_t* even, const uint16_t* odd) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// (T, K) rows with a stride -> [T / 2][K][2]: as it is, as a second factor.
void pack_rows(const uint16_t* x, int64_t stride, int64_t T, int64_t K, uint32_t* out) {
  for (int64_t t = 0; t < T / 2; ++t)
    for (int64_t k = 0; k < K; k += TILE)
      _mm512_storeu_si512(out + t * K + k, pairs(x + 2 * t * stride + k, x + (2 * t + 1) * stride + k));
}

// `exponential` of 16 values.
inline __m512 exponential(__m512 x) {
  // The second operand is what comes of a NaN.
  x = _mm512_min_ps(_mm512_set1_ps(87.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512 magic = _mm512_set1_ps(12582912.0f), one = _mm512_set1_ps(1.0f);
  const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504089f), magic);
  const __m512 n = _mm512_sub_ps(shifted, magic);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  f = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), f);
  __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(1.0f / 720), _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(f, p, one);
  p = _mm512_fmadd_ps(f, p, one);
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// Sums of 16 rows of 32 values, one lane a row, each from its first value on: the order that NUMERICS_VERSION 2 fixed.
inline __m512 row_sums(const float* x) {
  float columns[2 * TILE * TILE];
  for (int64_t half = 0; half < 2; ++half)
    transpose(reinterpret_cast<const uint32_t*>(x + half * TILE), R,
              reinterpret_cast<uint32_t*>(columns + half * TILE * TILE), TILE);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < 2 * TILE; ++c) sum = _mm512_add_ps(sum, _mm512_loadu_ps(columns + c * TILE));
  return sum;
}

inline __m512 load_bf16(const uint16_t* x) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store_bf16(uint16_t* out, __m512 x) {  // nearest, ties to even
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

inline __m512 load_bf16(__mmask16 there, const uint16_t* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, x)), 16));
}

inline void store_bf16(__mmask16 there, uint16_t* out, __m512 x) {
  _mm256_mask_storeu_epi16(out, there, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

inline __m512 rounded_bf16(__m512 x) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x))), 16));
}

// Instructions with a rounding of their own: no compiler makes one of a product and a sum. torch.compile's code for
// `rotate` rounds both, too.
constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// Rotary positions in the split-halves form (`rotate` in transformer.py): rows with a stride -> (H, T, K). Row by row,
// so that memory is read in its order.
void rotate(const uint16_t* x, int64_t stride, const float* cos, const float* sin, int64_t T, int64_t H, int64_t K,
            uint16_t* out) {
  for (int64_t t = 0; t < T; ++t)
    for (int64_t a = 0; a < K / 2; a += TILE) {
      const int64_t b = a + K / 2;
      const __m512 cos_a = _mm512_loadu_ps(cos + t * K + a), cos_b = _mm512_loadu_ps(cos + t * K + b);
      const __m512 sin_a = _mm512_loadu_ps(sin + t * K + a), sin_b = _mm512_loadu_ps(sin + t * K + b);
      for (int64_t h = 0; h < H; ++h) {
        const uint16_t* from = x + t * stride + h * K;
        uint16_t* to = out + (h * T + t) * K;
        const __m512 first = load_bf16(from + a), second = load_bf16(from + b);
        const __m512 kept = _mm512_mul_round_ps(first, cos_a, NEAREST), rest = _mm512_mul_round_ps(second, cos_b, NEAREST);
        store_bf16(to + a, _mm512_sub_round_ps(kept, _mm512_mul_round_ps(second, sin_a, NEAREST), NEAREST));
        store_bf16(to + b, _mm512_add_round_ps(rest, _mm512_mul_round_ps(first, sin_b, NEAREST), NEAREST));
      }
    }
}

// Its gradient, back from (H, T, K); what the sines give is rounded to BF16 before the sum.
void rotate_backward(const uint16_t* g, const float* cos, const float* sin, int64_t T, int64_t H, int64_t K,
                     uint16_t* out, int64_t stride) {
  for (int64_t t = 0; t < T; ++t)
    for (int64_t a = 0; a < K / 2; a += TILE) {
      const int64_t b = a + K / 2;
      const __m512 cos_a = _mm512_loadu_ps(cos + t * K + a), cos_b = _mm512_loadu_ps(cos + t * K + b);
      const __m512 sin_a = _mm512_loadu_ps(sin + t * K + a), sin_b = _mm512_loadu_ps(sin + t * K + b);
      for (int64_t h = 0; h < H; ++h) {
        const uint16_t* from = g + (h * T + t) * K;
        uint16_t* to = out + t * stride + h * K;
        const __m512 first = load_bf16(from + a), second = load_bf16(from + b);
        const __m512 kept = _mm512_mul_round_ps(first, cos_a, NEAREST), rest = _mm512_mul_round_ps(second, cos_b, NEAREST);
        const __m512 turned = rounded_bf16(_mm512_mul_round_ps(second, sin_b, NEAREST));
        store_bf16(to + a, _mm512_add_round_ps(kept, turned, NEAREST));
        const __m512 other = rounded_bf16(_mm512_mul_round_ps(first, sin_a, NEAREST));
        store_bf16(to + b, _mm512_sub_round_ps(rest, other, NEAREST));
      }
    }
}

// out (32, columns) = a (32, depth) times b in pairs of rows, plus what out holds; strides in elements (b's in pairs).
inline void product(bool add, int64_t columns, int64_t depth, const uint16_t* a, int64_t a_stride, const uint32_t* b,
                    int64_t b_stride, float* out, int64_t out_stride) {
  for (int64_t c = 0; c < columns; c += 2 * TILE) {
    float *low = out + c, *high = low + TILE * out_stride;
    if (add) {
      _tile_loadd(0, low, out_stride * 4);
      _tile_loadd(1, low + TILE, out_stride * 4);
      _tile_loadd(2, high, out_stride * 4);
      _tile_loadd(3, high + TILE, out_stride * 4);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t d = 0; d < depth; d += 2 * TILE) {
      _tile_loadd(4, a + d, a_stride * 2);
      _tile_loadd(6, b + d / 2 * b_stride + c, b_stride * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + d / 2 * b_stride + c + TILE, b_stride * 4);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + TILE * a_stride + d, a_stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, low, out_stride * 4);
    _tile_stored(1, low + TILE, out_stride * 4);
    _tile_stored(2, high, out_stride * 4);
    _tile_stored(3, high + TILE, out_stride * 4);
  }
}

// Ask for one of `parts` parts of what comes next, while there is arithmetic to do: memory is slow.
inline void fetch(const uint16_t* x, int64_t size, int64_t part, int64_t parts) {
  constexpr int64_t LINE = 32;
  for (int64_t i = size * part / parts; i < size * (part + 1) / parts; i += LINE) _mm_prefetch(x + i, _MM_HINT_T1);
}

// Sum of 16 values, halves onto halves: the order of torch.compile's code.
inline float lanes_sum(__m512 x) {
  x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xB1));
  x = _mm512_add_ps(x, _mm512_shuffle_ps(x, x, 0x4E));
  return _mm512_cvtss_f32(_mm512_add_ps(x, _mm512_shuffle_ps(x, x, 0xB1)));
}

inline __m512 times(__m512 x, __m512 y) { return _mm512_mul_round_ps(x, y, NEAREST); }
inline __m512 plus(__m512 x, __m512 y) { return _mm512_add_round_ps(x, y, NEAREST); }

// Products for the gradients to weights. Letters: O outputs and I inputs of a matrix.

// (32, depth) times (depth, 32) in 32 x 32 values of FP32: what is there already, if `add`, and on it 32 rows of depth
// after another. First factors [depth / 32][32][32], second ones in pairs of rows [depth / 2][32].
inline void add_block(bool add, int64_t depth, const uint16_t* a, const uint32_t* b, float* sum) {
  asm volatile("" ::: "memory");  // the compiler does not know that tile instructions read and write memory
  if (add) {
    _tile_loadd(0, sum, R * 4);
    _tile_loadd(1, sum + TILE, R * 4);
    _tile_loadd(2, sum + TILE * R, R * 4);
    _tile_loadd(3, sum + TILE * R + TILE, R * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t d = 0; d < depth; d += R, a += R * R, b += R / 2 * R) {
    _tile_loadd(4, a, R * 2);
    _tile_loadd(6, b, R * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + TILE, R * 4);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + TILE * R, R * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sum, R * 4);
  _tile_stored(1, sum + TILE, R * 4);
  _tile_stored(2, sum + TILE * R, R * 4);
  _tile_stored(3, sum + TILE * R + TILE, R * 4);
  asm volatile("" ::: "memory");
}

// `depth` rows of some columns -> [columns / 32][depth / 32][32 columns][32 rows]: the transpose, as a first factor.
void pack_columns(const uint16_t* x, int64_t stride, int64_t depth, int64_t columns, uint16_t* out) {
  for (int64_t d = 0; d < depth; d += R)
    for (int64_t c = 0; c < columns; c += R) {
      if (d + R < depth)
#pragma GCC unroll 32
        for (int i = 0; i < R; ++i) _mm_prefetch(x + (d + R + i) * stride + c, _MM_HINT_T0);
      // Pairs of rows: of columns 0-3, 8-11, 16-19 and 24-27, and of the others.
      __m512i low[TILE], high[TILE];
#pragma GCC unroll 16
      for (int i = 0; i < TILE; ++i) {
        const __m512i even = _mm512_loadu_si512(x + (d + 2 * i) * stride + c);
        const __m512i odd = _mm512_loadu_si512(x + (d + 2 * i + 1) * stride + c);
        low[i] = _mm512_unpacklo_epi16(even, odd);
        high[i] = _mm512_unpackhi_epi16(even, odd);
      }
      transpose(low);
      transpose(high);
      uint16_t* to = out + c * depth + d * R;
#pragma GCC unroll 16
      for (int i = 0; i < TILE; ++i) {
        _mm512_store_si512(to + (i / 4 * 8 + i % 4) * R, low[i]);
        _mm512_store_si512(to + (i / 4 * 8 + i % 4 + 4) * R, high[i]);
      }
    }
}

// `depth` rows of I columns -> [I / 32][depth / 2][32] pairs: as it is, as a second factor.
void pack_panels(const uint16_t* x, int64_t depth, int64_t I, uint32_t* out) {
  for (int64_t d = 0; d < depth / 2; ++d)
    for (int64_t c = 0; c < I; c += TILE)
      _mm512_store_si512(out + c / R * R * (depth / 2) + d * R + c % R, pairs(x + 2 * d * I + c, x + (2 * d + 1) * I + c));
}

}  // namespace

extern "C" {

// The kernel keeps the tiles' registers from a process until it asks for them.
bool supported() {
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

// With `cos` and `sin`, (T, K), queries and keys, which then lie side by side, are rotated first.
void attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, const float* cos, const float* sin, uint16_t* o,
               float* lse, int64_t B, int64_t T, int64_t H, int64_t K, int64_t stride) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  const int64_t out_stride = H * K, head_stride = cos ? K : stride;
  Buffer<uint32_t> k_packed(T * K / 2), v_packed(T * K / 2);
  Buffer<float> scores(R * T), mixed(R * K);
  Buffer<uint16_t> weights(R * T), rotated(cos ? 2 * H * T * K : 0);
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t b = 0; b < B; ++b) {
    if (cos) rotate(q + b * T * stride, stride, cos, sin, T, 2 * H, K, rotated.data());
    for (int64_t h = 0; h < H; ++h) {
      const int64_t offset = b * T * stride + h * K, out_offset = b * T * out_stride + h * K;
      const uint16_t* q_head = cos ? rotated.data() + h * T * K : q + offset;
      const uint16_t* k_head = cos ? rotated.data() + (H + h) * T * K : k + offset;
      pack_transposed(k_head, head_stride, T, K, k_packed.data());
      pack_rows(v + offset, stride, T, K, v_packed.data());
      for (int64_t i = 0; i < T; i += R) {
        const int64_t n = i + R;
        if (cos && b + 1 < B) fetch(q + (b + 1) * T * stride, T * stride, (h * T + i) / R, H * T / R);
        product(false, n, K, q_head + i * head_stride, head_stride, k_packed.data(), T, scores.data(), T);
        float inverse[R], total[R], tops[R], sums[R * R];
        for (int64_t r = 0; r < R; ++r) {
          const float* row = scores.data() + r * T;
          uint16_t* weight = weights.data() + r * T;
          // The past ends inside the last two vectors.
          const int64_t last = i + r + 1 - (n - R);
          const __mmask16 first = last >= TILE ? 0xffff : (1u << last) - 1;
          const __mmask16 second = last > TILE ? (1u << (last - TILE)) - 1 : 0;
          __m512 largest = _mm512_set1_ps(MASKED);
          for (int64_t j = 0; j < n - R; j += TILE) largest = _mm512_max_ps(largest, _mm512_loadu_ps(row + j));
          largest = _mm512_mask_max_ps(largest, first, largest, _mm512_loadu_ps(row + n - R));
          largest = _mm512_mask_max_ps(largest, second, largest, _mm512_loadu_ps(row + n - TILE));
          const float top = _mm512_reduce_max_ps(largest);
          const __m512 top_16 = _mm512_set1_ps(top), scale_16 = _mm512_set1_ps(scale);
          __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
          for (int64_t j = 0; j < n; j += R) {
            const bool end = j == n - R;
            for (int half = 0; half < 2; ++half) {
              const __mmask16 past = !end ? 0xffff : half ? second : first;
              const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + j + half * TILE), top_16), scale_16);
              const __m512 e = _mm512_maskz_mov_ps(past, exponential(x));
              sum[half] = _mm512_add_ps(sum[half], e);
              store_bf16(weight + j + half * TILE, e);
            }
          }
          _mm512_storeu_ps(sums + r * R, sum[0]);
          _mm512_storeu_ps(sums + r * R + TILE, sum[1]);
          tops[r] = top;
        }
        for (int64_t r = 0; r < R; r += TILE) {
          const __m512 sum_16 = row_sums(sums + r * R);
          _mm512_storeu_ps(total + r, sum_16);
          _mm512_storeu_ps(inverse + r, _mm512_div_ps(_mm512_set1_ps(1.0f), sum_16));
        }
        for (int64_t r = 0; r < R; ++r) lse[(b * H + h) * T + i + r] = tops[r] * scale + std::log(total[r]);
        product(false, K, n, weights.data(), T, v_packed.data(), K, mixed.data(), K);
        for (int64_t r = 0; r < R; ++r)
          for (int64_t x = 0; x < K; x += TILE)
            store_bf16(o + out_offset + (i + r) * out_stride + x,
                       _mm512_mul_ps(_mm512_loadu_ps(mixed.data() + r * K + x), _mm512_set1_ps(inverse[r])));
      }
    }
  }
  _tile_release();
}

void attention_backward(const uint16_t* g, const uint16_t* q, const uint16_t* k, const uint16_t* v, const float* cos,
                        const float* sin, const uint16_t* o, const float* lse, uint16_t* dq, uint16_t* dk, uint16_t* dv,
                        int64_t B, int64_t T, int64_t H, int64_t K, int64_t stride) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  const int64_t out_stride = H * K, head_stride = cos ? K : stride;
  const int64_t words = T * K / 2;
  const __m512 scale_16 = _mm512_set1_ps(scale);
  Buffer<uint32_t> k_columns(words), q_columns(words), g_columns(words), q_rows(words), g_rows(words);
  Buffer<uint16_t> k_transposed(K * T), rotated(cos ? 2 * H * T * K : 0), gradients(cos ? 2 * H * T * K : 0);
  Buffer<float> dq_KT(K * T), dq_TK(TILE * K), dv_RK(R * K), dk_RK(R * K), delta(T);
  alignas(64) float s[R * R], dp[R * R];
  alignas(64) uint16_t p[R * R], ds[R * R];
  alignas(64) uint32_t ds_pairs[R / 2 * R];
  float sums[TILE * R];
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t b = 0; b < B; ++b) {
    if (cos) rotate(q + b * T * stride, stride, cos, sin, T, 2 * H, K, rotated.data());
    for (int64_t h = 0; h < H; ++h) {
      const int64_t offset = b * T * stride + h * K, out_offset = b * T * out_stride + h * K;
      const float* lse_T = lse + (b * H + h) * T;
      const uint16_t* q_head = cos ? rotated.data() + h * T * K : q + offset;
      const uint16_t* k_head = cos ? rotated.data() + (H + h) * T * K : k + offset;
      uint16_t* dq_head = cos ? gradients.data() + h * T * K : dq + offset;
      uint16_t* dk_head = cos ? gradients.data() + (H + h) * T * K : dk + offset;
      pack_transposed(k_head, head_stride, T, K, k_columns.data());
      pack_transposed(q_head, head_stride, T, K, q_columns.data());
      pack_transposed(g + out_offset, out_stride, T, K, g_columns.data());
      pack_rows(q_head, head_stride, T, K, q_rows.data());
      pack_rows(g + out_offset, out_stride, T, K, g_rows.data());
      for (int64_t x = 0; x < K / 2; ++x)
        for (int64_t t = 0; t < T; ++t) {
          k_transposed[2 * x * T + t] = static_cast<uint16_t>(k_columns[x * T + t]);
          k_transposed[(2 * x + 1) * T + t] = static_cast<uint16_t>(k_columns[x * T + t] >> 16);
        }
      for (int64_t t = 0; t < T; t += TILE) {
        for (int64_t r = 0; r < TILE; ++r)
          for (int64_t half = 0; half < 2; ++half) {
            const int64_t at = out_offset + (t + r) * out_stride + half * TILE;
            __m512 sum = _mm512_setzero_ps();
            for (int64_t x = 0; x < K; x += R) sum = _mm512_fmadd_ps(load_bf16(g + at + x), load_bf16(o + at + x), sum);
            _mm512_storeu_ps(sums + r * R + half * TILE, sum);
          }
        _mm512_storeu_ps(delta.data() + t, row_sums(sums));
      }
      for (int64_t j = 0; j < T; j += R) {  // rows are keys, columns the queries i >= j
        if (cos && b + 1 < B) {
          const int64_t part = (h * T + j) / R, parts = H * T / R, next = (b + 1) * T;
          fetch(q + next * stride, T * stride, part, parts);
          fetch(g + next * out_stride, T * out_stride, part, parts);
          fetch(o + next * out_stride, T * out_stride, part, parts);
        }
        for (int64_t i = j; i < T; i += R) {
          product(false, R, K, k_head + j * head_stride, head_stride, q_columns.data() + i, T, s, R);
          product(false, R, K, v + offset + j * stride, stride, g_columns.data() + i, T, dp, R);
          for (int64_t half = 0; half < R; half += TILE) {
            const __m512 lse_16 = _mm512_loadu_ps(lse_T + i + half);
            const __m512 delta_16 = _mm512_loadu_ps(delta.data() + i + half);
            for (int64_t r = 0; r < R; ++r) {
              const int64_t at = r * R + half;
              const __m512 log_weight = _mm512_fmsub_ps(_mm512_loadu_ps(s + at), scale_16, lse_16);
              // On the diagonal, queries before the key do not see it.
              const int64_t before = i > j || r <= half ? 0 : r - half;
              const __mmask16 seen = before >= TILE ? 0 : 0xffff << before;
              const __m512 any = exponential(_mm512_min_ps(log_weight, _mm512_setzero_ps()));
              const __m512 weight = _mm512_maskz_mov_ps(seen, any);
              const __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(dp + at), delta_16);
              store_bf16(p + at, weight);
              store_bf16(ds + at, _mm512_mul_ps(_mm512_mul_ps(weight, difference), scale_16));
            }
          }
          for (int64_t r = 0; r < R / 2; ++r)
            for (int64_t x = 0; x < R; x += TILE)
              _mm512_storeu_si512(ds_pairs + r * R + x, pairs(ds + 2 * r * R + x, ds + (2 * r + 1) * R + x));
          for (int64_t x = 0; x < K; x += R)
            product(j > 0, R, R, k_transposed.data() + x * T + j, T, ds_pairs, R, dq_KT.data() + x * T + i, T);
          product(i > j, K, R, p, R, g_rows.data() + i / 2 * K, K, dv_RK.data(), K);
          product(i > j, K, R, ds, R, q_rows.data() + i / 2 * K, K, dk_RK.data(), K);
          if (i + R == T)
            for (int64_t r = 0; r < R; ++r)
              for (int64_t x = 0; x < K; x += TILE) {
                store_bf16(dv + offset + (j + r) * stride + x, _mm512_loadu_ps(dv_RK.data() + r * K + x));
                store_bf16(dk_head + (j + r) * head_stride + x, _mm512_loadu_ps(dk_RK.data() + r * K + x));
              }
        }
      }
      for (int64_t t = 0; t < T; t += TILE) {
        for (int64_t x = 0; x < K; x += TILE)
          transpose(reinterpret_cast<const uint32_t*>(dq_KT.data() + x * T + t), T,
                    reinterpret_cast<uint32_t*>(dq_TK.data() + x), K);
        for (int64_t r = 0; r < TILE; ++r)
          for (int64_t x = 0; x < K; x += TILE)
            store_bf16(dq_head + (t + r) * head_stride + x, _mm512_loadu_ps(dq_TK.data() + r * K + x));
      }
    }
    if (cos) rotate_backward(gradients.data(), cos, sin, T, 2 * H, K, dq + b * T * stride, stride);
  }
  _tile_release();
}

// out (O, I) = g (rows, O)^T x (rows, I). Sums of `part` rows, each from zero on, are added in FP32: every way to split
// them rounds otherwise, and `part` says which one is wanted. All sizes are multiples of 32.
void weight_gradient(const uint16_t* g, const uint16_t* x, uint16_t* out, int64_t rows, int64_t O, int64_t I,
                     int64_t part) {
  // 128 columns of g, transposed, stay in the second-level cache with the part of x; of a block's depth 256 rows of
  // both factors in the first-level one.
  constexpr int64_t WIDE = 128, DEEP = 256;
  Buffer<uint32_t> x_panels(part / 2 * I);
  Buffer<uint16_t> g_columns(part * WIDE);
  Buffer<float> sums(WIDE * I), totals(rows > part ? O * I : 0);
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t from = 0; from < rows; from += part) {
    const int64_t depth = std::min(part, rows - from);
    pack_panels(x + from * I, depth, I, x_panels.data());
    for (int64_t o = 0; o < O; o += WIDE) {
      const int64_t wide = std::min(WIDE, O - o);
      pack_columns(g + from * O + o, O, depth, wide, g_columns.data());
      for (int64_t d = 0; d < depth; d += DEEP)
        for (int64_t c = 0; c < wide; c += R)
          for (int64_t i = 0; i < I; i += R) {
            float* sum = sums.data() + c * I + i * R;
            add_block(d > 0, std::min(DEEP, depth - d), g_columns.data() + c * depth + d * R,
                      x_panels.data() + i * (depth / 2) + d / 2 * R, sum);
            if (d + DEEP < depth) continue;
            float* total = totals.data() + (o + c) * I + i * R;
            const bool last = from + depth == rows;
            for (int64_t r = 0; r < R; ++r)
              for (int64_t half = 0; half < R; half += TILE) {
                const int64_t at = r * R + half;
                __m512 value = _mm512_load_ps(sum + at);
                if (from > 0) value = _mm512_add_ps(_mm512_load_ps(total + at), value);
                if (last)
                  store_bf16(out + (o + c + r) * I + i + half, value);
                else
                  _mm512_store_ps(total + at, value);
              }
          }
    }
  }
  _tile_release();
}

// RMSNorm of rows of D values, in the order of sums of torch.compile's code (NUMERICS_VERSION 2): x, a row of a table for
// each token or else `x` + `delta`, goes to `sum`, x / rms(x) * gain to `out`, 1 / rms(x) to `scale`. The squares of x are
// added up in `lanes`, 16 or 32. D is a multiple of 32.
void norm(const int64_t* tokens, const float* x, const uint16_t* delta, const float* gain, float* sum, uint16_t* out,
          float* scale, int64_t rows, int64_t D, int64_t lanes) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x + (tokens ? tokens[r] : r) * D;
    float* row = sum + r * D;
    __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t c = 0; c < D; c += TILE) {
      __m512 value = _mm512_loadu_ps(from + c);
      if (delta) value = plus(value, load_bf16(delta + r * D + c));
      _mm512_storeu_ps(row + c, value);
      __m512& square = squares[lanes == R ? c / TILE % 2 : 0];
      square = plus(square, times(value, value));
    }
    if (lanes == R) squares[0] = plus(squares[0], squares[1]);
    scale[r] = 1.0f / std::sqrt(lanes_sum(squares[0]) / static_cast<float>(D) + 1e-6f);
    const __m512 scale_16 = _mm512_set1_ps(scale[r]);
    for (int64_t c = 0; c < D; c += TILE)
      store_bf16(out + r * D + c, times(times(_mm512_loadu_ps(row + c), scale_16), _mm512_loadu_ps(gain + c)));
  }
}

// Its gradient: of the loss to x by what follows the norm, `g`, and to `sum` by what else reads it, `g_sum` or none. To
// the table, into `dx` added up by tokens, or to x and, in BF16, to delta; and to the gain.
void norm_backward(const float* g_sum, const uint16_t* g, const int64_t* tokens, const float* sum, const float* scale,
                   const float* gain, float* dx, uint16_t* ddelta, float* dgain, int64_t rows, int64_t D) {
  const __m512 two = _mm512_set1_ps(2.0f);
  for (int64_t c = 0; c < D; ++c) dgain[c] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const float *row = sum + r * D, factor = scale[r];
    const uint16_t* g_row = g + r * D;
    const __m512 factor_16 = _mm512_set1_ps(factor);
    __m512 products[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t c = 0; c < D; c += TILE) {
      const __m512 value = _mm512_loadu_ps(row + c), g_16 = load_bf16(g_row + c);
      __m512& one = products[c / TILE % 2];
      one = plus(one, times(times(g_16, _mm512_loadu_ps(gain + c)), value));
      _mm512_storeu_ps(dgain + c, plus(_mm512_loadu_ps(dgain + c), times(g_16, times(value, factor_16))));
    }
    const float product = lanes_sum(plus(products[0], products[1]));
    const __m512 slope = _mm512_set1_ps(product * -0.5f * (factor * factor * factor) / static_cast<float>(D));
    float* to = dx + (tokens ? tokens[r] : r) * D;
    for (int64_t c = 0; c < D; c += TILE) {
      const __m512 value = _mm512_loadu_ps(row + c);
      __m512 d = times(times(load_bf16(g_row + c), _mm512_loadu_ps(gain + c)), factor_16);
      if (g_sum) d = plus(_mm512_loadu_ps(g_sum + r * D + c), d);
      d = plus(d, times(slope, times(value, two)));
      _mm512_storeu_ps(to + c, tokens ? plus(d, _mm512_loadu_ps(to + c)) : d);
      if (ddelta) store_bf16(ddelta + r * D + c, d);
    }
  }
}

// Cross-entropy of rows of V logits: loss = lse - logit of the target, and lse for the backward pass.
void cross_entropy(const uint16_t* logits, const int64_t* target, float* loss, float* lse, int64_t rows, int64_t V) {
  Buffer<float> x(V);
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t* row = logits + r * V;
    float top = from_bf16(row[0]), sum = 0.0f;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < V; ++j) {
      x[j] = from_bf16(row[j]);
      top = x[j] > top ? x[j] : top;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < V; ++j) sum += exponential(x[j] - top);
    lse[r] = top + std::log(sum);
    loss[r] = lse[r] - from_bf16(row[target[r]]);
  }
}

// Gradient to the logits: (softmax - one at the target) * g, with g the gradient to the row's loss.
void cross_entropy_backward(const float* g, const uint16_t* logits, const int64_t* target, const float* lse,
                            uint16_t* out, int64_t rows, int64_t V) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t* row = logits + r * V;
    const float shift = lse[r], factor = g[r];
    for (int64_t j = 0; j < V; ++j) out[r * V + j] = to_bf16(exponential(from_bf16(row[j]) - shift) * factor);
    const int64_t t = target[r];
    out[r * V + t] = to_bf16((exponential(from_bf16(row[t]) - shift) - 1.0f) * factor);
  }
}

// silu(gate) * up, of rows [gate, up] of 2 F.
void swiglu(const uint16_t* x, uint16_t* out, int64_t rows, int64_t F) {
  const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t *gate = x + 2 * r * F, *up = gate + F;
    for (int64_t j = 0; j < F; j += TILE) {
      const __mmask16 there = j + TILE <= F ? 0xffff : (1u << F % TILE) - 1;
      const __m512 a = load_bf16(there, gate + j);
      const __m512 silu = _mm512_div_ps(a, _mm512_add_ps(one, exponential(_mm512_sub_ps(zero, a))));
      store_bf16(there, out + r * F + j, _mm512_mul_ps(silu, load_bf16(there, up + j)));
    }
  }
}

void swiglu_backward(const uint16_t* g, const uint16_t* x, uint16_t* out, int64_t rows, int64_t F) {
  const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t *gate = x + 2 * r * F, *up = gate + F;
    uint16_t *to_gate = out + 2 * r * F, *to_up = to_gate + F;
    for (int64_t j = 0; j < F; j += TILE) {
      const __mmask16 there = j + TILE <= F ? 0xffff : (1u << F % TILE) - 1;
      const __m512 a = load_bf16(there, gate + j), d = load_bf16(there, g + r * F + j);
      const __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(zero, a))));
      const __m512 slope = _mm512_fmadd_ps(a, _mm512_sub_ps(one, s), one);
      store_bf16(there, to_gate + j, _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(d, load_bf16(there, up + j)), s), slope));
      store_bf16(there, to_up + j, _mm512_mul_ps(_mm512_mul_ps(d, a), s));
    }
  }
}

}  // extern "C"
