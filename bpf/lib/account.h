/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_ACCOUNT_H
#define SIDELIGHT_ACCOUNT_H

#include "../maps.h"

/*
 * A step counts once what tells of it is there: the event committed, or the sums that stand for it added to, and that counted. A CPU can stand still
 * anywhere in a program, one of a virtual machine for long; so whoever reads the account and then the ring and the sums finds in these at least what the
 * account says, and an account that does not close is never one that was asked for at a bad moment.
 *
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

/* Offset of a counter. */
#define ACCOUNT(field) __builtin_offsetof(struct mesh_account, field)

/* Counts what tells of a step, or that there was no way to, and then the step. */
static __always_inline void account_step(__u32 told, __u32 step)
{
	__u32 zero = 0;
	struct mesh_account *counters = bpf_map_lookup_elem(&account, &zero);

	if (!counters)
		return;
	__sync_fetch_and_add((__u64 *)((void *)counters + told), 1ULL);
	__sync_fetch_and_add((__u64 *)((void *)counters + step), 1ULL);
}

#endif
