// One quad of random starts, shared by CPU and CUDA. robustfast/reference/random_start.py is the definition.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"
#include "planes.h"

namespace robustfast {

enum class Law : int64_t { pixel = 0, l2 = 1, l1 = 2 };

// The second word of the counter: what a draw is for.
enum class Purpose : uint32_t { pixel = 0, direction = 1, radius = 2 };

// Uniform on the 2^24 multiples of 2^-23 in [-1, 1): exact in float32, so that only the product with eps rounds.
template <typename T>
C10_HOST_DEVICE inline T unit_pixel(uint32_t word) {
  return static_cast<T>(static_cast<int32_t>(word >> 8) - (1 << 23)) * static_cast<T>(0x1p-23);
}

// word + 1/2, exactly, by a signed conversion: unsigned ones are not vectorised before AVX-512.
C10_HOST_DEVICE inline double middle(uint32_t word) {
  return static_cast<double>(static_cast<int32_t>(word ^ 0x80000000u)) + 2147483648.5;
}

// A draw of density exp(-t), t > 0: -log(u) for 2^-33 <= u < 1, to one unit in the last place: e_log.c of FreeBSD's
// msun, where the polynomial is explained, without its branches. The C library's log is a call for each element, and
// differs between machines.
C10_HOST_DEVICE inline double exponential(double u) {
  constexpr uint64_t kOne = uint64_t(1) << 52;                    // one step of the exponent
  constexpr uint64_t kShift = 0x3FE6A09E667F3BCDull - 64 * kOne;  // bits of sqrt(1/2), 64 octaves down
  uint64_t bits;
  memcpy(&bits, &u, sizeof bits);
  const uint64_t octave = (bits - kShift) >> 52;  // k + 64, where u = m 2^k and sqrt(1/2) <= m < sqrt(2)
  const uint64_t mantissa = bits - (octave - 64) * kOne, number = octave | 0x4330000000000000ull;
  double m, k;
  memcpy(&m, &mantissa, sizeof m);
  memcpy(&k, &number, sizeof k);
  k -= 0x1p52 + 64;
  const double f = m - 1, s = f / (2 + f), z = s * s, w = z * z, half = 0.5 * f * f;
  const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd =
      z * (6.666666666666735130e-01 +
           w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  return ((half - (s * (half + (even + odd)) + k * 1.90821492927058770002e-10)) - f) - k * 6.93147180369123816490e-01;
}

// cos and sin of 2 pi (word + 1/2) / 2^32: the quadrant comes off the word exactly, the rest is k_cos.c and k_sin.c of
// FreeBSD's msun on [-pi/4, pi/4].
C10_HOST_DEVICE inline void unit_circle(uint32_t word, double& cosine, double& sine) {
  const uint32_t quadrant = (word + 0x20000000u) >> 30;
  const double x = (static_cast<double>(static_cast<int32_t>(word - (quadrant << 30))) + 0.5) * 1.46291807926715968e-09;
  const double z = x * x;
  const double s = x + x * z *
                           (-1.66666666666666324348e-01 +
                            z * (8.33333333332248946124e-03 +
                                 z * (-1.98412698298579493134e-04 +
                                      z * (2.75573137070700676789e-06 +
                                           z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
  const double c =
      1 - (0.5 * z - z * z *
                         (4.16666666666666019037e-02 +
                          z * (-1.38888888888741095749e-03 +
                               z * (2.48015872894767294178e-05 +
                                    z * (-2.75573143513906633035e-07 +
                                         z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11))))));
  const double across = quadrant & 1 ? s : c, along = quadrant & 1 ? c : s;
  cosine = (quadrant + 1) & 2 ? -across : across;
  sine = quadrant & 2 ? -along : along;
}

// Box and Muller 1958: sqrt(squared_radius) times a point of the unit circle is two normal draws of variance 1/2,
// density ~ exp(-t^2). No word gives a radius of zero.
C10_HOST_DEVICE inline double squared_radius(uint32_t word) { return exponential(middle(word) * 0x1p-32); }

// A draw of density ~ exp(-|t|): the low bit is the sign.
C10_HOST_DEVICE inline double laplace(uint32_t word) {
  const double size = exponential(middle(word >> 1) * 0x1p-31);
  return word & 1 ? -size : size;
}

// What brings draws g of density ~ exp(-|t|^p), whose sum of |g|^p is `sum`, uniformly into the lp ball of radius eps:
// one more exponential draw in their length (robustfast/ops/random_start.py names the theorem).
C10_HOST_DEVICE inline double ball_scale(Law law, double eps, double sum, uint32_t word) {
  const double total = sum + exponential(middle(word) * 0x1p-32);
  return eps / (law == Law::l2 ? sqrt(total) : total);
}

}  // namespace robustfast
