// One entry of a Gaussian draw and of its divergence, shared by CPU and CUDA.
// robustfast/reference/reparameterise.py is the definition.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "continuous.h"
#include "philox.h"

namespace robustfast {

// The second word of the counter, as of the first draws of robustfast/attacks/draws.py.
constexpr uint32_t kNoise = 3;

// condition ? a : b by their bits: where GCC sees a branch it makes no vectors.
template <typename Bits, typename T>
C10_HOST_DEVICE inline T choose(bool condition, T a, T b) {
  Bits yes, no;
  memcpy(&yes, &a, sizeof yes);
  memcpy(&no, &b, sizeof no);
  const Bits mask = -static_cast<Bits>(condition), bits = (yes & mask) | (no & ~mask);
  T result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// exp(x) to one unit in the last place or two, without branches: 2^k * exp(r) with |r| <= log(2) / 2. The C library's
// is a call for each element. Below the smallest normal number it stays there, above the largest it is infinite, and
// nan stays nan.
C10_HOST_DEVICE inline double exponent(double x) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves an integer in the low bits
  x = choose<uint64_t>(x < -708.0, -708.0, choose<uint64_t>(x > 710.0, 710.0, x));
  const double shifted = x * 1.44269504088896338700e+00 + kRound, k = shifted - kRound;
  const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;  // the Taylor series
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r * r + r;
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4338000000000000ull + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return (1 + p) * scale;
}

// The same with the polynomial of Cephes' expf.
C10_HOST_DEVICE inline float exponent(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  x = choose<uint32_t>(x < -87.0f, -87.0f, choose<uint32_t>(x > 89.0f, 89.0f, x));
  const float shifted = x * 1.44269504088896341f + kRound, k = shifted - kRound;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000u + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return (1 + p) * scale;
}

// sqrt of this times the cosine of the angle is a standard normal draw (Box and Muller 1958).
C10_HOST_DEVICE inline double normal_squared_radius(uint32_t word) { return 2 * exponential(middle(word) * 0x1p-32); }

// cos of 2 pi (word + 1/2) / 2^32, chosen by bits too.
C10_HOST_DEVICE inline double cosine_of(uint32_t word) {
  const Turn t = turn(word);
  uint64_t cosine, sine;
  memcpy(&cosine, &t.cosine, sizeof cosine);
  memcpy(&sine, &t.sine, sizeof sine);
  const uint64_t odd = -uint64_t(t.quadrant & 1), sign = uint64_t((t.quadrant + 1) & 2) << 62;
  const uint64_t bits = ((sine & odd) | (cosine & ~odd)) ^ sign;
  double result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// What one entry adds to twice the divergence, with spread = exp(log_variance / 2).
C10_HOST_DEVICE inline double twice_divergence(double mean, double log_variance, double spread) {
  return mean * mean + spread * spread - 1 - log_variance;
}

template <typename T>
struct MomentGradient {
  T mean, log_variance;
};

template <typename T>
C10_HOST_DEVICE inline MomentGradient<T> moment_gradient(T d_z, T d_divergence, T mean, T log_variance, T shift) {
  return {d_z + d_divergence * mean, T(0.5) * (d_z * shift + d_divergence * (exponent(log_variance) - 1))};
}

}  // namespace robustfast
