/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_BITS_H
#define SIDELIGHT_BITS_H

#include <linux/types.h>

static __always_inline __u64 bits_rotate(__u64 bits, int left)
{
	return bits << left | bits >> (64 - left);
}

/*
 * The lowest bit that is set; one is. No instruction counts trailing zeros. A function of its own, not inlined and not static: the verifier looks at
 * it once, not once for each way there.
 */
__noinline int bits_lowest(__u64 bits)
{
	int bit = 0;

	for (int step = 32; step; step >>= 1) {
		if (!(bits & ((1ULL << step) - 1))) {
			bits >>= step;
			bit += step;
		}
	}
	return bit;
}

#endif
