// The nearest point of an l1 ball inside the box, row by row, shared by CPU and CUDA and by every op that projects so.
// robustfast/reference/l1_projection.py is the definition.
#pragma once
#include <torch/headeronly/macros/Macros.h>

#include "box.h"

namespace robustfast {

// One entry farther from x than this counts as no farther: differences from tau stay exact to 1e-10.
constexpr double kL1Reach = 1e6;

// What a row's distance phi(tau) = sum min(max(size - tau, 0), room) is made of at one tau: the sizes of the entries
// that still move with tau, their number, and the room of those at a wall.
struct L1Parts {
  double moving, count, at_wall;
};

// An entry seen from x: how far away it is, and how far it may go before the wall on its side.
template <typename T>
struct L1Entry {
  T size, room;
};

// Picks between values, never between computations, which would be branches: the compiler makes vectors of it.
template <typename T>
C10_HOST_DEVICE inline L1Entry<T> l1_entry(T x_adv, T x, Bounds<T> b) {
  const T delta = x_adv - x;
  const T room = (delta > T(0) ? b.hi : x) - (delta > T(0) ? x : b.lo);
  T size = delta < T(0) ? -delta : delta;
  size = size > T(0) ? size : T(0);  // NaN compares false to everything, and counts as x itself
  size = size < T(kL1Reach) ? size : T(kL1Reach);
  return {size, room > T(0) ? room : T(0)};
}

template <typename T>
C10_HOST_DEVICE inline L1Parts l1_parts(L1Entry<T> e, double tau) {
  const double size = static_cast<double>(e.size), room = static_cast<double>(e.room);
  const bool at_wall = size - room >= tau;
  const bool moving = size > tau && !at_wall;
  return {moving ? size : 0.0, moving ? 1.0 : 0.0, at_wall ? room : 0.0};
}

// tau with phi(tau) = eps, 0 where the row lies in the ball already. parts(tau) gives the row's L1Parts, `largest` is
// its largest size. Newton's step solves the straight piece that tau lies on; phi is not convex, so a step that leaves
// the bracket is a bisection instead. A piece that holds its own solution ends the search: exactly, without a sort.
// Seen: 4 to 10 evaluations for rows of 3072 with sizes alike, 37 where they spread over six decades.
template <typename Parts>
C10_HOST_DEVICE inline double l1_threshold(double eps, double largest, const Parts& parts) {
  L1Parts p = parts(0.0);
  if (!(p.moving + p.at_wall > eps)) return 0;
  if (!(eps > 0)) return largest;
  double below = 0, above = largest, tau = 0;
  // 1100 halvings exhaust every bracket of doubles; every second step past the 16th is one.
  for (int i = 0; i < 2200; ++i) {
    const double solved = p.count > 0 ? (p.moving + p.at_wall - eps) / p.count : -1;
    if (solved == tau && i > 0) break;
    const bool newton = solved > below && solved < above && (i < 16 || i % 2);
    const double next = newton ? solved : below + (above - below) / 2;
    // Only neighbours are left.
    if (!(next > below && next < above)) {
      tau = solved >= below && solved <= above ? solved : above;
      break;
    }
    tau = next;
    p = parts(tau);
    const double phi = p.moving - p.count * tau + p.at_wall;
    if (phi == eps) break;
    (phi > eps ? below : above) = tau;
  }
  return tau;
}

// The entry of the projection, where tau is 0: a row that lies in the ball stays as it is.
template <typename T>
C10_HOST_DEVICE inline T l1_keep(T x_adv, T x, Bounds<T> b) {
  return clamp(x_adv == x_adv ? x_adv : x, b.lo, b.hi);
}

// The same where tau is above 0; `size` is the entry's.
template <typename T>
C10_HOST_DEVICE inline T l1_shrink(T x_adv, T x, T size, double tau, Bounds<T> b) {
  const T cut = static_cast<T>(static_cast<double>(size) - tau), shrunk = cut > T(0) ? cut : T(0);
  return clamp(x + (x_adv < x ? -shrunk : shrunk), b.lo, b.hi);
}

template <typename T>
C10_HOST_DEVICE inline T l1_project(T x_adv, T x, double tau, Bounds<T> b) {
  return tau == 0 ? l1_keep(x_adv, x, b) : l1_shrink(x_adv, x, l1_entry(x_adv, x, b).size, tau, b);
}

}  // namespace robustfast
