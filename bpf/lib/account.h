/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_ACCOUNT_H
#define SIDELIGHT_ACCOUNT_H

#include "../maps.h"

/*
 * Plain increments are enough: a sockops or connect program runs with preemption or migration off, and a softirq that interrupts
 * it on this CPU finishes before it goes on, so only an increment that is not one instruction could be torn. clang emits
 * load-add-store; hence the atomic form, which is uncontended here (one CPU, one cache line).
 */
#define account_add(field)                                            \
	do {                                                          \
		__u32 zero_ = 0;                                      \
		struct mesh_account *account_;                        \
		account_ = bpf_map_lookup_elem(&account, &zero_);     \
		if (account_)                                         \
			__sync_fetch_and_add(&account_->field, 1ULL); \
	} while (0)

#endif
