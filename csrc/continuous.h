// What continuous laws are drawn from: a word as a number in (0, 1), its logarithm, and a point of the unit circle.
#pragma once
#include <cstdint>
#include <cstring>

#include <torch/headeronly/macros/Macros.h>

namespace robustfast {

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

// cos and sin of the part of the angle 2 pi (word + 1/2) / 2^32 beyond its quadrant, which comes off the word exactly:
// k_cos.c and k_sin.c of FreeBSD's msun on [-pi/4, pi/4].
struct Turn {
  uint32_t quadrant;
  double cosine, sine;
};

C10_HOST_DEVICE inline Turn turn(uint32_t word) {
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
  return {quadrant, c, s};
}

// cos and sin of 2 pi (word + 1/2) / 2^32.
C10_HOST_DEVICE inline void unit_circle(uint32_t word, double& cosine, double& sine) {
  const Turn t = turn(word);
  const double across = t.quadrant & 1 ? t.sine : t.cosine, along = t.quadrant & 1 ? t.cosine : t.sine;
  cosine = (t.quadrant + 1) & 2 ? -across : across;
  sine = t.quadrant & 2 ? -along : along;
}

}  // namespace robustfast
