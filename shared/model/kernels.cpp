// What a training step on CPU spends its time on beside matrix products: causal attention, cross-entropy, SwiGLU.
// All in BF16 with FP32 arithmetic inside.
//
// Attention. Letters: B sequences, T positions, H heads, K head size, R rows of a block; (B, T, H, K), contiguous.
// One head of one sequence fits in the second-level cache, so that only q, k, v, o and their gradients meet memory:
// scores are made again in the backward pass from the log-sum-exp of each row (Dao et al., arXiv 2205.14135).
// Products go through torch's brgemm, which takes its second factor in pairs of rows ("VNNI": [rows / 2][columns][2]).

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using bf16 = at::BFloat16;
using at::native::cpublas::brgemm;

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

// exp(x), held within e^-87 and e^87, to 2 units in the last place: 2^n e^f with |f| <= ln(2) / 2, Taylor to the 6th power.
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

// (T, K) rows with a stride -> [K / 2][T][2]: the transpose, as a second factor.
void pack_transposed(const uint16_t* x, int64_t stride, int64_t T, int64_t K, uint32_t* out) {
  for (int64_t t = 0; t < T; ++t)
    for (int64_t k = 0; k < K / 2; ++k) std::memcpy(&out[k * T + t], &x[t * stride + 2 * k], 4);
}

// (T, K) rows with a stride -> [T / 2][K][2]: as it is, as a second factor.
void pack_rows(const uint16_t* x, int64_t stride, int64_t T, int64_t K, uint32_t* out) {
  for (int64_t t = 0; t < T / 2; ++t) {
    const uint16_t *even = x + 2 * t * stride, *odd = even + stride;
    for (int64_t k = 0; k < K; ++k) out[t * K + k] = even[k] | static_cast<uint32_t>(odd[k]) << 16;
  }
}

}  // namespace

extern "C" {

bool supported() { return at::native::cpublas::could_pack(at::kBFloat16); }

void attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* o, float* lse,
             int64_t B, int64_t T, int64_t H, int64_t K) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  const int64_t stride = H * K;
  std::vector<uint32_t> k_packed(T * K / 2), v_packed(T * K / 2);
  std::vector<float> scores(R * T), mixed(R * K);
  std::vector<uint16_t> weights(R * T);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h) {
      const int64_t offset = b * T * stride + h * K;
      pack_transposed(k + offset, stride, T, K, k_packed.data());
      pack_rows(v + offset, stride, T, K, v_packed.data());
      for (int64_t i = 0; i < T; i += R) {
        const int64_t n = i + R;
        brgemm(R, n, K, stride, T, T, false, reinterpret_cast<const bf16*>(q + offset + i * stride),
               reinterpret_cast<const bf16*>(k_packed.data()), scores.data());
        float inverse[R];
        for (int64_t r = 0; r < R; ++r) {
          float* row = scores.data() + r * T;
          uint16_t* weight = weights.data() + r * T;
          for (int64_t j = i + r + 1; j < n; ++j) row[j] = MASKED;
          float top = row[0];
#pragma omp simd reduction(max : top)
          for (int64_t j = 0; j < n; ++j) top = row[j] > top ? row[j] : top;
          float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
          for (int64_t j = 0; j < n; ++j) {
            float e = exponential((row[j] - top) * scale);
            e = row[j] == MASKED ? 0.0f : e;
            sum += e;
            weight[j] = to_bf16(e);
          }
          inverse[r] = 1.0f / sum;
          lse[(b * H + h) * T + i + r] = top * scale + std::log(sum);
        }
        brgemm(R, K, n, T, K, K, false, reinterpret_cast<const bf16*>(weights.data()),
               reinterpret_cast<const bf16*>(v_packed.data()), mixed.data());
        for (int64_t r = 0; r < R; ++r)
          for (int64_t x = 0; x < K; ++x)
            o[offset + (i + r) * stride + x] = to_bf16(mixed[r * K + x] * inverse[r]);
      }
    }
  at::native::cpublas::brgemm_release();
}

