"""The polynomial by which kernels/gelu.py and csrc/common/gelu.cuh compute GELU: prints its coefficients and errors.

    python tests/scripts/gelu_polynomial.py

With a = |z|, the upper tail of the normal distribution is Q(a) = erfc(a / sqrt 2) / 2, and Phi(z) = Q(a) for z < 0,
1 - Q(a) else. log2 Q is smooth, almost a parabola, so Q(a) = exp2(P(a)) with one polynomial P: no branch, no division,
and an error of P is a relative error of Q, hence of the left tail of GELU. P(0) = -1, so that Phi(0) is 1/2 exactly.

P(a) = -1 + a p(a) is the minimax polynomial of degree DEGREE on [0, LAST] under the tolerance below: in float32 P
itself is rounded by 2^-24 |P|, which is about a^2 / 2^24, so that more accuracy in the tail would be lost. It is found
by Lawson's iteration (C. L. Lawson, "Contributions to the theory of linear least maximum approximation", 1961): least
squares, again and again, each time with weights multiplied by the errors. The coefficients are rounded to float32 one
by one, from the lowest, and those above are fitted again after each. Beyond LAST P keeps falling, so that Q vanishes.
"""

from __future__ import annotations

import math

import numpy as np

DEGREE = 12
LAST = 10.0
NODES = 3000


def log2_tail(a: np.ndarray) -> np.ndarray:
    """log2 Q(a), float64."""
    return np.log2([0.5 * math.erfc(value / math.sqrt(2.0)) for value in a])


def tolerance(a: np.ndarray) -> np.ndarray:
    """Of P at a: what its rounding costs, and more beyond 6, where GELU is smaller than 1e-8."""
    return (1.0 + a * a) * (1.0 + (a / 6.0) ** 4)


def minimax(a: np.ndarray, rest: np.ndarray, lowest: int) -> np.ndarray:
    """Coefficients of a^lowest .. a^DEGREE whose sum is next to `rest` on the points a."""
    powers = (a[:, None] / LAST) ** np.arange(lowest, DEGREE + 1)
    weights = np.ones_like(a)
    best, kept = math.inf, np.zeros(powers.shape[1])
    for _ in range(300):
        factor = np.sqrt(weights) / tolerance(a)
        found = np.linalg.lstsq(powers * factor[:, None], rest * factor, rcond=None)[0]
        error = np.abs(powers @ found - rest) / tolerance(a)
        if error.max() < best:
            best, kept = error.max(), found
        weights *= error / error.max() + 1e-9
        weights /= weights.mean()
    return kept / LAST ** np.arange(lowest, DEGREE + 1)


def coefficients() -> list[np.float32]:
    """Of P, from a^0."""
    a = LAST * (1.0 - np.cos((np.arange(NODES) + 0.5) / NODES * np.pi)) / 2.0
    rest = log2_tail(a) + 1.0
    found = [np.float32(-1.0)]
    for power in range(1, DEGREE + 1):
        found.append(np.float32(minimax(a, rest, power)[0]))
        rest = rest - float(found[-1]) * a**power
    return found


def main() -> None:
    found = coefficients()
    for power, value in enumerate(found):
        print(f"a^{power:<2} {value!s}")
    a = np.linspace(0.0, 14.0, 28001).astype(np.float32)
    exact = np.zeros(len(a))
    for value in reversed(found):
        exact = exact * a.astype(np.float64) + float(value)
    true = log2_tail(a.astype(np.float64))
    tail, of_fit = np.exp2(true), np.exp2(exact)
    values = np.polyval([float(c) for c in reversed(found)], np.linspace(0.0, 1000.0, 100001))
    print("falls from 0 to 1000:", bool(np.all(np.diff(values) < 0.0)))
    for first, last in ((0, 1), (1, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 13)):
        inside = (a >= first) & (a <= last)
        error = np.abs(of_fit - tail)[inside]
        print(f"[{first}, {last}]: Q absolute {error.max():.1e}, relative {(error / tail[inside]).max():.1e}")


if __name__ == "__main__":
    main()
