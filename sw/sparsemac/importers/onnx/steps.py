# SPDX-License-Identifier: Apache-2.0
"""Rising functions of integers as their steps, and the core's rounding that has the same steps.

See `.rounding` for what they are for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...commands import OutputMode
from ...numerics import quantize_multiplier, requantize

__all__ = ["Function", "Steps", "fixed_point"]

#: Of (count, channels) integers, each channel for itself.
Function = Callable[[NDArray[np.int64]], NDArray[np.int64]]

#: Offsets B that are tried around the one that fits best.
_TRIALS = (0, 1, -1, 2, -2, 3, -3)


def fixed_point(real: NDArray[np.float64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Multipliers and shifts; of 0 too."""
    multiplier, shift = quantize_multiplier(np.where(real > 0, real, 1.0))
    return np.where(real > 0, multiplier, np.uint64(0)), np.where(real > 0, shift, 0)


@dataclass(slots=True, kw_only=True)
class Steps:
    """A rising function of integers as its steps, by channel.

    Attributes
    ----------
    at : (steps, channels) int64     The least sum that gives ``results`` or more.
    there : (steps, channels) bool   Whether the step is among the sums that can occur.
    results : (steps, 1) int64
    bottom, top : (channels,) int64  The sums that can occur.
    first, last : (channels,) int64  Their results.
    low, high : int                  Lowest and highest result of all channels.
    zero_point : int
    """

    at: NDArray[np.int64]
    there: NDArray[np.bool_]
    results: NDArray[np.int64]
    bottom: NDArray[np.int64]
    top: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    low: int
    high: int
    zero_point: int

    @classmethod
    def of(cls, function: Function, bottom: NDArray[np.int64], top: NDArray[np.int64], low: int,
           high: int, zero_point: int) -> "Steps":
        """Finds the steps by bisection."""
        first, last = function(np.stack([bottom, top]))
        results = np.arange(low + 1, high + 1, dtype=np.int64)[:, None]
        there = (results > first) & (results <= last)
        below = np.broadcast_to(bottom, there.shape).copy()
        at = np.broadcast_to(top, there.shape).copy()
        while (wide := at - below > 1).any():
            middle = below + (at - below) // 2
            reached = function(middle) >= results
            at = np.where(wide & reached, middle, at)
            below = np.where(wide & ~reached, middle, below)
        return cls(at=at, there=there, results=results, bottom=bottom, top=top, first=first,
                   last=last, low=int(first.min()), high=int(last.max()), zero_point=zero_point)

    def fit(
        self, factor: int
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64]] | None, int]:
        """Finds (channels,) offsets B and multipliers m for sums ``factor`` times as large.

        Returns them, or None, and the number of channels without.
        """
        channels = len(self.bottom)
        offsets, reals = np.zeros(channels, np.int64), np.zeros(channels)
        left = np.ones(channels, bool)
        guesses = self._guesses(factor)
        for guess in guesses:
            real = self._multiplier(guess, factor)
            good = left & self._equal(guess, real, factor)
            offsets[good], reals[good] = guess[good], real[good]
            left &= ~good
            if not left.any():
                return (offsets, reals), 0
        return None, int(left.sum())

    def _guesses(self, factor: int) -> list[NDArray[np.int64]]:
        count = self.there.sum(0)
        c = self.results - self.zero_point - 0.5
        x = self.at * float(factor) - factor / 2
        n = np.maximum(count, 1)
        mean_x, mean_c = (np.where(self.there, v, 0).sum(0) / n for v in (x, c))
        spread = np.where(self.there, (x - mean_x) ** 2, 0).sum(0)
        slope = np.where(self.there, (x - mean_x) * (c - mean_c), 0).sum(0)
        gentle = 0.2 / (factor * (self.top - self.bottom) + 1.0)
        flat = self.first - self.zero_point
        with np.errstate(all="ignore"):
            fitted = mean_c * spread / np.where(slope > 0, slope, 1) - mean_x
            lone = np.ceil(mean_c / gentle) - factor * np.where(self.there, self.at, 0).sum(0)
            constant = np.rint(flat / gentle) - factor * (self.top + self.bottom) // 2
        centre = np.where(count >= 2, fitted, np.where(count == 1, lone, constant))
        limit = (1 << 30) - 1
        centre = np.clip(np.rint(centre), -limit, limit).astype(np.int64)
        return [np.zeros_like(centre), *(centre + trial for trial in _TRIALS)]

    def _multiplier(self, offset: NDArray[np.int64], factor: int) -> NDArray[np.float64]:
        """The middle of what the steps allow a multiplier to be."""
        c = self.results - self.zero_point - 0.5
        least, most = np.zeros(len(offset)), np.full(len(offset), 15.9)
        for sums, bound, holds, above in (
            (self.at, c, self.there, True), (self.at - 1, c, self.there, False),
            (self.bottom[None], (self.first - self.zero_point - 0.5)[None],
             (self.first > self.low)[None], True),
            (self.top[None], (self.last - self.zero_point + 0.5)[None],
             (self.last < self.high)[None], False),
        ):
            x = (sums * factor + offset).astype(np.float64)
            with np.errstate(all="ignore"):
                ratio = bound / x
            # m * x >= bound, or m * x < bound: a bound from below if x has that sign.
            lower = holds & (x > 0) if above else holds & (x < 0)
            upper = holds & (x < 0) if above else holds & (x > 0)
            least = np.maximum(least, np.where(lower, ratio, 0).max(0))
            most = np.minimum(most, np.where(upper, ratio, np.inf).min(0))
        free = ~self.there.any(0) & (self.first == self.zero_point)
        return np.where(free | (most <= 0), 0.0, (least + most) / 2)

    def _equal(
        self, offset: NDArray[np.int64], real: NDArray[np.float64], factor: int
    ) -> NDArray[np.bool_]:
        """Whether the core gives the same on both sides of each step and at both ends."""
        limit = (1 << 31) - 1
        ends = np.stack([self.bottom, self.top]) * factor + offset
        fits = (np.abs(ends).max(0) <= limit) & (real >= 0) & (real < 15.95)
        multiplier, shift = fixed_point(np.where(fits, real, 0))

        def core(sums: NDArray[np.int64]) -> NDArray[np.int64]:
            acc = np.clip(sums * factor + offset, -limit, limit)
            return requantize(acc, multiplier, shift, self.zero_point, self.low, self.high,
                              OutputMode.SINGLE).astype(np.int64)

        reached = (core(self.at) >= self.results) & (core(self.at - 1) < self.results)
        return (fits & (reached | ~self.there).all(0) & (core(self.bottom) == self.first)
                & (core(self.top) == self.last))