void attention_backward(const uint16_t* g, const uint16_t* q, const uint16_t* k, const uint16_t* v, const uint16_t* o,
              const float* lse, uint16_t* dq, uint16_t* dk, uint16_t* dv, int64_t B, int64_t T, int64_t H, int64_t K) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  const int64_t stride = H * K;
  const int64_t half = T * K / 2;
  std::vector<uint32_t> q_columns(half), g_columns(half), q_rows(half), g_rows(half), ds_pairs(R / 2 * T);
  std::vector<uint16_t> k_transposed(K * T), p(R * T), ds(R * T);
  std::vector<float> s(R * T), dp(R * T), dq_KT(K * T), out(R * K), delta(T);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h) {
      const int64_t offset = b * T * stride + h * K;
      const float* lse_T = lse + (b * H + h) * T;
      pack_transposed(q + offset, stride, T, K, q_columns.data());
      pack_transposed(g + offset, stride, T, K, g_columns.data());
      pack_rows(q + offset, stride, T, K, q_rows.data());
      pack_rows(g + offset, stride, T, K, g_rows.data());
      for (int64_t t = 0; t < T; ++t) {
        const int64_t at = offset + t * stride;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t x = 0; x < K; ++x) {
          sum += from_bf16(g[at + x]) * from_bf16(o[at + x]);
          k_transposed[x * T + t] = k[at + x];
        }
        delta[t] = sum;
      }
      for (int64_t j = 0; j < T; j += R) {  // rows are keys, columns the queries i >= j
        const int64_t n = T - j;
        brgemm(R, n, K, stride, T, n, false, reinterpret_cast<const bf16*>(k + offset + j * stride),
               reinterpret_cast<const bf16*>(q_columns.data() + j), s.data());
        brgemm(R, n, K, stride, T, n, false, reinterpret_cast<const bf16*>(v + offset + j * stride),
               reinterpret_cast<const bf16*>(g_columns.data() + j), dp.data());
        for (int64_t r = 0; r < R; ++r) {
          const float *s_row = s.data() + r * n, *dp_row = dp.data() + r * n;
          uint16_t *p_row = p.data() + r * n, *ds_row = ds.data() + r * n;
          for (int64_t i = 0; i < n; ++i) {
            float log_weight = s_row[i] * scale - lse_T[j + i];
            float weight = exponential(log_weight > 0.0f ? 0.0f : log_weight);
            p_row[i] = to_bf16(weight);
            ds_row[i] = to_bf16(weight * (dp_row[i] - delta[j + i]) * scale);
          }
          for (int64_t i = 0; i < r; ++i) p_row[i] = ds_row[i] = 0;  // queries before the key
        }
        for (int64_t r = 0; r < R / 2; ++r) {
          const uint16_t *even = ds.data() + 2 * r * n, *odd = even + n;
          for (int64_t i = 0; i < n; ++i) ds_pairs[r * n + i] = even[i] | static_cast<uint32_t>(odd[i]) << 16;
        }
        brgemm(K, n, R, T, n, T, j > 0, reinterpret_cast<const bf16*>(k_transposed.data() + j),
               reinterpret_cast<const bf16*>(ds_pairs.data()), dq_KT.data() + j);
        brgemm(R, K, n, n, K, K, false, reinterpret_cast<const bf16*>(p.data()),
               reinterpret_cast<const bf16*>(g_rows.data() + j / 2 * K), out.data());
        for (int64_t r = 0; r < R; ++r)
          for (int64_t x = 0; x < K; ++x) dv[offset + (j + r) * stride + x] = to_bf16(out[r * K + x]);
        brgemm(R, K, n, n, K, K, false, reinterpret_cast<const bf16*>(ds.data()),
               reinterpret_cast<const bf16*>(q_rows.data() + j / 2 * K), out.data());
        for (int64_t r = 0; r < R; ++r)
          for (int64_t x = 0; x < K; ++x) dk[offset + (j + r) * stride + x] = to_bf16(out[r * K + x]);
      }
      for (int64_t t = 0; t < T; ++t)
        for (int64_t x = 0; x < K; ++x) dq[offset + t * stride + x] = to_bf16(dq_KT[x * T + t]);
    }
  at::native::cpublas::brgemm_release();
}

// Cross-entropy of rows of V logits: loss = lse - logit of the target, and lse for the backward pass.
void cross_entropy(const uint16_t* logits, const int64_t* target, float* loss, float* lse, int64_t rows, int64_t V) {
  std::vector<float> x(V);
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
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t *gate = x + 2 * r * F, *up = gate + F;
    for (int64_t j = 0; j < F; ++j) {
      const float a = from_bf16(gate[j]);
      out[r * F + j] = to_bf16(a / (1.0f + exponential(-a)) * from_bf16(up[j]));
    }
  }
}

void swiglu_backward(const uint16_t* g, const uint16_t* x, uint16_t* out, int64_t rows, int64_t F) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t *gate = x + 2 * r * F, *up = gate + F;
    uint16_t *to_gate = out + 2 * r * F, *to_up = to_gate + F;
    for (int64_t j = 0; j < F; ++j) {
      const float a = from_bf16(gate[j]), d = from_bf16(g[r * F + j]);
      const float s = 1.0f / (1.0f + exponential(-a));
      to_gate[j] = to_bf16(d * from_bf16(up[j]) * s * (1.0f + a * (1.0f - s)));
      to_up[j] = to_bf16(d * a * s);
    }
  }
}

}  // extern "C"
